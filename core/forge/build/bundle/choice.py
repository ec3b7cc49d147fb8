"""Which artifacts of a plan a bundle has to hold, so that a machine without a network makes the rest by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from forge.plan.preview import provenance
from forge.plan.steps import Assemble, Fetch, MakeEnvironment, Step, demanded
from forge.remote.shared import kind
from forge.remote.tarred import BundleError
from forge.store.artifact import Artifact
from forge.store.store import Store

WEIGHTS = "weights"
_PLAIN = {".json", ".jinja", ".model", ".tiktoken", ".txt"}
"""What of a fetched checkpoint an engine's entry links to: configs and tokenizers."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a bundle holds: artifacts as they are, and environments, of which two files are made anew."""

    artifacts: tuple[Artifact, ...]
    environments: tuple[Artifact, ...]

    @property
    def size(self) -> int:
        """Bytes, files that several share counted again."""
        return sum(one.size for one in (*self.artifacts, *self.environments))


def choose(steps: Sequence[Step], store: Store, kinds: Sequence[str]) -> Chosen:
    """What of ``steps``, all of them held, has to be in a bundle that may hold ``kinds``.

    BundleError with all that would be needed and may not be in it.
    """
    portable = {step.key for step in steps if isinstance(step.action, MakeEnvironment) or kind(provenance(step)) in kinds}
    entries = [step for step in steps if isinstance(step.action, Assemble)]
    # An entry is links to other artifacts, and laid anew from them; where they may not go, it goes itself if it has no weights.
    portable |= {step.key for step in entries if _private(step, portable) and not _weighs(step, store, portable)}
    wanted = demanded(steps, lambda step: step.key in portable)
    if refused := [step for step in steps if step.key in wanted - portable and isinstance(step.action, Fetch)]:
        told = ", ".join(f"{step.name} ({_artifact(step, store).size:,} bytes)" for step in refused)
        hint = "`--with weights` puts it in for once; push under [remote] in the config file allows it for good"
        what = f"the bundle would have to hold what was fetched, which may be gated or somebody's own: {told}"
        raise BundleError(what, hint=hint)
    held = [(step, _artifact(step, store)) for step in steps if step.key in wanted & portable]
    return Chosen(
        tuple(artifact for step, artifact in held if not isinstance(step.action, MakeEnvironment)),
        tuple(artifact for step, artifact in held if isinstance(step.action, MakeEnvironment)),
    )


def _private(step: Step, portable: set[str]) -> bool:
    """Whether making it takes what may not be in the bundle."""
    if step.key in portable:
        return False
    return isinstance(step.action, Fetch) or any(_private(need, portable) for _, need in step.needs)


def _weighs(entry: Step, store: Store, portable: set[str]) -> bool:
    """Whether an entry holds more of what may not go than configs and tokenizers."""
    own = {
        file.blake3
        for _, need in entry.needs
        if _private(need, portable)
        for file in _artifact(need, store).files()
        if file.kind == "file" and PurePosixPath(file.path).suffix not in _PLAIN
    }
    return any(file.blake3 in own for file in _artifact(entry, store).files() if file.kind == "file")


def _artifact(step: Step, store: Store) -> Artifact:
    held = store.find(step.key)
    if held is None:
        raise BundleError(f"{step.name} is gone from the store", hint="run `forge bundle` again")
    return held
