"""Models into and out of a Triton that runs, by KServe's model repository extension over HTTP.

Triton reloads a model whose files have changed beside the one that answers: that one takes no more requests once its successor
is ready, and goes when it has answered those that it has. A load that fails leaves it where it is; a load of what has not
changed does nothing (docs/user_guide/model_management.md in triton-inference-server/server; seen on 2.51).
"""

import http.client
import json
import select
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec
from msgspec import Struct

from forge.errors import ServerError
from forge.machine import processes
from forge.serve import log as triton_log
from forge.serve.arguments import HEADER
from forge.serve.ready import at
from forge.serve.server_types import Running
from forge.serve.state import key_file

_SECONDS = 10.0
_LOOK = 0.1
_LAST = 0.5
"""Seconds between the last answer of a dying server and its end."""


_SHUT = (
    "its secret could not be handed over out of sight (ptrace is forbidden here), so model control is closed: stop the server "
    "and serve again"
)


class _Refusal(Struct):
    error: str = ""


class _Entry(Struct):
    """One model, or one version of it, of ``POST /v2/repository/index``."""

    name: str
    state: str = ""


def load(running: Running, model: str, alive: Callable[[], bool], patience: float) -> None:
    """Return when ``model``, as it stands on the disk, answers; ServerError where it did not load, with the log's part."""
    began = triton_log.size(triton_log.written(running))
    try:
        why = _post(running, f"/v2/repository/models/{model}/load", patience)
    except TimeoutError:
        why = f"{patience:g} s were not enough"
    except (OSError, http.client.HTTPException) as error:
        time.sleep(_LAST)
        why = f"no answer ({error})" if alive() else "the server ended while it loaded"
    processes.close_off(running.shared_memory)
    if why:
        raise _not_loaded(running, model, why, began)


def unload(running: Running, model: str, patience: float) -> None:
    """Return when ``model``, which takes no more requests, has answered those it has, or ``patience`` seconds are over."""
    try:
        why = _post(running, f"/v2/repository/models/{model}/unload", _SECONDS + patience)
        deadline = time.monotonic() + patience
        while not why and time.monotonic() < deadline and _held(running, model):
            time.sleep(_LOOK)
    except (OSError, http.client.HTTPException) as error:
        why = str(error)
    if why:
        raise ServerError(f"model {model!r} could not be unloaded: {why}", where=running.repository, hint="`forge logs`")


def _held(running: Running, model: str) -> bool:
    """Whether anything of the model is still in the server."""
    answer = _request(running, "/v2/repository/index", _SECONDS)
    found = msgspec.json.decode(answer, type=list[_Entry])
    return any(entry.name == model and entry.state not in {"", "UNAVAILABLE"} for entry in found)


def _post(running: Running, path: str, patience: float) -> str:
    """What the server refused with, or nothing."""
    answer = _request(running, path, patience)
    why = msgspec.json.decode(answer, type=_Refusal).error if answer.strip() else ""
    return f"{why}; {_SHUT}" if "restricted" in why else why


def _request(running: Running, path: str, patience: float) -> bytes:
    headers = {"Content-Type": "application/json"}
    with suppress(OSError):  # a server whose forge drew no secret
        headers[HEADER] = key_file(running).read_text(encoding="ascii")
    connection = http.client.HTTPConnection(at(running, running.ports.http), timeout=patience)
    try:
        connection.request("POST", path, json.dumps({}), headers)
        _await(connection, running, patience)
        return connection.getresponse().read()
    finally:
        connection.close()


def _await(connection: http.client.HTTPConnection, running: Running, patience: float) -> None:
    """Return when there is an answer. OSError where the server dies first: its end of the connection stays open as long as a
    stub lives that it was just starting, so nobody would be told."""
    deadline = time.monotonic() + patience
    while not select.select([connection.sock], [], [], _LOOK)[0]:
        if running.started and processes.started(running.pid) != running.started:
            raise ConnectionResetError("the server ended")
        if time.monotonic() > deadline:
            raise TimeoutError


def _not_loaded(running: Running, model: str, why: str, began: int) -> ServerError:
    text = triton_log.since(triton_log.written(running), began).decode(errors="replace")
    culprit, reason = next(iter(triton_log.failures(text).items()), (model, why))
    what = f"model {culprit!r} did not load: {reason}\nits part of the log:\n{triton_log.part(text, culprit)}"
    return ServerError(what, where=running.repository, hint=triton_log.hint(running.log, f"{text}\n{why}"))
