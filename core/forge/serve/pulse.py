"""Asks each model of a server for something tiny, with a deadline; reads what Triton counts without asking.

Triton's own word for a model whose process was killed, or hangs, stays READY (seen on 2.51): only an inference tells.
"""

import http.client
import re
import struct
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from forge.client.grpc import Connection, instance_of
from forge.client.tensors import CODES, Input, inputs_of
from forge.client.types import ModelMetadata, Request
from forge.errors import InferenceError, Trouble
from forge.machine import processes
from forge.serve.ready import reached
from forge.serve.types import Running
from forge.serve.vitals import WORKING, Pulse, Signs, Times, used

_SECONDS = 5.0
_PENDING = re.compile(r'^nv_inference_pending_request_count\{model="(?P<model>[^"]+)".*\} (?P<count>[\d.e+]+)$', re.MULTILINE)
_TINY = ({"QUERY": 2, "REQUEST_OUTPUT_LEN": 2}, {"TOKENS_BATCH": 3, "SEQUENCE_LENGTH": 2})
"""Inputs of preprocessing and of postprocessing -> how many dimensions each has, the batch first."""


class _Count(Struct):
    count: int = 0


class _Inferences(Struct):
    success: _Count = msgspec.field(default_factory=_Count)
    fail: _Count = msgspec.field(default_factory=_Count)


class _Stated(Struct):
    """One version of a model in ``GET /v2/models/stats`` (docs/protocol/extension_statistics.md of triton's server)."""

    name: str
    inference_stats: _Inferences = msgspec.field(default_factory=_Inferences)


class _Statistics(Struct):
    model_stats: list[_Stated]


class _Group(Struct):
    count: int = 0


class _Config(Struct):
    """``GET /v2/models/MODEL/config``, as far as it is read here."""

    backend: str = ""
    instance_group: list[_Group] = []


def ask(address: str, marker: str, models: Sequence[str], deadline: float) -> tuple[Pulse, ...]:
    """Ask all of ``models`` at once for one token, or what they have in its place; each has ``deadline`` seconds.

    ``address`` is the server's gRPC, ``marker`` begins the names of its stubs' regions. A model that refuses the question
    answers, too. No counter of Triton's tells a long queue from a hang (it counts a streaming model's requests when they
    begin): of those that are late it is said whether their own processes compute (see ``vitals.judged``).
    """
    if not models:
        return ()
    before = processes.stubs(marker)
    with closing(Connection(address, deadline)) as connection, ThreadPoolExecutor(len(models)) as threads:
        found = tuple(threads.map(partial(_asked, connection, deadline), models))
    if not any(pulse.late for pulse in found):
        return found
    after = processes.stubs(marker)
    return tuple(_seen(each, before.get(each.model, ()), after.get(each.model, ())) if each.late else each for each in found)


def _seen(pulse: Pulse, before: Sequence[processes.Stub], after: Sequence[processes.Stub]) -> Pulse:
    """What its stubs did while a late model was waited for."""
    if after and all(stub.stopped for stub in after):
        return replace(pulse, why=f"{pulse.why}: its process is stopped")
    moving = {stub.pid: stub.cpu for stub in after if not stub.stopped}
    return replace(pulse, works=used(_times(before), moving) > WORKING * pulse.seconds)


def _times(stubs: Sequence[processes.Stub]) -> Times:
    return {stub.pid: stub.cpu for stub in stubs}


def signs(running: Running) -> Mapping[str, Signs] | None:
    """What is seen of every model from outside; None of a server that does not speak. One may speak and have no model left."""
    try:
        stated = msgspec.json.decode(_get(running, running.ports.http, "/v2/models/stats"), type=_Statistics).model_stats
        text = _get(running, running.ports.metrics, "/metrics").decode()
        stubs = processes.stubs(running.shared_memory)
        instances = {each.name: _instances(running, each.name, seen=each.name in stubs) for each in stated if stubs}
    except (OSError, http.client.HTTPException, msgspec.MsgspecError):
        return None
    pending = Counter({match["model"]: int(float(match["count"])) for match in _PENDING.finditer(text)})
    return {
        each.name: Signs(
            processes=len(stubs.get(each.name, ())),
            instances=instances.get(each.name, 0),
            stopped=sum(stub.stopped for stub in stubs.get(each.name, ())),
            cpu=_times(stubs.get(each.name, ())),
            failed=each.inference_stats.fail.count,
            pending=pending[each.name],
        )
        for each in stated
    }


def answered(running: Running) -> Mapping[str, tuple[int, int]]:
    """Model -> requests that it has answered, and those that ended in an error; empty of a server that does not speak."""
    try:
        stated = msgspec.json.decode(_get(running, running.ports.http, "/v2/models/stats"), type=_Statistics).model_stats
    except (OSError, http.client.HTTPException, msgspec.MsgspecError):
        return {}
    return {each.name: (each.inference_stats.success.count, each.inference_stats.fail.count) for each in stated}


def _instances(running: Running, model: str, *, seen: bool) -> int:
    """How many stubs it ought to have: as many as it has instances, where it is known to have any."""
    config = msgspec.json.decode(_get(running, running.ports.http, f"/v2/models/{model}/config"), type=_Config)
    return sum(group.count for group in config.instance_group) if seen or config.backend == "python" else 0


def question(model: ModelMetadata) -> tuple[Input, ...]:
    """The least that ``model`` can be asked for; empty where nobody knows what it takes."""
    for shapes in _TINY:
        if shapes.keys() <= model.inputs.keys():
            return tuple(_one(name, model.inputs[name].datatype, dimensions) for name, dimensions in shapes.items())
    takes_ids = "input_ids" in model.inputs
    wanted = Request(model.model, "" if takes_ids else "a", 1, stream=False, tokens=(1,) if takes_ids else ())
    try:
        return inputs_of(wanted, model)
    except InferenceError:
        return ()


def _one(name: str, datatype: str, dimensions: int) -> Input:
    raw = struct.pack("<I", 1) + b"a" if datatype == "BYTES" else struct.pack(f"<{CODES.get(datatype, 'i')}", 1)
    return Input(name, datatype, (1,) * dimensions, raw)


def _asked(connection: Connection, deadline: float, model: str) -> Pulse:
    began = time.monotonic()
    try:
        if inputs := question(connection.metadata(model, deadline)):
            connection.tensors(model, inputs, max(0.0, began + deadline - time.monotonic()))
    except InferenceError as error:
        seconds = time.monotonic() - began
        if error.trouble is Trouble.DEAD:
            blamed = instance_of(error.what).rpartition("_")[0].rpartition("_")[0]
            return Pulse(model=model, answers=False, seconds=seconds, why=error.what, blamed=blamed)
        if error.trouble is Trouble.OTHER:
            return Pulse(model=model, answers=True, seconds=seconds)
        late = error.trouble in (Trouble.LATE, Trouble.BUSY)
        why = f"no answer within {seconds:.0f} s" if error.trouble is Trouble.LATE else error.what
        return Pulse(model=model, answers=False, seconds=seconds, why=why, late=late)
    return Pulse(model=model, answers=True, seconds=time.monotonic() - began)


def _get(running: Running, port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection(reached(running.ports.host), port, timeout=_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()
