"""All verdicts of one verification, the stages that are failing, and what to do next. Pure."""

from collections.abc import Mapping, Sequence
from functools import cache

from msgspec import Struct

from forge.files import texts
from forge.verify.judge import Outcome, Stage, Verdict
from forge.verify.tolerances import Tolerance


@cache
def next_steps() -> Mapping[Stage, str]:
    """Stage -> what to look at when it is at fault."""
    return texts.shipped("forge.verify", "next_steps.toml", dict[Stage, str])


class Report(Struct, frozen=True):
    """What came out. ``reference`` says who spoke for the checkpoint; ``notes`` what was left out and why."""

    model: str
    reference: str
    allowed: Tolerance
    verdicts: tuple[Verdict, ...]
    checks: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[Verdict, ...]:
        """Everything that differs by more than is allowed."""
        found = [each for each in (*self.verdicts, *self.checks) if each.outcome is Outcome.DIFFERS]
        forgiven = self._forgiven(found)
        return tuple(each for each in found if each.stage not in forgiven)

    @property
    def failing(self) -> tuple[Stage, ...]:
        """The stages with faults, in the order in which a request passes them: the first is where to begin."""
        return tuple(stage for stage in Stage if any(each.stage is stage for each in self.faults))

    @property
    def passed(self) -> bool:
        return not self.failing

    def _forgiven(self, found: Sequence[Verdict]) -> set[Stage]:
        """Stages in which a quantized model may say something else to a part of the prompts."""
        forgiven: set[Stage] = set()
        for stage in (Stage.ENGINE, Stage.PIPELINE):
            asked = [each for each in self.verdicts if each.stage is stage]
            bad = sum(each.stage is stage for each in found)
            if asked and bad <= self.allowed.diverging * len(asked):
                forgiven.add(stage)
        return forgiven
