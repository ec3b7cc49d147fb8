"""What a build takes from a bundle: all that is in it and wanted; what neither is nor can be made here ends it beforehand."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from forge.build.bundle.contents import Contents
from forge.build.bundle.opened import Opened
from forge.build.bundle.replay import OWN
from forge.build.supply import Sharing, Supply
from forge.events import Listener
from forge.plan.preview import provenance
from forge.plan.steps import Fetch, MakeEnvironment, Step, demanded
from forge.remote import record
from forge.remote.place import RemoteError
from forge.remote.record import Rotten
from forge.remote.shared import Pushed, Shared
from forge.remote.tarred import BundleError, Packed, damaged
from forge.store.artifact import Artifact, Provenance
from forge.store.store import Store

_HINT = "bundle it where the recipe says what this machine is, or build it with a network (without --bundle)"


class PackedSharing(Sharing, frozen=True):
    """A bundle as the store that a build takes from."""

    packed: Packed
    contents: Contents

    def has(self, keys: Sequence[str]) -> frozenset[str]:
        """Those of ``keys`` whose artifacts are in the bundle as they were made."""
        return frozenset(keys) & (self.contents.records.keys() - set(self.contents.environments))

    def supply(self, steps: Sequence[Step], missing: Sequence[Step], store: Store) -> Supply:
        """Take what of ``missing`` the build wants and the bundle has; BundleError where the rest cannot be made from it."""
        lacking = {step.key for step in missing}
        there = self.has([step.key for step in missing])
        wanted = demanded(steps, lambda step: step.key not in lacking or step.key in there)
        self._require([step for step in steps if step.key in wanted & lacking - there])
        artifacts = {step.key: self._taken(step, store) for step in steps if step.key in wanted & there}
        return Supply(artifacts, wanted & lacking - artifacts.keys())

    def send(self, artifacts: Iterable[Artifact]) -> tuple[Pushed, ...]:  # noqa: ARG002 - a bundle is what it is
        return ()

    def _taken(self, step: Step, store: Store) -> Artifact:
        try:
            taken = self.shared.pull(step.key, store)
        except RemoteError as error:
            raise damaged(error.what, Path(self.packed.name)) from error
        if taken is None:
            raise damaged(f"{step.name} is missing", Path(self.packed.name))
        return taken

    def _require(self, steps: Sequence[Step]) -> None:
        """BundleError where one of ``steps``, which have to be made here, takes what only a network has."""
        impossible = [
            step
            for step in steps
            if isinstance(step.action, Fetch)
            or (isinstance(step.action, MakeEnvironment) and step.key not in self.contents.environments)
        ]
        if not impossible:
            return
        reasons = list(dict.fromkeys(reason for step in steps for reason in self._differences(step)))
        names = ", ".join(dict.fromkeys(step.name for step in impossible))
        what = f"the bundle does not hold {names}, which this build would need"
        told = "".join(f"\n    {reason}" for reason in reasons)
        raise BundleError(f"{what}{told}", where=self.packed.name, hint=_HINT)

    def _differences(self, step: Step) -> Iterator[str]:
        """What sets a step apart from the one of its name in the bundle."""
        wanted = provenance(step)
        for made in self._made():
            changed = made.changed(wanted) if (made.step, made.action) == (wanted.step, wanted.action) else []
            if changed:
                told = "; ".join(f"{label} is {old} in the bundle, {new} here" for label, old, new in changed)
                yield f"{step.name}: {told}"

    def _made(self) -> Iterator[Provenance]:
        for key in self.contents.records:
            try:
                yield record.decode(key, self.packed.record(key) or b"", OWN)[1].provenance
            except Rotten as error:
                raise damaged(str(error), Path(self.packed.name)) from error


def supplied(bundle: Opened, tell: Listener, clock: Callable[[], float]) -> PackedSharing:
    """What a build over ``bundle`` takes from."""
    packed = bundle.packed
    shared = Shared(lambda: packed, packed.name, tell, clock, "the bundle")
    return PackedSharing(shared, writes=False, kinds=(), packed=packed, contents=bundle.contents)
