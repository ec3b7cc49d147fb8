"""What a build would do, step by step, and why: the plan held against the store. Looks, and changes nothing."""

from dataclasses import dataclass

from forge.fit.report import Report
from forge.plan.steps import Plan, Step
from forge.store.artifact import Provenance
from forge.store.store import Store

FIRST = "first build"


@dataclass(frozen=True)
class Outlook:
    """One step's prospect. ``why`` is empty for a held one; otherwise it says what is new about it."""

    name: str
    key: str
    action: str
    held: bool
    why: str
    size: int | None


@dataclass(frozen=True)
class Prospect:
    """All that is known beforehand. ``fit`` is None where too little is known to say it, and ``unfit`` is why."""

    plan: Plan
    steps: tuple[Outlook, ...]
    fit: Report | None
    unfit: str = ""


def outlook(plan: Plan, store: Store) -> tuple[Outlook, ...]:
    """Every step of ``plan``, in the order of a build."""
    return tuple(_prospect(step, store) for step in plan.steps)


def provenance(step: Step) -> Provenance:
    """What the store remembers of a step's making, and later compares with."""
    needs = {name: need.key for name, need in step.needs}
    return Provenance(step=step.name, action=type(step.action).__name__, inputs=step.inputs, needs=needs)


def _prospect(step: Step, store: Store) -> Outlook:
    held = store.find(step.key)
    why = "" if held else _why(provenance(step), store)
    return Outlook(step.name, step.key, type(step.action).__name__, held is not None, why, held.size if held else step.size)


def _why(wanted: Provenance, store: Store) -> str:
    nearest = store.nearest(wanted)
    if nearest is None:
        return FIRST
    before = nearest.manifest.provenance
    labels = sorted({*before.inputs, *wanted.inputs})
    pairs = [(label, before.inputs.get(label, "unset"), wanted.inputs.get(label, "unset")) for label in labels]
    changed = [f"{label}: {old} -> {new}" for label, old, new in pairs if old != new]
    changed += [f"its {name} changed" for name, key in wanted.needs.items() if before.needs.get(name) != key]
    return "; ".join(changed) or FIRST
