"""OpenAI's API in front of a server, as a process of its own."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from forge.schema.manifest import NAME
from forge.schema.values import Ports
from forge.serve.lookup import Target
from forge.serve.openai import sidecar as fronts
from patience import PATIENCE, spare


@contextmanager
def front(
    grpc: str, repository: Path, port: int = 0, key_file: str = "", *, host: str = "127.0.0.1", killed: bool = False
) -> Generator[str]:
    """The API's address, served in front of the server at ``grpc``; at the end told to end, or ``killed``."""
    port = port or spare(1)[0]
    ports = Ports(grpc=int(grpc.rpartition(":")[2]), openai=port, host=host, key_file=key_file)
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
        said = process.stderr.read()
        assert said == "", said


def templated(target: Target, place: Path, template: str) -> Path:
    """A repository that tells of the served model under another chat template: what a port reads of it, and no weights."""
    laid = place / "repository"
    tokenizer = laid / target.tokenizer.relative_to(target.repository)
    weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(target.tokenizer, tokenizer, copy_function=shutil.copyfile, ignore=weights)
    shutil.copyfile(target.repository / NAME, laid / NAME)
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    return laid
