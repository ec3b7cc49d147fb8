"""`forge tune`: each candidate is built, served and put under load in a place of its own; the best goes into the recipe."""

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec
import tomli
from msgspec import Struct
from msgspec.structs import replace

from forge.api.outcome import Built
from forge.bench.aiconfigurator.proposals import Predicted, evidence
from forge.bench.aiconfigurator.question import Question, question
from forge.bench.options import INPUT_TOKENS, OUTPUT_TOKENS, BenchOptions
from forge.bench.results import Figure, Results
from forge.bench.tune.evidence import applied, note, stated
from forge.bench.tune.goal import QUALITY, Goal
from forge.bench.tune.search import Figures, Tuned, search
from forge.bench.tune.space import VARIANT, Axes, Pairs, Value, candidates, usual
from forge.errors import BenchError, ForgeError, HostError, LockError, Problem, RecipeError, ServerError, SourceError
from forge.files import texts, trees
from forge.machine import processes
from forge.plan import lock as locks
from forge.plan.resolved import Resolved
from forge.plan.steps import Plan
from forge.schema.values import BuildOptions, Gpu, Ports, Recipe, RuntimeKind
from forge.serve.server_types import Running


class Verbs(Protocol):
    """The part of Forge that makes, serves and measures."""

    home: Path

    def read(self, path: str | Path, runtime: RuntimeKind | None = None) -> Recipe: ...
    def plan(self, recipes: Sequence[str | Path], options: BuildOptions = ...) -> Plan: ...
    def build(
        self, recipes: Sequence[str | Path], options: BuildOptions = ..., *, repository: str | Path | None = None
    ) -> Built: ...
    def serve(self, repository: str | Path, ports: Ports | None = None, *, detach: bool = False) -> Running: ...
    def stop(self, running: Running) -> None: ...
    def bench(self, what: str, repository: str | Path | None = None, options: BenchOptions = ...) -> tuple[Results, Path]: ...


class Asked(Struct, frozen=True):
    """What is to be tuned: the goal, keys and their values (the usual ones where none are named), and how each is measured.

    ``requests`` is what the first round asks of each candidate; ``options`` says lengths, prompts and quality.
    """

    goal: Goal
    axes: Axes
    requests: int = 16
    turns: int = 3
    """How often the best and the recipe as it is are measured in the end."""
    options: BenchOptions = BenchOptions()
    runtime: RuntimeKind | None = None

    def question(self, resolved: Resolved, gpu: str) -> tuple[Question, str]:
        """What AIConfigurator is asked instead of measuring, and what has to be said about it."""
        lengths = (self.options.input_tokens or INPUT_TOKENS, self.options.output_tokens or OUTPUT_TOKENS)
        return question(resolved, gpu, self.goal, self.axes, lengths)


class Prediction(Struct, frozen=True):
    """What AIConfigurator was asked, and what it predicts; nothing of it was measured."""

    question: Question
    found: Predicted

    def write(self, recipe: Path) -> bool:
        """Put the keys that were varied into the recipe, as they are predicted best; whether there was anything to put."""
        if not (self.found.kept and self.found.settings):
            return False
        _write(recipe, self.found.settings, evidence(self.found, self.question, f"{datetime.now(UTC):%Y-%m-%d}"))
        return True


def card(here: Sequence[Gpu]) -> str:
    """The kind of card that is here; HostError where there is none, or several kinds."""
    names = dict.fromkeys(gpu.name for gpu in here)
    if len(names) != 1:
        what = f"these are cards of several kinds: {', '.join(names)}" if names else "no GPU is here"
        raise HostError(what, hint="say which card is meant: --gpu h100_sxm")
    return next(iter(names))


class Tuner(Struct, frozen=True):
    """Tunes one recipe; nothing of it is changed but by ``write``."""

    verbs: Verbs
    say: Callable[[str], None]

    def tune(self, recipe: Path, asked: Asked) -> tuple[Tuned, Path]:
        """What was found, and the file that keeps all of it. RecipeError for settings that no recipe may have, and what a plan
        raises for those that cannot be made, before anything is built."""
        wanted = self.verbs.read(recipe, asked.runtime)
        if VARIANT in asked.axes and wanted.runtime.kind is RuntimeKind.TWIN:
            what = "the twin guesses nothing ahead: all variants are the same to it"
            raise BenchError(what, where=f"--vary {VARIANT}", hint="tune them where they run: --runtime engine, llmapi or vllm")
        given = candidates(asked.axes or usual(wanted), wanted)
        with self._place(recipe) as place:
            trials = _Trials(self.verbs, recipe, place, asked)
            different = tuple(dict.fromkeys(each.settings for each in given))
            for settings in different:
                with trials.written(settings):
                    pass  # it can be read
            for settings in different:
                with trials.written(settings) as file:
                    self.verbs.plan([file], BuildOptions(asked.runtime))  # it can be made
            found = search(given, trials, asked.goal, asked.requests, self.say, asked.turns)
        return found, self._kept(recipe, found)

    def write(self, recipe: Path, tuned: Tuned) -> bool:
        """Put what is better into the recipe, with the evidence in a line at its end; whether there was anything to put."""
        if not tuned.better or not tuned.best.settings:
            return False
        _write(recipe, tuned.best.settings, note(tuned, f"{datetime.now(UTC):%Y-%m-%d}"))
        return True

    @contextmanager
    def _place(self, recipe: Path) -> Generator[Path]:
        """A folder of its own on the store's filesystem, cleared away in the end."""
        parent = self.verbs.home / "tune"
        parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{recipe.stem}-", dir=parent))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _kept(self, recipe: Path, tuned: Tuned) -> Path:
        file = self.verbs.home / "tune" / f"{recipe.stem}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
        file.write_bytes(msgspec.json.format(msgspec.json.encode(tuned), indent=1) + b"\n")
        return file


class _Trials(Struct, frozen=True):
    """Candidates as servers of their own, one after the other."""

    verbs: Verbs
    recipe: Path
    place: Path
    asked: Asked

    def measure(self, settings: Pairs, loads: Sequence[Pairs], requests: int) -> list[Figures]:
        repository = self.place / "models"
        with self.written(settings) as recipe:
            built = self.verbs.build([recipe], BuildOptions(self.asked.runtime), repository=repository)
        if built.broken:
            raise ServerError("; ".join(each.what for each in built.findings), where=str(repository))
        running = self.verbs.serve(repository, processes.spare_ports())
        try:
            name = built.models[0].name
            return [self._figures(name, repository, dict(load), requests) for load in loads]
        finally:
            self.verbs.stop(running)

    @contextmanager
    def written(self, settings: Pairs) -> Generator[Path]:
        """The recipe with these settings, for as long as it is needed: beside the recipe, whose paths start there, where that
        can be written. RecipeError where it is none."""
        text = applied(_text(self.recipe), dict(settings))
        writable = os.access(self.recipe.parent, os.W_OK)
        file = (self.recipe.parent if writable else self.place) / f".{self.recipe.stem}-{self.place.name[-8:]}.toml"
        lock, copied = (each.with_name(f"{each.name}.lock") for each in (self.recipe, file))
        try:
            file.write_text(text, encoding="utf-8")
            if lock.exists():
                copied.write_text(_pins(lock, draft="draft" in tomli.loads(text)), encoding="utf-8")
            self._require(file)
            yield file
        finally:
            for each in (file, copied):
                each.unlink(missing_ok=True)

    def _require(self, file: Path) -> None:
        """RecipeError, about the recipe itself, where these settings cannot be read."""
        try:
            self.verbs.read(file, self.asked.runtime)
        except RecipeError as error:
            told = [replace(each, where=each.where.replace(str(file), str(self.recipe))) for each in error.problems]
            raise RecipeError(tuple(_with_way(each) for each in told)) from None

    def _figures(self, name: str, place: Path, load: dict[str, object], requests: int) -> dict[str, Figure]:
        options = replace(self.asked.options, requests=requests, repeats=1, **load)
        (point,) = self.verbs.bench(name, place, options)[0].points
        found = dict(point.figures)
        if point.quality is not None:
            it = point.quality
            found[QUALITY] = Figure(value=it.score, unit="share", better="higher", low=it.low, high=it.high)
        names = dict.fromkeys((*self.asked.goal.figures, "output_tokens_per_s", "ttft_p95", "itl_p95"))
        return {name: found[name] for name in names if name in found}


def _write(recipe: Path, settings: Mapping[str, Value], why: str) -> None:
    text = stated(_text(recipe), settings, why)
    try:
        trees.write_whole(recipe, text)
    except OSError as error:
        hint = "copy it with `forge new --example` where you may write, or set these keys yourself"
        raise ForgeError(
            f"the recipe cannot be written: {trees.reason(error, recipe)}", where=str(recipe), hint=hint
        ) from error


def _text(recipe: Path) -> str:
    return texts.read(recipe, SourceError, "the recipe")


def _pins(lock: Path, *, draft: bool) -> str:
    """The recipe's lock, for a candidate that may have left its second checkpoint out."""
    text = texts.read(lock, LockError, "the lock")
    held = locks.read(text, str(lock))
    return text if draft or held.asked.draft is None else locks.write(locks.without_draft(held))


def _with_way(problem: Problem) -> Problem:
    """With how several values are written, where they were written as one list."""
    if problem.hint or not problem.what.startswith("found a list"):
        return problem
    return replace(problem, hint="several values are written without brackets: --vary KEY=4,8")
