"""What is counted at the OpenAI port, as Prometheus reads it: how long answers wait, begin and go on, and how many tokens."""

from collections.abc import Callable
from enum import StrEnum
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_BY_MODEL = ("model",)


class Outcome(StrEnum):
    """How an answer ended: whole, with an error, or given up by its client."""

    OK = "ok"
    FAILED = "failed"
    LEFT = "left"


class Meter:
    """Everything that is counted since this process began. ``steady`` is a clock for measuring."""

    def __init__(self, steady: Callable[[], float]) -> None:
        self.steady = steady
        self._registry = held = CollectorRegistry()
        by_model = partial(Counter, labelnames=_BY_MODEL, registry=held)
        took = partial(Histogram, labelnames=_BY_MODEL, buckets=_LONG, registry=held)
        self.answers = Counter("forge_answers", "Answers that ended, by how", (*_BY_MODEL, "outcome"), registry=held)
        self._refused = Counter(
            "forge_error_responses", "Requests that got an error, by status and code", ("status", "code"), registry=held
        )
        self.under_way = Gauge("forge_answers_under_way", "Answers under way", _BY_MODEL, registry=held)
        self.waited = took("forge_queue_seconds", "From a whole request to its going to Triton: a turn at the chat template")
        self.first = took("forge_time_to_first_token_seconds", "From a whole request to the first piece of an answer")
        self.between = took("forge_inter_token_seconds", "Between two pieces of an answer, usually tokens", buckets=_SHORT)
        self.whole = took("forge_answer_seconds", "From a whole request to an answer's end")
        self.prompt = by_model("forge_prompt_tokens", "Tokens of prompts, of models that count them")
        self.completion = by_model("forge_completion_tokens", "Tokens of answers: as models count them, or pieces")

    def refused(self, status: int, code: str | None) -> None:
        """A request got an error in place of an answer."""
        self._refused.labels(str(status), code or "").inc()

    def course(self, model: str, asked: float) -> "Course":
        """One answer of ``model`` goes to Triton; the request was whole at ``asked``."""
        return Course(self, model, asked)

    def text(self) -> bytes:
        """All of it, in Prometheus' words."""
        return generate_latest(self._registry)


class Course:
    """One answer on its way, from its going to Triton to its end."""

    def __init__(self, meter: Meter, model: str, asked: float) -> None:
        self._meter, self._model, self._asked = meter, model, asked
        self._last: float | None = None
        meter.waited.labels(model).observe(meter.steady() - asked)
        meter.under_way.labels(model).inc()

    def piece(self) -> None:
        """Something came of it."""
        now = self._meter.steady()
        if self._last is None:
            self._meter.first.labels(self._model).observe(now - self._asked)
        else:
            self._meter.between.labels(self._model).observe(now - self._last)
        self._last = now

    def end(self, outcome: Outcome, prompt: int | None, completion: int) -> None:
        """It is over; ``prompt`` and ``completion`` are tokens as far as they are known."""
        self._meter.under_way.labels(self._model).dec()
        self._meter.answers.labels(self._model, str(outcome)).inc()
        self._meter.prompt.labels(self._model).inc(prompt or 0)
        self._meter.completion.labels(self._model).inc(completion)
        if outcome is Outcome.OK:
            self._meter.whole.labels(self._model).observe(self._meter.steady() - self._asked)
