"""vLLM's process by itself, over a stand-in of vLLM's API: what it says to a backend that is slow to listen."""

import os
import select
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
from patience import soon
from vllm_kit import environment

REQUESTS, TOKENS = 40, 300
SECONDS = 2.0
"""How long nobody listens; one request alone takes longer."""
LOG = "engine.log"


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
    with ours, theirs, (folder / LOG).open("w") as log:
        process = subprocess.Popen(
            (python, "-m", "forge_vllm.engine", str(theirs.fileno())),
            env={**os.environ, "PYTHONPATH": str(folder / "vllm")},
            stdout=log,
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


def test_a_late_backend_hears_several_tokens_and_misses_none(tmp_path: Path) -> None:
    said, messages, finished = dict[str, str](), Counter[str](), set[str]()

    def hear() -> None:
        for message in heard(sock):
            asked = str(message["id"])
            (output,) = cast("list[Message]", message["outputs"])
            said[asked] = said.get(asked, "") + str(output["text"])
            messages[asked] += 1
            if message["finished"]:
                finished.add(asked)

    with engine(tmp_path) as sock:
        for number in range(REQUESTS):
            ask = {"ask": str(number), "prompt": "a", "sampling": {"max_tokens": TOKENS}, "stream": True, "logprobs": False}
            sock.sendall(frames.packed(ask))
        unheard = 0
        while len(messages) < REQUESTS:
            hear()
            unheard += 1
        time.sleep(SECONDS)
        assert not select.select([sock], [], [], 0)[0], "more was said before it was told that the first was heard"
        assert set(messages.values()) == {1}
        sock.sendall(frames.packed({"heard": True}) * unheard)
        while len(finished) < REQUESTS:
            hear()
            sock.sendall(frames.packed({"heard": True}))
    assert set(said.values()) == {"".join(f" {token}" for token in range(TOKENS))}
    assert messages.total() < REQUESTS * TOKENS, "each token came by itself"


def test_a_request_waiting_to_be_heard_can_be_dropped(tmp_path: Path) -> None:
    """Else vLLM would go on with it until somebody collected what was left of it."""
    with engine(tmp_path) as sock:
        ask = {"ask": "7", "prompt": "a", "sampling": {"max_tokens": 100_000}, "stream": True, "logprobs": False}
        sock.sendall(frames.packed(ask))
        heard(sock)
        sock.sendall(frames.packed({"abort": "7"}))
        assert soon(lambda: "Request 7 aborted." in (tmp_path / LOG).read_text())
