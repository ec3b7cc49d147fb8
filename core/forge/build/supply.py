"""What a build takes from the store that several machines share, and what it sends there."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from forge.events import Listener
from forge.plan.preview import provenance
from forge.plan.steps import Step, demanded
from forge.remote.cosign import PASSWORD
from forge.remote.place import Place
from forge.remote.shared import Pushed, Shared, kind
from forge.remote.signature import Notary, Signer, Trust
from forge.settings import PASSPHRASE, VARIABLES, RemoteTable
from forge.store.artifact import Artifact
from forge.store.store import Store


class Supplier(Protocol):
    """Where a build gets what it does not hold: a shared store, or machines that make it."""

    def supply(self, steps: Sequence[Step], missing: Sequence[Step], store: Store) -> "Supply":
        """Have what of ``missing`` the build of ``steps`` wants, as far as this can; what has to be made here is told."""
        ...

    def send(self, artifacts: Iterable[Artifact]) -> tuple[Pushed, ...]:
        """Offer what was made here to others, as far as that is allowed."""
        ...


class Supply(Struct, frozen=True):
    """What was taken, by key, and the keys of what has to be made all the same."""

    artifacts: dict[str, Artifact]
    lacking: frozenset[str]


def sharing(
    said: RemoteTable,
    place: Callable[[str, float], Place],
    tell: Listener,
    clock: Callable[[], float],
    notary: Notary,
) -> "Sharing | None":
    """What ``said`` allows with the shared store it names; None where it names none. ``place`` opens an address."""
    if said.url in ("", "none"):
        return None
    shared = Shared(lambda: place(said.url, said.deadline), said.url, tell, clock, notary=notary)
    return Sharing(shared, said.access == "read-write", said.push)


def notary(said: RemoteTable, base: Path, environ: Mapping[str, str], store: Store) -> Notary:
    """Who signs here, and whose signatures count; paths are relative to ``base``. No file is read before it is needed."""
    variable = VARIABLES["remote.sign"]
    named = variable if environ.get(variable) else "[remote] sign"
    signer = Signer(_placed(base, said.sign), environ.get(PASSPHRASE, ""), named, environ.get(PASSWORD)) if said.sign else None
    trust = Trust([_placed(base, each) for each in said.keys], needed=said.verify == "require")
    return Notary(signer, trust, store.find)


def _placed(base: Path, stated: str) -> Path:
    return base / Path(stated).expanduser()


class Sharing(Struct, frozen=True):
    """One shared store with what this person allows: ``writes``, and the kinds that are sent."""

    shared: Shared
    writes: bool
    kinds: tuple[str, ...]

    def require_signer(self) -> None:
        """RemoteError where what is made could not be signed and sent, though it has to be."""
        if self.writes and self.kinds and self.shared.notary.signer:
            self.shared.notary.signer.require()

    def has(self, keys: Sequence[str]) -> frozenset[str]:
        """Those of ``keys`` that stand there; none where it does not answer."""
        return self.shared.has(keys)

    def supply(self, steps: Sequence[Step], missing: Sequence[Step], store: Store) -> Supply:
        """Take what of ``missing`` the shared store has and the build wants. What only that would have needed is not made."""
        lacking = {step.key for step in missing}
        there = self.shared.has([step.key for step in missing if kind(provenance(step))])
        artifacts: dict[str, Artifact] = {}

        def has(step: Step) -> bool:
            if step.key in there and (taken := self.shared.take(step.key, step.name, store)):
                artifacts[step.key] = taken
            return step.key not in lacking or step.key in artifacts

        return Supply(artifacts, demanded(steps, has) & lacking - artifacts.keys())

    def send(self, artifacts: Iterable[Artifact]) -> tuple[Pushed, ...]:
        """Offer what was made here to the others, as far as that is allowed."""
        return self.shared.offer(tuple(artifacts), self.kinds) if self.writes else ()
