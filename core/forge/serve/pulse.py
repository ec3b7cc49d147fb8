"""Asks each model of a server for something tiny, with a deadline; reads what Triton counts without asking.

Triton's own word for a model whose process was killed, or hangs, stays READY (seen on 2.51): only an inference tells. One that
is late, or refuses because its queue is full, lives if its processes compute, or its engine counts on.
"""

import http.client
import re
import struct
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from forge.client.grpc import Client, instance_of
from forge.client.tensors import CODES, Input, inputs_of
from forge.client.types import ModelMetadata, Request
from forge.errors import InferenceError, Trouble
from forge.machine import processes, stillness
from forge.serve.log import broke, written
from forge.serve.ready import asked, at
from forge.serve.server_types import Running
from forge.serve.vitals import WORKING, Pulse, Signs, Stance, Times, used

_LOOK = 1.0
"""Seconds between two looks at who moves: less would say nothing of processor time, which is counted in hundredths."""
_PENDING = re.compile(r'^nv_inference_pending_request_count\{model="(?P<model>[^"]+)".*\} (?P<count>[\d.e+]+)$', re.MULTILINE)
_MODEL = re.compile(r'[{,]model="(?P<model>[^"]+)"')
_ENGINE = "nv_trt_llm_"
"""TensorRT-LLM's backend counts under it; its engine has no process of its own."""
_ITERATIONS = 'general_type="iteration_counter"'
_ANSWERED = "nv_inference_request_success{"
"""Of an engine of TensorRT-LLM when an answer has ended; of a streaming model of Python when it begins, which says nothing."""
_VLLM = re.compile(r"^vllm:\w+_tokens_total\{")
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


class Place(Struct, frozen=True):
    """Where a server is asked and seen: the addresses of its gRPC and its metrics (empty where nobody knows that), and what the
    names of its stubs' regions begin with."""

    address: str
    metrics: str
    marker: str


class _Look(Struct, frozen=True):
    """What is seen of the models at one moment: their stubs, and what only their own work counts up, by name."""

    at: float
    stubs: Mapping[str, Sequence[processes.Stub]]
    counts: Mapping[str, Mapping[str, float]]


def ask(place: Place, models: Sequence[str], deadline: float) -> tuple[Pulse, ...]:
    """Ask all of ``models`` at once for one token, or what they have in its place; each has ``deadline`` seconds.

    A model that refuses the question answers, too, but where its queue is full: nothing leaves that of one that hangs. Whether
    those that are late, or refuse so, work is watched for as long and said (see ``vitals.judged``). No counter of Triton's own
    tells a long queue from a hang: it counts a streaming model's requests when they begin.
    """
    if not models:
        return ()
    before = _look(place)
    with Client(place.address, timeout=deadline) as client, ThreadPoolExecutor(len(models)) as threads:
        found = tuple(threads.map(partial(_asked, client, deadline), models))
    late = [pulse.model for pulse in found if pulse.late]
    if not late:
        return found
    place = replace(place, metrics=place.metrics if before.counts else "")
    began = after = _look(place)
    end = max(before.at + deadline, began.at + _LOOK)
    while after.at < end and not (after.at - before.at >= _LOOK and all(_works(model, before, after) for model in late)):
        time.sleep(_LOOK)
        after = _look(place)
    # One that has answered has worked for that: what it does for others shows afterwards.
    return tuple(_seen(each, before if each.late else began, after) for each in found)


def _seen(pulse: Pulse, before: _Look, after: _Look) -> Pulse:
    """What a model did between two looks."""
    stubs = after.stubs.get(pulse.model, ())
    if pulse.late and stubs and all(stub.stopped for stub in stubs):
        return replace(pulse, why=f"{pulse.why}: its process is stopped", stopped=True)
    return replace(pulse, works=_works(pulse.model, before, after))


def _works(model: str, before: _Look, after: _Look) -> bool:
    moving = _times([stub for stub in after.stubs.get(model, ()) if not stub.stopped])
    computed = used(_times(before.stubs.get(model, ())), moving)
    counted, known = after.counts.get(model, {}), before.counts.get(model, {})
    rises = any(value > known.get(name, value) for name, value in counted.items())
    return rises or computed > WORKING * (after.at - before.at)


def _look(place: Place) -> _Look:
    at = time.monotonic()
    try:
        text = asked(place.metrics, "/metrics", _LOOK)[1].decode() if place.metrics else ""
    except (OSError, http.client.HTTPException, UnicodeDecodeError):
        text = ""
    return _Look(at, processes.stubs(place.marker), work(text))


def work(metrics: str) -> dict[str, dict[str, float]]:
    """Model -> what its engine counts of its own work in Triton's metrics: TensorRT-LLM iterations and answers, vLLM tokens."""
    found: dict[str, dict[str, float]] = {}
    engines: set[str] = set()
    for line in metrics.splitlines():
        name, _, value = line.rpartition(" ")
        model = _MODEL.search(name)
        if model is None:
            continue
        if name.startswith(_ENGINE):
            engines.add(model["model"])
        if _ITERATIONS in name or name.startswith(_ANSWERED) or _VLLM.match(name):
            with suppress(ValueError):
                found.setdefault(model["model"], {})[name] = float(value)
    return {
        model: kept
        for model, counts in found.items()
        if (kept := {name: value for name, value in counts.items() if model in engines or not name.startswith(_ANSWERED)})
    }


def _times(stubs: Sequence[processes.Stub]) -> Times:
    return {pid: seconds for stub in stubs for pid, seconds in stub.cpu.items()}


def signs(running: Running) -> Mapping[str, Signs] | None:
    """What is seen of every model from outside; None of a server that does not speak. One may speak and have no model left."""
    try:
        stated = _stated(running)
        text = asked(at(running, running.ports.metrics), "/metrics")[1].decode()
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


def stance(running: Running, *, stands: bool) -> Stance:
    """How a server's own process is. One that hangs lets a caller wait: who is turned away hears of no hang.

    Where its log tells of a fault its threads are looked at; then nobody is asked, which takes half a minute where it hangs.
    """
    ports, seen = running.ports, bool(running.started)
    faults = stillness.faults(running.pid) if seen and broke(written(running)) else {}
    silent = bool(faults) or (
        _late(at(running, ports.http), "/v2/health/live")
        and _late(at(running, ports.metrics), "/metrics")
        and _grpc_is_late(at(running, ports.grpc))
    )
    cpu = processes.spent(running.pid) if seen else {}
    return Stance(speaks=not silent, stands=stands, cpu=cpu, faults=faults)


def _late(address: str, path: str) -> bool:
    """Whether a call is taken and not answered in time."""
    try:
        asked(address, path)
    except TimeoutError:
        return True
    except (OSError, http.client.HTTPException):
        return False
    return False


def _grpc_is_late(address: str) -> bool:
    """gRPC says of a server that takes its connection and never speaks that it is away, after 20 s."""
    with Client(address) as client:
        try:
            client.server()
        except InferenceError as error:
            return error.trouble in (Trouble.LATE, Trouble.AWAY)
    return False


def answered(running: Running) -> Mapping[str, tuple[int, int]]:
    """Model -> requests that it has answered, and those that ended in an error; empty of a server that does not speak."""
    try:
        stated = _stated(running)
    except (OSError, http.client.HTTPException, msgspec.MsgspecError):
        return {}
    return {each.name: (each.inference_stats.success.count, each.inference_stats.fail.count) for each in stated}


def _stated(running: Running) -> Sequence[_Stated]:
    return msgspec.json.decode(asked(at(running, running.ports.http), "/v2/models/stats")[1], type=_Statistics).model_stats


def _instances(running: Running, model: str, *, seen: bool) -> int:
    """How many stubs it ought to have: as many as it has instances, where it is known to have any."""
    config = msgspec.json.decode(asked(at(running, running.ports.http), f"/v2/models/{model}/config")[1], type=_Config)
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


def _asked(client: Client, deadline: float, model: str) -> Pulse:
    began = time.monotonic()
    try:
        if inputs := question(client.metadata(model, deadline)):
            client.tensors(model, inputs, max(0.0, began + deadline - time.monotonic()))
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
