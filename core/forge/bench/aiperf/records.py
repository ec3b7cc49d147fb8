"""NVIDIA's AIPerf as a driver, the pure part: its environment, what it is told, and what its records say. AIPerf 0.13.

Prompts, lengths and seeds are forge's, the same as its own loop sends: AIPerf gets them as a data set of single turns, the
warm-up's first, since it goes through the set once over both. What it exports of each request is read (profile_export.jsonl:
src/aiperf/common/models/record_models.py, MetricRecordInfo); what is not there is left out.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from forge.bench.driver import Answer, Ask, Drive
from forge.errors import BenchError
from forge.files import texts
from forge.schema.values import Environment, Host, Scalar, TextFile

SIZE = "1.2 GB"
"""Of the environment, once it is made."""
PACKAGE = "forge_aiperf"
ENDPOINT = "forge_triton"
"""The plugin's name in plugins.yaml."""
MODEL = "forge/model"
"""The name of the tokenizer: offline, AIPerf takes no folder, only what a Hugging Face cache holds."""
STARTED, COMPLETE = "Phase profiling (profiling) started", "Phase profiling (profiling) complete"
"""In AIPerf's log: the warm-up is over; the last answer has come."""
_REVISION = "0" * 40
_HELD = f"hub/models--{MODEL.replace('/', '--')}"
REFERENCE = TextFile(f"{_HELD}/refs/main", _REVISION)
SNAPSHOT = f"{_HELD}/snapshots/{_REVISION}"
"""How a Hugging Face cache holds ``MODEL``: the one names the other, which is the tokenizer's folder."""
_WARM, _ASK = "warm", "ask"
_DISTRIBUTION = "forge_aiperf-1.dist-info"

Body = Mapping[str, Scalar | list[Scalar]]
"""A request as Triton's generate extension takes it."""


class Spoken(Struct, frozen=True):
    """What the plugin must know of a model: how many special tokens its preprocessing adds to a prompt, and what each of its
    responses holds as a whole so far (``text``, ``all``: the counts too; empty where it holds what is new)."""

    special: int = 0
    repeated: Literal["", "text", "all"] = ""

    def variables(self) -> dict[str, str]:
        return {"FORGE_AIPERF_SPECIAL": str(self.special), "FORGE_AIPERF_REPEATED": self.repeated}


def pins() -> tuple[str, ...]:
    """AIPerf and all that it stands on, exactly."""
    return texts.words("forge.bench.aiperf.plugin", "pins.txt")


def version() -> str:
    return next(pin.partition("==")[2] for pin in pins() if pin.startswith("aiperf=="))


def environment(host: Host) -> Environment:
    """AIPerf's own: it pins huggingface-hub below 2, and forge needs later ones."""
    return Environment(host.python, host.platform, (), pins())


def plugin() -> tuple[TextFile, ...]:
    """The plugin as an installed distribution: AIPerf looks for entry points, and those name a package and a file in it."""
    names = ("__init__.py", "endpoint.py", "plugins.yaml")
    files = (TextFile(f"{PACKAGE}/{name}", texts.part("forge.bench.aiperf.plugin", name)) for name in names)
    about = TextFile(f"{_DISTRIBUTION}/METADATA", "Metadata-Version: 2.1\nName: forge-aiperf\nVersion: 1\n")
    points = TextFile(f"{_DISTRIBUTION}/entry_points.txt", f"[aiperf.plugins]\nforge = {PACKAGE}:plugins.yaml\n")
    return (*files, about, points)


def dataset(drive: Drive, bodies: Mapping[int, Body]) -> str:
    """AIPerf's data set of single turns; ``bodies`` are by the asks' identity."""
    return "".join(f"{_line(name, ask, bodies[id(ask)])}\n" for name, ask in _named(drive))


def _named(drive: Drive) -> Iterator[tuple[str, Ask]]:
    """Every ask with its session's name, the warm-up's first."""
    for kind, asks in ((_WARM, drive.warm), (_ASK, drive.asks)):
        for number, ask in enumerate(asks):
            yield f"{kind}-{number}", ask


def _line(name: str, ask: Ask, body: Body) -> str:
    stated = {key: value for key, value in body.items() if key not in ("text_input", "max_tokens")}
    line = {"session_id": name, "text": ask.request.prompt, "output_length": ask.request.max_tokens, "extra": stated}
    return json.dumps(line, ensure_ascii=False)


def arguments(drive: Drive, data: str, into: str) -> tuple[str, ...]:
    """Of ``aiperf``: one repeat, from the data set in the file ``data``, artifacts into the folder ``into``."""
    request = drive.asks[0].request
    told = {
        "--model": request.model,
        "--url": f"http://{drive.http}/v2/models/{request.model}",
        "--endpoint-type": ENDPOINT,
        "--tokenizer": MODEL,
        "--input-file": data,
        "--custom-dataset-type": "single_turn",
        "--dataset-sampling-strategy": "sequential",
        "--random-seed": str(drive.seed),
        "--output-artifact-dir": into,
        "--export-level": "records",
        "--ui": "none",
    }
    if drive.load.rate is None:
        told["--concurrency"] = str(drive.load.concurrency or 1)
    else:
        told |= {"--request-rate": f"{drive.load.rate:g}", "--arrival-pattern": "poisson"}
    if drive.warm:
        told["--warmup-request-count"] = str(len(drive.warm))
    if drive.duration is None:
        told["--request-count"] = str(len(drive.asks))
    else:
        told |= {"--benchmark-duration": f"{drive.duration:g}", "--benchmark-grace-period": "inf"}
    if drive.patience is not None:
        told["--request-timeout-seconds"] = f"{drive.patience:g}"
    streaming = ("--streaming",) if request.stream else ()
    pairs = tuple(itertools.chain.from_iterable(told.items()))
    return ("profile", *pairs, *streaming, "--no-gpu-telemetry", "--no-server-metrics")


class _Metric(Struct, frozen=True):
    value: float | list[float]
    unit: str


class _Failure(Struct, frozen=True):
    message: str = ""
    type: str | None = None
    code: int | None = None


class _About(Struct, frozen=True):
    conversation_id: str
    benchmark_phase: str
    request_start_ns: Annotated[int, Meta(gt=0)]
    request_end_ns: int
    credit_issued_ns: int | None = None
    was_cancelled: bool = False


class _Line(Struct, frozen=True):
    """One request in profile_export.jsonl."""

    metadata: _About
    metrics: dict[str, _Metric] = {}
    error: _Failure | None = None


def answers(export: str | bytes, drive: Drive, where: str) -> tuple[Answer, ...]:
    """What ``profile_export.jsonl`` says of every request after the warm-up, in the order in which they were due.

    BenchError where it is not AIPerf's, or speaks of requests that nobody asked for.
    """
    try:
        lines = msgspec.json.Decoder(_Line).decode_lines(export)
    except msgspec.DecodeError as error:
        raise BenchError(f"these are no records of AIPerf: {error}", where=where) from error
    counted = [line for line in lines if line.metadata.benchmark_phase == "profiling"]
    asks = dict(_named(drive))
    strange = sorted({line.metadata.conversation_id for line in counted} - set(asks))
    if strange:
        raise BenchError(f"AIPerf tells of requests that it was not given: {strange[0]}", where=where)
    opened = drive.load.rate is not None
    began = min((_due(line.metadata, opened=opened) for line in counted), default=0)
    found = [_answer(line, asks[line.metadata.conversation_id], began, opened=opened) for line in counted]
    return tuple(sorted(found, key=lambda answer: answer.due))


def _due(about: _About, *, opened: bool) -> int:
    """AIPerf keeps no moment when a request was to be sent, but that of its decision to send it."""
    return about.credit_issued_ns if opened and about.credit_issued_ns else about.request_start_ns


def _answer(line: _Line, ask: Ask, began: int, *, opened: bool) -> Answer:
    about = line.metadata
    sent = (about.request_start_ns - began) * 1e-9
    first = _seconds(line.metrics, "time_to_first_token")
    gaps = _seconds(line.metrics, "inter_chunk_latency")
    marks = tuple(itertools.accumulate(gaps, initial=sent + first[0])) if first else ()
    error = "" if line.error is None else _message(line.error)
    return Answer(
        ask=ask,
        due=(_due(about, opened=opened) - began) * 1e-9,
        sent=sent,
        end=max((about.request_end_ns - began) * 1e-9, *marks[-1:], sent),
        marks=marks,
        tokens=_tokens(line.metrics, "usage_completion_tokens"),
        spoken=_tokens(line.metrics, "output_sequence_length"),
        input_tokens=_tokens(line.metrics, "usage_prompt_tokens") or _tokens(line.metrics, "input_sequence_length"),
        error=error or ("cancelled by AIPerf" if about.was_cancelled else ""),
    )


_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "sec": 1.0}


def _seconds(metrics: Mapping[str, _Metric], name: str) -> list[float]:
    metric = metrics.get(name)
    if metric is None:
        return []
    if metric.unit not in _UNITS:
        raise BenchError(f"AIPerf gives {name} in {metric.unit!r}, which is no unit that forge knows")
    values = metric.value if isinstance(metric.value, list) else [metric.value]
    return [value * _UNITS[metric.unit] for value in values]


def _tokens(metrics: Mapping[str, _Metric], name: str) -> int:
    metric = metrics.get(name)
    return 0 if metric is None or isinstance(metric.value, list) else int(metric.value)


def _message(failure: _Failure) -> str:
    """Triton's own words where the answer holds them: {"error": "..."}, as an event or plain."""
    text = failure.message.strip().removeprefix("data:").strip()
    try:
        return str(msgspec.json.decode(text, type=dict[str, str])["error"])
    except (msgspec.DecodeError, KeyError):
        return " ".join(filter(None, (failure.type, text))) or "failed, and AIPerf does not say how"


def heard(log: Sequence[str], count: int = 12) -> str:
    """The end of a log: its last lines that say something; boxes and rules aside."""
    said = [stripped for line in log if (stripped := line.strip(" │╭╮╰╯─━┃\t\n"))]
    return "\n".join(said[-count:])
