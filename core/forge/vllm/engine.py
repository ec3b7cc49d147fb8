"""The process that holds vLLM: ``python -m forge_vllm.engine FD`` answers what comes through the socket FD.

Run by the Python of vLLM's environment, and made of vLLM's public API (AsyncLLMEngine, of 0.20 and later).
"""

import asyncio
import json
import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress
from multiprocessing import shared_memory
from typing import cast

from vllm import AsyncEngineArgs, AsyncLLMEngine, CompletionOutput, RequestOutput, TextPrompt, __version__
from vllm.logprobs import Logprob
from vllm.lora.request import LoRARequest

from . import frames, remains
from .frames import Message
from .sampling import sampling_params

_GRACE = 8.0
"""Seconds that vLLM has to end in order when nobody is left to answer."""
_LOOK = 0.5
_LEAST = -9999.0
"""For a token that cannot come, whose log-probability JSON cannot say; OpenAI's server of vLLM says the same."""


def name_regions(prefix: str) -> None:
    """Let each region and semaphore that Python makes in this process and its children have a name that begins with ``prefix``.

    multiprocessing has no option for it; a Python that keeps its names elsewhere goes on using its own.
    """
    if prefix and hasattr(shared_memory, "_SHM_NAME_PREFIX"):
        setattr(shared_memory, "_SHM_NAME_PREFIX", f"/{prefix}")  # noqa: B010  # private, and so unknown to type checkers
        setattr(shared_memory, "_SHM_SAFE_NAME_LENGTH", len(prefix) + 17)  # noqa: B010
    if prefix and (settings := getattr(multiprocessing.current_process(), "_config", None)):
        settings["semprefix"] = f"/{prefix.rstrip('-')}"


# Here, and not in main: a child that is spawned imports this module and does not call main.
name_regions(os.environ.get(remains.PREFIX, ""))


class Engine:
    """vLLM, and the requests that it works on. Everything but ``start`` belongs to the event loop."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._outbox: list[Message] = []
        self._next, self._unheard = asyncio.Event(), deque[asyncio.Event]()

    def start(self, arguments: Mapping[str, object], adapters: Mapping[str, str]) -> Message:
        """Load the model, which blocks; what vLLM says of itself then. ``adapters`` are folders by name, read when first asked
        for."""
        self._adapters = {name: LoRARequest(name, at, path) for at, (name, path) in enumerate(adapters.items(), 1)}
        self._vllm = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**arguments))
        return {"vllm": __version__, "pid": os.getpid()}

    def take(self, message: Message) -> None:
        """One message of the backend's."""
        if "heard" in message:
            if self._unheard:  # else it was no request's: that vLLM has died is heard, too
                self._unheard.popleft().set()
            return
        if "abort" in message:
            task = self._tasks.pop(str(message["abort"]), None)
            if task:
                task.cancel()  # generate() tells vLLM when it is cancelled or closed
            return
        asked = str(message["ask"])
        self._tasks[asked] = task = asyncio.create_task(self._answer(asked, message))
        task.add_done_callback(lambda _: self._tasks.pop(asked, None))

    async def watch(self) -> str:
        """Why vLLM is dead, once it is."""
        while not self._vllm.errored:
            await asyncio.sleep(_LOOK)
        return f"vLLM has died: {self._vllm.dead_error}"

    def stop(self) -> None:
        self._vllm.shutdown()

    async def _answer(self, asked: str, message: Message) -> None:
        try:
            params = sampling_params(cast("Message", message["sampling"]), stream=bool(message["stream"]))
            adapter = self._adapters.get(str(message.get("lora", "")))
            outputs = self._vllm.generate(await _prompt(message), params, asked, lora_request=adapter)
            async with aclosing(outputs):  # cancelled while it waits to be heard, it must let vLLM go on without this request
                async for output in outputs:
                    _require_whole(output)
                    await self._say(_message(asked, output, logprobs=bool(message["logprobs"])))
        except Exception as error:  # noqa: BLE001 (one request's failure must not end the others')
            if not self._vllm.errored:  # else all of them have failed, and the backend says so
                if message.get("images"):  # vLLM believes that its engine holds them now, and would send others an empty place
                    await self._vllm.reset_mm_cache()
                await self._say({"id": asked, "error": _told(error)})

    async def _say(self, message: Message) -> None:
        """Return once it has been heard: vLLM joins the tokens that come meanwhile, and none of them is late in a queue.

        What is said in one turn of the loop goes in one frame: a step of vLLM has a token for every request.
        """
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(message)
        await self._next.wait()

    def _flush(self) -> None:
        self._writer.write(frames.packed(self._outbox))
        self._unheard.append(self._next)
        self._outbox, self._next = [], asyncio.Event()


async def _prompt(message: Message) -> str | TextPrompt:
    """The text, with its images where it has some; they are read apart from the loop, which others' tokens go through."""
    text, images = str(message["prompt"]), cast("list[str]", message.get("images", []))
    if not images:
        return text
    from .pictures import pictures

    return TextPrompt(prompt=text, multi_modal_data={"image": await asyncio.to_thread(pictures, images)})


def _require_whole(output: RequestOutput) -> None:
    """RuntimeError where vLLM's engine gave the request up: its generate() ends as if it had been answered."""
    if any(each.finish_reason == "error" for each in output.outputs):
        raise RuntimeError("vLLM's engine gave the request up; `forge logs` says why, and the same again may go through")


def _told(error: BaseException) -> str:
    """What an error says; vLLM's EngineGenerateError says nothing itself, and its cause does."""
    return str(error) or (_told(error.__cause__) if error.__cause__ else type(error).__name__)


def _message(asked: str, output: RequestOutput, *, logprobs: bool) -> Message:
    """What vLLM has to say of a request now."""
    return {
        "id": asked,
        "outputs": [_output(each, logprobs=logprobs) for each in output.outputs],
        "input_tokens": len(output.prompt_token_ids or ()),
        "finished": output.finished,
    }


def _output(output: CompletionOutput, *, logprobs: bool) -> Message:
    """One answer of a request, as far as this message brings it; log-probabilities as the JSON that a client reads."""
    said: Message = {"index": output.index, "text": output.text, "tokens": len(output.token_ids)}
    if output.finish_reason is not None:
        said["finish_reason"] = output.finish_reason
    if output.cumulative_logprob is not None:
        said["cumulative_logprob"] = output.cumulative_logprob
    if logprobs and output.logprobs is not None:
        said["logprobs"] = json.dumps([{token: _logprob(held) for token, held in place.items()} for place in output.logprobs])
    return said


def _logprob(held: Logprob) -> Message:
    return {"logprob": max(held.logprob, _LEAST), "rank": held.rank, "decoded_token": held.decoded_token}


async def serve(sock: socket.socket) -> None:
    """Answer until the backend's end is shut or vLLM dies."""
    reader, writer = await asyncio.open_connection(sock=sock)
    engine = Engine(writer)
    first = await _read(reader)
    if first is None:
        return
    ready = engine.start(cast("Message", first[0]["arguments"]), cast("dict[str, str]", first[0].get("adapters", {})))
    writer.write(frames.packed({"ready": ready}))
    taking, watching = asyncio.create_task(_take(reader, engine)), asyncio.create_task(engine.watch())
    await asyncio.wait((taking, watching), return_when=asyncio.FIRST_COMPLETED)
    if watching.done():
        writer.write(frames.packed({"dead": watching.result()}))
        await writer.drain()
    else:
        engine.stop()


async def _take(reader: asyncio.StreamReader, engine: Engine) -> None:
    while (messages := await _read(reader)) is not None:
        for message in messages:
            engine.take(message)


async def _read(reader: asyncio.StreamReader) -> Sequence[Message] | None:
    try:
        head = await reader.readexactly(frames.LENGTH)
        return frames.parsed(await reader.readexactly(frames.length(head)))
    except (asyncio.IncompleteReadError, OSError):
        return None


def _end_when_alone(fd: int) -> None:
    """End the whole process group a while after the backend has gone, whatever vLLM is doing then: also while it loads."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    poll.poll()
    time.sleep(_GRACE)
    _end()


def _end() -> None:
    """End the process group, and leave nothing: vLLM's objects complain when the interpreter takes them down."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it where the backend was killed
            stream.flush()
    remains.clear(os.environ.get(remains.PREFIX, ""))
    os.killpg(0, signal.SIGKILL)


def main(fd: int) -> None:
    """Serve the socket ``fd``, then end this process and all that it has started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is ended by its socket, in whatever way whoever holds that was ended
    threading.Thread(target=_end_when_alone, args=(fd,), daemon=True).start()
    try:
        asyncio.run(serve(socket.socket(fileno=fd)))
    except Exception:  # noqa: BLE001 (the log shows it, and the backend shows the log)
        traceback.print_exc()
    _end()


if __name__ == "__main__":
    main(int(sys.argv[1]))
