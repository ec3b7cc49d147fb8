"""SIGTERM ends a verb as Ctrl-C does: what it began is cleaned up."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from forge.api.forge import Forge
from forge.machine import processes
from forge.serve.server_types import Running
from patience import free_ports
from shipped import SMOLLM2

SLEEPER = """
import sys, time
from forge.cli.output import verb

@verb
def sleeper(output):
    try:
        print("asleep", flush=True)
        time.sleep(600)
    finally:
        print("cleaning up", flush=True)
        sys.stdin.readline()
        print("cleaned up", flush=True)

sleeper(as_json=False, quiet=False, verbose=False)
"""
HASTY = """
import os, signal, sys
from forge.cli import main
from forge.cli.output import Output

tell = Output.result

def result(output, document, text):
    tell(output, document, text)
    os.kill(os.getpid(), signal.SIGTERM)  # the moment that a reader knows

Output.result = result
main(sys.argv[1:])
"""


@contextmanager
def started(code: str, *words: str, **environ: str) -> Generator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", code, *words]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environ}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_terminated_verb_cleans_up_once_with_its_exit_code() -> None:
    with started(SLEEPER) as process:
        assert first_line(process) == "asleep\n"
        process.send_signal(signal.SIGTERM)
        assert first_line(process) == "cleaning up\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate("go on\n")
    assert out == "cleaned up\n"
    assert process.returncode == 143
    assert err == "terminated\n"


@pytest.mark.slow
@pytest.mark.network
def test_forge_serve_terminated_once_it_is_ready_stops_its_server(shop: Forge, home: Path, tmp_path: Path) -> None:
    repository = shop.build([SMOLLM2], repository=tmp_path / "repository").repository
    ports = free_ports()
    named = ("--http-port", ports.http, "--grpc-port", ports.grpc, "--metrics-port", ports.metrics)
    words = ("serve", "--json", "--repository", str(repository), *map(str, named))
    with started(HASTY, *words, FORGE_HOME=str(home)) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert err.endswith("stopping\n")
    running = msgspec.json.decode(out, type=Running)
    assert not processes.marked(running.shared_memory)
    assert running.shared_memory not in {each.shared_memory for each in shop.servers()}
