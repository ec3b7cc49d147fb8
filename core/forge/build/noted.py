"""Which builds can be noted as done, and what their plans were read from (see ``forge.build.unchanged``)."""

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from msgspec import Struct

import forge
from forge.build.together import Joint
from forge.build.unchanged import DoneBuild, Held, Inputs, Model, Notes, Question, look
from forge.machine.environments import INSTALLED_TRITON
from forge.plan import families
from forge.plan.resolved import Resolved
from forge.plan.steps import Step
from forge.schema.manifest import PublishedModel
from forge.schema.twin_environment import PYTHONS
from forge.schema.values import RuntimeKind, SourceKind
from forge.store.store import Store


class BuildNotes(Struct, frozen=True):
    """Writes notes where all that a plan stands on can be named: no image, no network, no local checkpoint, no GPU."""

    notes: Notes
    store: Store

    def before(self, joint: Joint) -> Inputs:
        """What a plan is about to be read from; looked at first, so that a change on the way makes the note void."""
        recipes = [joint.path(member).absolute() for member in joint.stated.members]
        texts = [*recipes, *(recipe.with_name(f"{recipe.name}.lock") for recipe in recipes)]
        return look([*texts, joint.file.absolute()] if joint.file else texts, _code())

    def after(self, question: Question, inputs: Inputs, all_resolved: Sequence[Resolved], done: DoneBuild) -> None:
        """Note a build that has just been published, where it can be."""
        if all(_is_settled(resolved) for resolved in all_resolved):
            self.notes.keep(question, inputs, done)

    def done(self, place: Path, models: Iterable[PublishedModel], steps: Iterable[Step]) -> DoneBuild:
        """What a build has published, and what that stands on."""
        held = tuple(found for step in steps if (found := self._held(step)))
        told = tuple(Model(m.name, {str(role): name for role, name in m.roles.items()}, m.entry) for m in models)
        return DoneBuild(str(place), told, held)

    def _held(self, step: Step) -> Held | None:
        artifact = self.store.find(step.key)
        return Held(step.name, str(artifact.path.parent), artifact.size, "") if artifact else None


def _is_settled(resolved: Resolved) -> bool:
    """Whether texts and code say everything: served by the twin, from what a version or a lock nails down."""
    recipe, host = resolved.recipe, resolved.facts.host
    plain = recipe.runtime.kind is RuntimeKind.TWIN and not recipe.convert.calibration and not recipe.verify.on_build
    pinned = all(
        source.kind is SourceKind.WHEEL or (resolved.locked and source.kind in (SourceKind.HUB, SourceKind.GIT))
        for source in (recipe.source, recipe.draft)
        if source
    )
    return plain and pinned and host.python in PYTHONS and not host.triton


def _code() -> Iterator[Path]:
    """forge, every installed plugin (any may serve a recipe that names none), and a Triton that would be preferred."""
    yield Path(forge.__file__).parent
    yield INSTALLED_TRITON
    for module in families.modules():
        spec = find_spec(module)
        if spec is None:
            continue  # it does not load now; installing what it lacks changes what is installed
        yield from map(Path, spec.submodule_search_locations or ([spec.origin] if spec.origin else []))
