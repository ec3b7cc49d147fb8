"""Which artifacts of a plan a bundle has to hold, so that a machine without a network makes the rest by itself."""

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from msgspec import Struct

from forge.plan.preview import provenance
from forge.plan.steps import Assemble, Fetch, MakeEnvironment, Step, demanded
from forge.remote.shared import kind
from forge.remote.tarred import BundleError
from forge.store.artifact import Artifact

WEIGHTS = "weights"
_PLAIN = {".json", ".jinja", ".model", ".tiktoken", ".txt"}
"""What of a fetched checkpoint an engine's entry links to: configs and tokenizers."""


class Chosen(Struct, frozen=True):
    """What a bundle holds: artifacts as they are, and environments, of which two files are made anew."""

    artifacts: tuple[Artifact, ...]
    environments: tuple[Artifact, ...]

    @property
    def size(self) -> int:
        """Bytes, files that several share counted again."""
        return sum(one.size for one in (*self.artifacts, *self.environments))


def choose(steps: Sequence[Step], kinds: Sequence[str]) -> tuple[Step, ...]:
    """Those of ``steps`` whose results have to be in a bundle that may hold ``kinds``.

    BundleError with all that would be needed and may not be in it.
    """
    portable = {step.key for step in steps if isinstance(step.action, MakeEnvironment) or kind(provenance(step)) in kinds}
    # An entry is links to other artifacts, and laid anew from them; where they may not go, it goes itself if it has no weights.
    portable |= {step.key for step in steps if _private(step, portable) and _weightless(step, portable)}
    wanted = demanded(steps, lambda step: step.key in portable)
    if refused := [step for step in steps if step.key in wanted - portable and isinstance(step.action, Fetch)]:
        told = ", ".join(f"{step.name} ({step.size:,} bytes)" if step.size else step.name for step in refused)
        hint = "`--with weights` puts it in for once; push under [remote] in the config file allows it for good"
        what = f"the bundle would have to hold what was fetched, which may be gated or somebody's own: {told}"
        raise BundleError(what, hint=hint)
    return tuple(step for step in steps if step.key in wanted & portable)


def held(steps: Sequence[Step], hold: Callable[[Step], Artifact]) -> Chosen:
    """The results of what was chosen; ``hold`` gives one, made if need be."""
    found = [(isinstance(step.action, MakeEnvironment), hold(step)) for step in steps]
    return Chosen(tuple(artifact for anew, artifact in found if not anew), tuple(artifact for anew, artifact in found if anew))


def _private(step: Step, portable: set[str]) -> bool:
    """Whether making it takes what may not be in the bundle."""
    if step.key in portable:
        return False
    return isinstance(step.action, Fetch) or any(_private(need, portable) for _, need in step.needs)


def _weightless(step: Step, portable: set[str]) -> bool:
    """Whether it is an entry that holds no more of what may not go than configs and tokenizers."""
    private = {name for name, need in step.needs if _private(need, portable)}
    return isinstance(step.action, Assemble) and all(
        PurePosixPath(link.path).suffix in _PLAIN for link in step.action.links if link.need in private
    )
