"""What a build would do, step by step, and why: the plan held against the store. Looks, and changes nothing."""

import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from msgspec import Struct

from forge.files.copies import Cost
from forge.fit.report import Report
from forge.plan.steps import Assemble, Fetch, LayBackends, Plan, Step, demanded
from forge.schema.values import Pinned, Role, RuntimeKind, SourceKind
from forge.store.artifact import Provenance
from forge.store.store import Store

FIRST = "first build"
EMPTY = '""'
SHOWN = 3
"""Differences that are told in brief."""
SHORT = 40
"""Characters of a value that is told in brief."""
_SETTING = re.compile(r"settings\.[^.]+\.(.+)")
_FILE = re.compile(r"(?:sources|skeletons|texts|links|source\.files)\.(?:.*/)?([^/]+)\.(?:content|target|need|digest|size)")
_BACKEND = re.compile(r"sources\.([^/]+)/")
_RUNTIMES = {"tensorrtllm": "twin"}
"""By the folder of a backend that is named otherwise."""
_ALONE = {str(Role.VLLM): RuntimeKind.VLLM, str(Role.TENSORRT_LLM): RuntimeKind.LLMAPI}
"""By the first model of an entry that has no ensemble."""


@runtime_checkable
class Copying(Protocol):
    """An origin of files that may lie on this machine: a fetch copies them."""

    def cost(self, pinned: Pinned, into: Path) -> Cost | None:
        """What a fetch into ``into`` would write; None where it takes no files of this machine."""
        ...


class How(StrEnum):
    """What becomes of a person's own files in a build."""

    HELD = "already in the store"
    SHARED = "shares blocks"
    COPIED = "copied"


class Copy(Struct, frozen=True):
    """What a copy of files that lie on this machine costs: their bytes, and those of them that are written. Files on a
    filesystem that shares blocks (reflink) write none, nor do those that the store holds. A wheel is copied too, beside the
    file that is taken out of it, until that is done."""

    size: int
    written: int
    how: How


class State(StrEnum):
    """Where a step's result is, or what becomes of it in a build."""

    LOCAL = "local"
    REMOTE = "remote"
    """In the shared store: a build takes it from there."""
    MISS = "miss"
    SPARED = "spared"
    """Nowhere, and not made: all that needs it is there."""


class Outlook(Struct, frozen=True):
    """One step's prospect. ``why`` is empty for one that is had; otherwise it says all that is new about it, and ``brief``
    the same in one line."""

    name: str
    key: str
    action: str
    held: bool
    why: str
    size: int | None
    state: State
    copy: Copy | None = None
    """Of files of a person's own; None for a step that takes none."""
    needs: tuple[str, ...] = ()
    """Keys of the steps that it waits for."""
    seconds: float | None = None
    """How long it took, or the one nearest to it that the store holds; None where nobody made such a step here."""
    brief: str = ""


class Prospect(Struct, frozen=True):
    """All that is known beforehand. ``fit`` is None where too little is known to say it, and ``unfit`` is why."""

    plan: Plan
    steps: tuple[Outlook, ...]
    fit: Report | None
    unfit: str = ""


Away = Callable[[Sequence[str]], frozenset[str]]
"""Which of some keys a shared store has."""


def outlook(plan: Plan, store: Store, origins: Mapping[SourceKind, object], away: Away | None = None) -> tuple[Outlook, ...]:
    """Every step of ``plan``, as a build takes them. ``origins`` say what copies cost, ``away`` what a shared store has."""
    held = {step.key for step in plan.steps if store.find(step.key)}
    there: frozenset[str] = frozenset()
    wanted = frozenset(step.key for step in plan.steps)
    if away is not None and (missing := [step.key for step in plan.steps if step.key not in held]):
        there = away(missing)
        wanted = demanded(plan.steps, lambda step: step.key in held or step.key in there)

    def state(step: Step) -> State:
        if step.key in held:
            return State.LOCAL
        if step.key not in wanted:
            return State.SPARED
        return State.REMOTE if step.key in there else State.MISS

    return tuple(_prospect(step, state(step), store, origins) for step in plan.steps)


def provenance(step: Step) -> Provenance:
    """What the store remembers of a step's making, and later compares with."""
    needs = {name: need.key for name, need in step.needs}
    return Provenance(step=step.name, action=type(step.action).__name__, inputs=step.inputs, needs=needs)


def _prospect(step: Step, state: State, store: Store, origins: Mapping[SourceKind, object]) -> Outlook:
    held = store.find(step.key)
    why, brief = _why(provenance(step), store) if state is State.MISS else ("", "")
    copy = _copy(step, store, origins, held=held is not None) if state in (State.LOCAL, State.MISS) else None
    size = held.size if held else copy.size if copy else step.size
    needs = tuple(need.key for _, need in step.needs)
    timed = held or store.nearest(provenance(step))
    seconds = timed.seconds if timed else None
    action = type(step.action).__name__
    return Outlook(step.name, step.key, action, held is not None, why, size, state, copy, needs, seconds, brief)


def _copy(step: Step, store: Store, origins: Mapping[SourceKind, object], *, held: bool) -> Copy | None:
    if not isinstance(step.action, Fetch):
        return None
    pinned = step.action.source
    origin = origins[pinned.kind]
    if not isinstance(origin, Copying):
        return None
    if held:
        own = pinned.kind in (SourceKind.PATH, SourceKind.GGUF) or pinned.name.startswith("file:")
        return Copy(sum(file.size for file in pinned.files), 0, How.HELD) if own else None  # of a wheel only pip could tell
    if (cost := origin.cost(pinned, store.root / "staging")) is None:
        return None
    return Copy(cost.size, cost.written, How.COPIED if cost.written else How.SHARED)


def _why(wanted: Provenance, store: Store) -> tuple[str, str]:
    nearest = store.nearest(wanted)
    if nearest is None:
        return FIRST, FIRST
    before = nearest.manifest.provenance
    inputs = before.changed(wanted)
    needs = [f"its {name} changed" for name, key in wanted.needs.items() if before.needs.get(name) != key]
    changed = [*(f"{label}: {old} -> {new}" for label, old, new in inputs), *needs]
    was, now = _runtime(before), _runtime(wanted)
    brief = f"another runtime: {was} -> {now}" if was != now else _brief(inputs, needs)
    return "; ".join(changed) or FIRST, brief or FIRST


def _brief(inputs: Sequence[tuple[str, str, str]], needs: Sequence[str]) -> str:
    """The first few of what changed: short values, then needs, then what is told by its name alone."""
    values, names = dict[str, None](), dict[str, None]()  # in order, each once: models share settings, and names of files
    for label, old, new in inputs:
        name, is_file = _named(label)
        if is_file or not (_is_short(old) and _is_short(new)):
            names[f"{name} differs"] = None
        else:
            values[f"{name}: {old or EMPTY} -> {new or EMPTY}"] = None
    told = [*values, *needs, *names]
    more = [f"and {len(told) - SHOWN} more (--json)"] if len(told) > SHOWN else []
    return "; ".join([*told[:SHOWN], *more])


def _named(label: str) -> tuple[str, bool]:
    """What a person knows an input by, and whether that is a file."""
    if found := _SETTING.fullmatch(label):
        return found[1], False
    found = _FILE.fullmatch(label)
    return (found[1], True) if found else (label, False)


def _is_short(value: str) -> bool:
    return len(value) <= SHORT and value.isprintable() and not value.startswith("blake3:")


def _runtime(made: Provenance) -> str:
    """What serves the result of a step that is another for each runtime; empty for any other step."""
    if made.action == LayBackends.__name__:
        laid = {found[1] for label in made.inputs if (found := _BACKEND.match(label))}
        return " and ".join(_RUNTIMES.get(name, name) for name in sorted(laid))
    if made.action != Assemble.__name__:
        return ""
    otherwise = RuntimeKind.ENGINE if "engine" in made.needs else RuntimeKind.TWIN
    return _ALONE.get(made.inputs.get("names.roles.0", ""), otherwise)
