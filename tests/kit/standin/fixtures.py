"""The stand-in image for a test session, and its scripts run on this machine."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from docker_fixture import load
from forge.machine.environments import INSTALLED_TRITON
from standin import image
from standin.tree import Image
from triton_fixture import Serving


@dataclass(frozen=True)
class Said:
    """What a script said and how it ended."""

    code: int
    out: str
    err: str


def run_script(script: Path, *argv: object) -> Said:
    """A script on this machine, with the stand-in's library and its byte code nowhere."""
    words = [sys.executable, str(script), *map(str, argv)]
    done = subprocess.run(words, env=image.environ(os.environ), capture_output=True, text=True, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


def convert(family: str, *argv: object) -> Said:
    """A conversion script, by its folder under /app/examples."""
    return run_script(image.script(f"examples/{family}/convert_checkpoint.py"), *argv)


def trtllm_build(*argv: object) -> Said:
    return run_script(image.library() / "tensorrt_llm" / "commands" / "build.py", *argv)


@pytest.fixture(scope="session")
def standin_archive(serving: Serving, shared: Path) -> Image:
    """The stand-in as ``docker load`` takes it; kept in FORGE_TEST_HOME from session to session."""
    if INSTALLED_TRITON.exists():
        pytest.skip("NO STAND-IN IMAGE: this machine has a Triton of its own, so its serving environment holds none")
    return image.archive(serving.environment, kept=shared)


@pytest.fixture(scope="session")
def standin(engine: str, standin_archive: Image) -> Image:
    """The stand-in, held by the Docker engine under its reference."""
    import docker
    from docker.errors import ImageNotFound

    client = docker.DockerClient(base_url=engine)
    try:
        held = client.images.get(standin_archive.reference).id
    except ImageNotFound:
        held = ""
    client.close()
    if held != standin_archive.id:
        load(engine, standin_archive.archive)
    return standin_archive
