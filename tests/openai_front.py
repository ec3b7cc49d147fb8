"""OpenAI's API in front of a server, as a process of its own."""

import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from forge.schema.values import Ports
from forge.serve.openai import process as fronts
from patience import PATIENCE, spare


@contextmanager
def front(grpc: str, repository: Path, port: int = 0, key_file: str = "", *, killed: bool = False) -> Generator[str]:
    """The API's address, served in front of the server at ``grpc``; at the end told to end, or ``killed``."""
    port = port or spare(1)[0]
    ports = Ports(grpc=int(grpc.rpartition(":")[2]), openai=port, key_file=key_file)
    command = fronts.command(ports, [str(repository)])
    with subprocess.Popen(command.argv, env=dict(command.env), stderr=subprocess.PIPE, text=True) as process:
        try:
            while not fronts.answers(Ports(openai=port)):
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.send_signal(signal.SIGKILL if killed else signal.SIGTERM)
            process.wait(PATIENCE)
        assert process.stderr is not None
        assert process.stderr.read() == ""
