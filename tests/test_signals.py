"""SIGTERM ends a verb as Ctrl-C does: what it began is cleaned up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import SMOLLM2, free_ports
from forge.adapters import processes
from forge.workshop import Workshop

SLEEPER = """
import sys, time
from forge.cli.show import verb

@verb
def sleeper(output):
    print("asleep", flush=True)
    try:
        time.sleep(60)
    finally:
        time.sleep(0.5)
        print("cleaned up", flush=True)

sleeper(as_json=False, quiet=False, verbose=False)
"""
FORGE = "import sys; from forge.cli import main; main(sys.argv[1:])"


@contextmanager
def started(code: str, *words: str, **environ: str) -> Generator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", code, *words]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environ}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_terminated_verb_cleans_up_once_and_says_so_by_its_exit_code() -> None:
    with started(SLEEPER) as process:
        assert first_line(process) == "asleep\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)  # while it cleans up
        out, err = process.communicate(timeout=20)
    assert out == "cleaned up\n"
    assert process.returncode == 143
    assert err == "terminated\n"


@pytest.mark.slow
@pytest.mark.network
def test_a_terminated_forge_serve_stops_its_server(shop: Workshop, home: Path, tmp_path: Path) -> None:
    repository = shop.build([SMOLLM2], repository=tmp_path / "repository").repository
    ports = free_ports()
    named = ("--http-port", ports.http, "--grpc-port", ports.grpc, "--metrics-port", ports.metrics)
    words = ("serve", "--repository", str(repository), *map(str, named))
    with started(FORGE, *words, FORGE_HOME=str(home)) as process:
        assert first_line(process).startswith("ready: ")
        running = shop.server(repository)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert err.endswith("stopping\n")
    assert not processes.marked(running.shared_memory)
    assert running not in shop.servers()
