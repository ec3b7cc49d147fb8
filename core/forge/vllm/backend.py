"""vLLM as Triton sees it: a Python-based backend named ``vllm``, with the tensors of Triton's own."""

# Triton puts its classes into pb_utils only after this module was imported: annotations must not look for them yet.
from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import triton_python_backend_utils as pb_utils

from . import asks
from .answer import Answer
from .asks import Ask, RefusedError
from .frames import Message
from .process import EngineEndedError, EngineProcess

PYTHON = "FORGE_VLLM_PYTHON"
"""Variable that says which Python has vLLM."""
SERVER = "FORGE_SERVER"
"""Variable by which forge knows the processes of one server."""
ARGUMENTS = "model.json"
ADAPTERS = "multi_lora.json"
GPUS = "gpus"
"""Parameter of the config that names the GPUs which vLLM may use, as nvidia-smi numbers them; all where there is none."""
_PATHS = ("model", "tokenizer")
"""Arguments that may be paths from the model's folder, which then holds wherever the repository stands."""
_SPECULATION = "speculative_config"
"""An argument that may name a draft by such a path."""
_CHECK_SECONDS = 0.1
_LEVELS = ((" ERROR ", "log_error"), (" WARNING ", "log_warn"))


class TritonPythonModel:
    """Triton makes one per model instance and calls ``initialize``, ``execute`` and ``finalize``."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Return when vLLM has loaded the model and answers; TritonModelException with its last lines otherwise."""
        self._name = args["model_name"]
        config = json.loads(args["model_config"])
        if not pb_utils.using_decoupled_model_transaction_policy(config):
            raise pb_utils.TritonModelException("model_transaction_policy { decoupled: true } is needed: vLLM streams")
        folder = Path(args["model_repository"]) / args["model_version"]
        began = time.monotonic()
        arguments = _arguments(folder / ARGUMENTS)
        adapters = _adapters(folder / ADAPTERS, arguments)
        self._adapters = tuple(adapters)
        first: Message = {"arguments": arguments, "adapters": adapters}
        gpus = config.get("parameters", {}).get(GPUS, {}).get("string_value", "")
        self._engine = EngineProcess(_python(), first, os.environ.get(SERVER, ""), self._log, gpus)
        try:
            ready = self._engine.read()[0]["ready"]
        except EngineEndedError as error:
            self._engine.end()
            raise pb_utils.TritonModelException(str(error)) from error
        self._log(f"ready in {time.monotonic() - began:.1f} s: {ready}")
        self._answers: dict[str, Answer] = {}
        self._dead, self._closing, self._count = "", threading.Event(), 0
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._deliver, self._drop_cancelled)]
        for thread in self._threads:
            thread.start()

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> None:
        """Hands requests to the engine; what it says of them comes to another thread."""
        for request in requests:
            arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            sender = request.get_response_sender()
            try:
                ask = asks.read(arrays, request.parameters(), self._adapters)
            except RefusedError as error:
                response = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            self._submit(Answer(sender, ask), ask)

    def finalize(self) -> None:
        self._closing.set()
        self._engine.end()
        for thread in self._threads:
            thread.join()

    def _submit(self, answer: Answer, ask: Ask) -> None:
        self._count += 1
        asked = str(self._count)
        self._answers[asked] = answer
        words = {"ask": asked, "prompt": ask.prompt, "sampling": ask.sampling, "stream": ask.stream, "lora": ask.lora}
        self._engine.send({**words, "logprobs": "logprobs" in ask.returned, "images": ask.images})
        if self._dead:  # it died before it heard this, and whoever told the others may not have seen it
            self._fail_all()

    def _deliver(self) -> None:
        """Until the engine is gone: each thing that it says to whoever asked."""
        try:
            while True:
                for message in self._engine.read():
                    if "dead" in message:
                        self._dead = str(message["dead"])
                    else:
                        self._tell(message)
                self._engine.send({"heard": True})
        except EngineEndedError as error:
            self._dead = self._dead or str(error).partition("\n")[0]
        self._fail_all()
        if not self._closing.is_set():
            pb_utils.Logger.log_error(f"{self._name}: {self._dead}; the model is unloaded")
            pb_utils.unload_model(self._name)

    def _tell(self, message: Message) -> None:
        asked = str(message["id"])
        answer = self._answers.get(asked)
        if answer is None:
            return
        try:
            ended = answer.hear(message)
        except Exception as error:  # noqa: BLE001 (one response that cannot be made; the other requests' must still go)
            pb_utils.Logger.log_error(f"{self._name}: a response was not sent: {error}")
            self._engine.send({"abort": asked})
            ended = True
            with suppress(pb_utils.TritonModelException):  # where Triton refused it, it refuses the error too
                answer.fail(f"a response could not be sent: {error}")
        if ended:
            self._answers.pop(asked, None)

    def _fail_all(self) -> None:
        while self._answers:
            _, answer = self._answers.popitem()
            answer.fail(f"{self._dead}: the request was not finished", dead=True)

    def _drop_cancelled(self) -> None:
        """Tell the engine, time and again, whose clients have gone."""
        while not self._closing.wait(_CHECK_SECONDS):
            for asked, answer in list(self._answers.items()):
                if answer.cancelled():
                    self._answers.pop(asked, None)
                    self._engine.send({"abort": asked})
                    answer.end()

    def _log(self, line: str) -> None:
        level = next((name for mark, name in _LEVELS if mark in line), "log_info")
        getattr(pb_utils.Logger, level)(f"{self._name}: {line}")


def _python() -> str:
    python = os.environ.get(PYTHON, "")
    if not Path(python).is_file():
        raise pb_utils.TritonModelException(f"{PYTHON} must name the Python that has vLLM, and is {python!r}")
    return python


def _arguments(file: Path) -> Message:
    """The engine's arguments; TritonModelException where they cannot be read."""
    arguments = _object(file, "vLLM's arguments")
    draft = arguments.get(_SPECULATION)
    if isinstance(draft, dict):
        arguments[_SPECULATION] = {name: _moved(file, value) for name, value in cast("Message", draft).items()}
    return {name: _moved(file, value) if name in _PATHS else value for name, value in arguments.items()}


def _adapters(file: Path, arguments: Message) -> dict[str, str]:
    """Name -> folder of each LoRA adapter; none where the arguments do not enable them, as in Triton's own backend."""
    if str(arguments.get("enable_lora", "")).lower() != "true":
        return {}
    return {name: str(_moved(file, folder)) for name, folder in _object(file, "the adapters").items()}


def _object(file: Path, what: str) -> Message:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise pb_utils.TritonModelException(f"{file}: {what} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise pb_utils.TritonModelException(f"{file}: an object of {what} is needed")
    return cast("Message", found)


def _moved(file: Path, value: object) -> object:
    """A path from the model's folder as a whole one; anything else as it is."""
    if str(value).startswith(("./", "../")):
        return str((file.parent.parent / str(value)).resolve())
    return value
