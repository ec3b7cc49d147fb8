"""What AIConfigurator answers, the best first, and what of it a recipe is to say. Pure."""

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from forge.bench.aiconfigurator.question import KEYS, Question, column
from forge.bench.tune.goal import Goal
from forge.bench.tune.space import Axes, Value, at
from forge.errors import BenchError
from forge.schema.values import Recipe

MOST = 5
"""Rows that are shown."""


class Row(Struct, frozen=True, kw_only=True):
    """One setting as it is predicted: a server on ``tp`` times ``pp`` cards, ``batch`` requests at once. Times are means."""

    tp: int
    pp: int
    batch: int
    concurrency: int
    ttft_ms: float
    tpot_ms: float
    latency_ms: float
    requests_per_s: float
    tokens_per_s: float
    tokens_per_s_gpu: float
    tokens_per_s_user: float
    memory_gib: float
    """On each card."""

    def figure(self, name: str) -> float:
        """A figure of forge's name, in its unit."""
        of = column(name)
        value = float(getattr(self, of))
        return value / 1000 if of.endswith("_ms") else value

    def said(self, key: str) -> int:
        """What it has for a key that can be varied."""
        return dict(zip(KEYS, (self.tp, self.pp, self.batch, self.concurrency), strict=True))[key]


class Answer(Struct, frozen=True, kw_only=True):
    """All that ``ask.py`` has written."""

    version: str
    rows: tuple[Row, ...]


class Predicted(Struct, frozen=True, kw_only=True):
    """Predictions, the best first; nothing here was measured."""

    by: str
    """Which AIConfigurator, of which backend and card."""
    note: str
    """What its data lacks of what was asked."""
    goal: str
    limits: tuple[str, ...]
    rows: tuple[Row, ...]
    kept: bool
    """Whether the best keeps all limits."""
    settings: dict[str, Value]
    """The keys that were varied, as the best has them, where the recipe says otherwise."""


def read(data: bytes, where: str) -> Answer:
    """BenchError for anything that is no answer."""
    try:
        return msgspec.json.decode(data, type=Answer)
    except msgspec.DecodeError as error:
        raise BenchError(f"AIConfigurator's answer cannot be read: {error}", where=where) from error


def predicted(answer: Answer, asked: Question, note: str, goal: Goal, axes: Axes, recipe: Recipe) -> Predicted:
    """The best rows of those that were asked for; BenchError where there are none."""
    wanted = [row for row in answer.rows if all(row.said(key) in values for key, values in axes.items())]
    if answer.rows and not wanted:
        sizes = ", ".join(map(str, sorted({row.batch for row in answer.rows})))
        raise BenchError("AIConfigurator's answer has none of these settings", hint=f"it has batches of {sizes}")
    ordered = sorted(wanted, key=lambda row: goal.rank(_figures(goal, row)), reverse=True)
    alone: dict[tuple[int, ...], Row] = {}  # the same setting stands there again with another share of prefill
    for row in ordered:
        alone.setdefault(tuple(map(row.said, KEYS)), row)
    best = list(alone.values())[:MOST]
    first = {key: best[0].said(key) for key in axes if "." in key} if best else {}
    return Predicted(
        by=f"AIConfigurator {answer.version} for {asked.backend} {asked.version} on {asked.system}",
        note="; ".join(filter(None, (note, _unanswered(answer, asked)))),
        goal=goal.figure,
        limits=tuple(each.text for each in goal.limits),
        rows=tuple(best),
        kept=bool(best) and goal.kept(_figures(goal, best[0])),
        settings={key: value for key, value in first.items() if value != at(recipe, key)},
    )


def evidence(found: Predicted, asked: Question, day: str) -> str:
    """A line for the recipe: what was predicted, by whom, for what."""
    row = found.rows[0]
    keys = ", ".join(f"{key} = {value}" for key, value in found.settings.items())
    return (
        f"forge tune --offline {day}: {keys}: predicted, not measured, by {found.by}: {row.tokens_per_s:.4g} tokens/s, "
        f"ttft {row.ttft_ms:.3g} ms, itl {row.tpot_ms:.3g} ms at concurrency {row.concurrency}, "
        f"{asked.input_tokens} tokens in and {asked.output_tokens} out"
    )


def _unanswered(answer: Answer, asked: Question) -> str:
    """Which parallelism has no row: heads that cannot be shared out so, weights that do not fit, limits that none keeps."""
    there = {(row.tp, row.pp) for row in answer.rows}
    without = ", ".join(f"tp {tp} with pp {pp}" for tp, pp in asked.parallel if (tp, pp) not in there)
    return f"it answers nothing for {without}" if without and there else ""


def _figures(goal: Goal, row: Row) -> Mapping[str, float]:
    return {name: row.figure(name) for name in goal.figures}
