"""What a build would do, step by step, and why: the plan held against the store. Looks, and changes nothing."""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from msgspec import Struct

from forge.files.copies import Cost
from forge.fit.report import Report
from forge.plan.steps import Fetch, Plan, Step, demanded
from forge.schema.values import Pinned, SourceKind
from forge.store.artifact import Provenance
from forge.store.store import Store

FIRST = "first build"


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
    """One step's prospect. ``why`` is empty for one that is had; otherwise it says what is new about it."""

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
    why = _why(provenance(step), store) if state is State.MISS else ""
    copy = _copy(step, store, origins, held=held is not None) if state in (State.LOCAL, State.MISS) else None
    size = held.size if held else copy.size if copy else step.size
    needs = tuple(need.key for _, need in step.needs)
    timed = held or store.nearest(provenance(step))
    seconds = timed.seconds if timed else None
    return Outlook(step.name, step.key, type(step.action).__name__, held is not None, why, size, state, copy, needs, seconds)


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


def _why(wanted: Provenance, store: Store) -> str:
    nearest = store.nearest(wanted)
    if nearest is None:
        return FIRST
    before = nearest.manifest.provenance
    changed = [f"{label}: {old} -> {new}" for label, old, new in before.changed(wanted)]
    changed += [f"its {name} changed" for name, key in wanted.needs.items() if before.needs.get(name) != key]
    return "; ".join(changed) or FIRST
