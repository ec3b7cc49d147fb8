"""OpenAI's API in front of a server, as a process of its own."""

import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from forge.schema.values import Ports
from forge.serve.openai import process as fronts
from patience import PATIENCE, spare


@contextmanager
def front(grpc: str, repository: Path) -> Generator[str]:
    """The API's address, served in front of the server at ``grpc``."""
    (port,) = spare(1)
    command = fronts.command(Ports(grpc=int(grpc.rpartition(":")[2]), openai=port), [str(repository)])
    with subprocess.Popen(command.argv, env=dict(command.env), stderr=subprocess.PIPE, text=True) as process:
        try:
            while not fronts.answers(Ports(openai=port)):
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(PATIENCE)
        assert process.stderr is not None
        assert process.stderr.read() == ""
