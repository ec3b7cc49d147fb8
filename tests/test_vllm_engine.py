"""vLLM's process by itself, over a stand-in of vLLM's API: what it says to a backend that is slow to listen."""

import os
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from forge.schema.vllm_environment import vllm_sources
from forge.vllm import frames
from forge.vllm.frames import Message
from vllm_kit import environment

REQUESTS, TOKENS = 40, 300
SECONDS = 2.0
"""How long nobody listens; one request alone takes longer."""


@contextmanager
def engine(folder: Path) -> Generator[socket.socket]:
    """One with a model, ready to answer."""
    for text in vllm_sources():
        (folder / text.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / text.path).write_text(text.content)
    (folder / "config.json").write_text("{}")
    (folder / "environment").mkdir()
    python = environment(folder / "environment") / "bin" / "python3"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            (python, "-m", "forge_vllm.engine", str(theirs.fileno())),
            env={**os.environ, "PYTHONPATH": str(folder / "vllm")},
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            process_group=0,
        )
        theirs.close()
        ours.sendall(frames.packed({"arguments": {"model": str(folder)}}))
        assert "ready" in heard(ours)[0]
        try:
            yield ours
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            process.wait()


def heard(sock: socket.socket) -> list[Message]:
    said = frames.read(sock)
    assert said is not None, "the engine has ended"
    return said


def test_a_backend_that_is_behind_hears_several_tokens_at_once_and_misses_none(tmp_path: Path) -> None:
    said, messages, finished = dict[str, str](), Counter[str](), set[str]()
    with engine(tmp_path) as sock:
        for number in range(REQUESTS):
            ask = {"ask": str(number), "prompt": "a", "sampling": {"max_tokens": TOKENS}, "stream": True, "logprobs": False}
            sock.sendall(frames.packed(ask))
        time.sleep(SECONDS)
        while len(finished) < REQUESTS:
            for message in heard(sock):
                asked = str(message["id"])
                (output,) = cast("list[Message]", message["outputs"])
                said[asked] = said.get(asked, "") + str(output["text"])
                messages[asked] += 1
                finished |= {asked} if message["finished"] else set()
    assert set(said.values()) == {"".join(f" {token}" for token in range(TOKENS))}
    assert messages.total() < REQUESTS * TOKENS, "each token came by itself, and all of them were kept in memory"
