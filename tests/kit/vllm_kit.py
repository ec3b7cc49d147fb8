"""Models of vLLM without vLLM: forge's own backend and its engine process on a real Triton, over the stand-in of vLLM's API."""

import os
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import blake3
from click.testing import CliRunner
from msgspec.structs import replace

from forge.api.forge import Forge
from forge.cli import main
from forge.client import Client
from forge.machine import processes
from forge.machine.environments import backends, host
from forge.schema.vllm_environment import vllm_sources
from forge.serve.server_types import Launch, Running
from triton_fixture import Serving

HERE = Path(__file__).parent
RECIPE = """
name = "{name}"
[source]
path = "checkpoint"
[runtime]
kind = "vllm"
gpus = "none"
{runtime}[build]
max_batch_size = 4
max_input_len = 100
max_seq_len = 200
[sampling]
max_tokens = 4
[[lora]]
name = "sql"
path = "adapter"
"""


@dataclass(frozen=True)
class Recipes:
    """A forge, a folder with a checkpoint and recipes, and their repository."""

    shop: Forge
    folder: Path

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def runtime(self) -> str:
        """More lines of the recipes' [runtime]."""
        return ""

    @property
    def environ(self) -> dict[str, str]:
        """What every command gets."""
        return {}

    def recipe(self, name: str, more: str = "") -> Path:
        file = self.folder / f"{name}.toml"
        file.write_text(RECIPE.format(name=name, runtime=self.runtime) + more)
        return file

    def invoke(self, *words: str, code: int = 0) -> str:
        done = CliRunner(env={**self.environ, "FORGE_HOME": str(self.shop.home)}).invoke(main, words)
        assert done.exit_code == code, done.output
        return done.output


def standin_digest() -> str:
    """Of the stand-in's files: a home that is kept between runs would go on answering with the old ones."""
    files = sorted((HERE / "standin_vllm").rglob("*.py"))
    return blake3.blake3(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def environment(place: Path) -> Path:
    """An environment whose Python has the stand-in for vLLM, and else what runs the tests."""
    shutil.copytree(HERE / "standin_vllm", place / "lib" / "vllm", ignore=shutil.ignore_patterns("__pycache__"))
    python = place / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH="$PYTHONPATH:${{0%/*}}/../lib"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return place


@dataclass(frozen=True)
class Bench:
    """What servers of vLLM's models are started with."""

    serving: Serving
    vllm: Path

    def launch(self, root: Path, *models: str) -> Launch:
        return replace(self.serving.launch(root, *models), vllm=self.vllm)

    @contextmanager
    def server(self, root: Path, *models: str) -> Generator["Served"]:
        triton = self.serving.triton()
        running = triton.start(self.launch(root, *models), lambda _: None)
        try:
            yield Served(running)
        finally:
            triton.stop(running)


@dataclass(frozen=True)
class Served:
    """One server under test."""

    running: Running

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.running.ports.grpc}"

    @property
    def log(self) -> str:
        return Path(self.running.log).read_text(errors="replace")

    def client(self) -> Client:
        return Client(self.address, timeout=300.0)

    def engines(self) -> list[int]:
        """The engine processes of this server."""
        return [pid for pid in processes.marked(self.running.shared_memory) if "forge_vllm.engine" in _words(pid)]

    def workers(self) -> list[int]:
        """The stand-in's worker of each model, in the order in which they started."""
        lines = (line for line in self.log.splitlines() if "INFO worker " in line)
        return [int(line.partition("INFO worker ")[2].rstrip('"')) for line in lines]

    def left(self) -> list[str]:
        """What is in memory of this server's engines."""
        return sorted(entry.name for entry in processes.SHARED_MEMORY.iterdir() if self.running.shared_memory in entry.name)


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def bench(serving: Serving, place: Path) -> Bench:
    """Backends of forge's own for vLLM, and the environment with the stand-in."""
    laid = place / "backends"
    backends(serving.environment, host(os.environ).triton, laid, vllm_sources())
    return Bench(replace(serving, backends=laid), environment(place / "vllm"))
