"""A benchmark's results as a file: what was measured, under which load, and every figure with its spread.

Times are seconds, lengths tokens, memory bytes. Moments inside a repeat count from the repeat's beginning. A figure's
``value`` is the mean over repeats; ``low`` and ``high`` are the 95 % interval of that mean, absent where there was one repeat.
"""

from typing import Literal

import msgspec
from msgspec import Struct

from forge.errors import BenchError
from forge.files import texts

FORMAT = 1
"""Of the file itself; a forge reads its own and earlier ones."""
Value = str | int | float | bool
Unit = Literal["s", "tokens", "tokens/s", "requests/s", "requests", "share"]
Better = Literal["lower", "higher", ""]
"""Which way is an improvement of a figure; empty where neither is."""
Counted = Literal["server", "asked", "tokenizer", "chunks"]
"""Who says how many tokens an answer has, the most exact first."""
PERCENTILES = (50, 75, 90, 95, 99)
"""What is given of each distribution, as ``ttft_p95``; ``ttft_mean`` too."""


class Figure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One number of a point: its mean over repeats, the interval of that mean, and each repeat's own."""

    value: float
    unit: Unit
    better: Better = ""
    low: float | None = None
    high: float | None = None
    values: tuple[float, ...] = ()
    """One for each repeat that could give it."""


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One request. ``due`` is when it was to be sent: in an open loop latencies count from there, sent late or not."""

    due: float
    sent: float
    first: float | None = None
    """When the first token came; absent where none did."""
    last: float | None = None
    """When the last chunk with a token came."""
    end: float
    """When the stream ended or broke."""
    input_tokens: int = 0
    output_tokens: int = 0
    good: bool | None = None
    """Whether every limit of ``goodput`` was kept; absent where there are no limits."""
    error: str = ""

    @property
    def ttft(self) -> float | None:
        return None if self.first is None else self.first - self.due

    @property
    def latency(self) -> float:
        return self.end - self.due

    @property
    def itl(self) -> float | None:
        """Mean time between this answer's tokens: from the first to the last, over one less than their number."""
        if self.first is None or self.last is None or self.output_tokens < 2:
            return None
        return (self.last - self.first) / (self.output_tokens - 1)


class Span(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a gauge showed over a repeat, by looking every now and then."""

    mean: float
    highest: float


class ServerTimes(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What Triton's own counters say of one of its models over a repeat; times are means for one request."""

    requests: int
    failures: int
    executions: int
    queue: float
    compute_input: float
    compute: float
    compute_output: float


class Gpu(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU over a repeat, by NVML: utilisation as a share, memory in bytes, power in watts, temperature in Celsius."""

    index: int
    name: str
    utilisation: Span
    memory: Span
    power: Span | None = None
    temperature: Span | None = None


class Repeat(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One run of a point's load, warm-up not counted."""

    seed: int
    began: float
    """Since the benchmark's beginning."""
    wall: float
    """From the first request's due time to the last one's end."""
    records: tuple[Record, ...]
    errors: dict[str, int] = {}
    """Message -> how many requests failed with it."""
    triton: dict[str, ServerTimes] = {}
    """Triton's name of a model -> its counters; the front, and those that it asks."""
    gauges: dict[str, Span] = {}
    """Triton's gauges as Prometheus writes them, name{labels}: pending requests, TensorRT-LLM's own."""
    gpus: tuple[Gpu, ...] = ()


class Verdict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One quality prompt at one point: its answer, and what each check said that failed."""

    name: str
    passed: bool
    answer: str
    failed: tuple[str, ...] = ()


class Quality(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How many of the prompts of a quality file passed all of their checks; the interval is Wilson's, 95 %."""

    score: float
    low: float
    high: float
    verdicts: tuple[Verdict, ...]


class Point(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One model under one setting."""

    model: str
    """Which of ``subjects``."""
    values: dict[str, Value] = {}
    """What the sweep set here, in the sweep's order; empty without one."""
    concurrency: int | None = None
    """Requests that are under way at any time (closed loop)."""
    rate: float | None = None
    """Requests that arrive in a second, at random (open loop); exactly one of the two is set."""
    sampling: dict[str, Value] = {}
    """What every request asked for, and the server did not choose."""
    figures: dict[str, Figure]
    """By name, as ``ttft_p95``; ``forge.bench.figures.names`` lists them."""
    distributions: dict[str, tuple[float, ...]] = {}
    """ttft, itl, gap, latency -> the 0th, 1st, ... 100th percentile over all requests of all repeats. ``gap`` is each time
    between two chunks of an answer; ``itl`` is one answer's mean."""
    repeats: tuple[Repeat, ...]
    quality: Quality | None = None

    @property
    def label(self) -> str:
        """Its setting in words, as ``concurrency=4 temperature=0.2``."""
        load = {"concurrency": self.concurrency} if self.concurrency is not None else {"rate": self.rate}
        return " ".join(f"{name}={value}" for name, value in {**load, **self.values}.items())


class Subject(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One model that was measured, by what it was made of."""

    name: str
    front: str
    """Triton's name of the model that was asked."""
    runtime: str
    entry: str
    """Key of the artifact that was served."""
    keys: dict[str, str] = {}
    """Step -> key, for all that the entry stands on."""
    image: str = ""
    """Digest or id of the container image that served it; empty for a process of the machine."""
    tokenizer: str = ""
    """BLAKE3 of its tokenizer.json: tokens of different tokenizers are different units."""
    trtllm: str = ""


class Machine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where it was measured."""

    cpu: str
    cores: int
    memory: int
    platform: str
    gpus: tuple[str, ...] = ()
    driver: str = ""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The load, apart from what the points vary."""

    seed: int
    repeats: int
    warmup: int | None
    """Requests before each repeat whose times are not counted; None: as many as are under way at once, two in an open loop."""
    requests: int | None = None
    """Of each repeat; or ``duration``, seconds in which requests are sent."""
    duration: float | None = None
    input_tokens: int | None = None
    """Fixed length of made prompts; absent with a data set."""
    output_tokens: int | None = None
    """Fixed length of answers; absent where a data set or the recipe decides."""
    ignore_end: bool = False
    """Whether answers were kept from ending early: min_tokens was as large as max_tokens."""
    dataset: str = ""
    """Its file's name; ``prompts`` holds what was in it."""
    prompts: str = ""
    """BLAKE3 over the first repeat's prompts with their lengths, in order; what follows is the seed's."""
    stream: bool = True
    sampling: dict[str, Value] = {}
    goodput: dict[str, float] = {}
    """ttft, itl, latency -> the most seconds that a good answer may take."""
    sweep: dict[str, tuple[Value, ...]] = {}
    quality: str = ""
    """BLAKE3 of the quality file."""
    counted: Counted = "server"
    """Who says how many tokens an answer has: the server; the request, where it fixed the length; the model's tokenizer over
    the whole text; or, without any of these, the number of chunks."""


class Results(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One benchmark."""

    format: int
    made: str
    """When it began: ISO 8601, UTC."""
    wall: float
    command: tuple[str, ...]
    driver: str
    """``forge`` for the built-in loop, or the tool and its version."""
    forge: str
    """Version."""
    triton: str
    """Version, as the server says it; empty where it does not."""
    subjects: tuple[Subject, ...]
    machine: Machine
    settings: Settings
    points: tuple[Point, ...]
    notes: tuple[str, ...] = ()
    """What a reader of the figures should know."""


class _Versioned(Struct):
    format: int


def write(results: Results) -> str:
    """The file's text: JSON without spaces, for there are many records."""
    return msgspec.json.encode(results).decode() + "\n"


def read(text: str | bytes, where: str) -> Results:
    """The inverse of ``write``; BenchError for anything else."""
    hint = "name a file that `forge bench run` has written"
    called = "these are no results of forge bench, so it"
    stated = texts.parsed(lambda: msgspec.json.decode(text, type=_Versioned).format, BenchError, called, where, hint=hint)
    if stated <= FORMAT:
        return texts.parsed(lambda: msgspec.json.decode(text, type=Results), BenchError, called, where, hint=hint)
    raise BenchError(f"written by a later forge (format {stated})", where=where, hint="update forge")
