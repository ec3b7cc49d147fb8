"""What forge looks at on the machine that it runs on; ``adapters.machine`` looks for real."""

from pathlib import Path
from typing import Protocol

from msgspec import Struct

from forge.schema.values import Environment, Gpu, Host


class Disk(Struct, frozen=True):
    """The filesystem behind a folder that may not be there yet. ``free`` in bytes; ``device`` tells filesystems apart."""

    place: str
    free: int
    device: int = 0


class Machine(Protocol):
    """This machine. Nothing here fails because something is missing: that is an answer."""

    def driver(self) -> str:
        """The version of the loaded NVIDIA driver, empty without one."""
        ...

    def gpus(self) -> tuple[Gpu, ...]:
        """NVIDIA's, with no memory and no capability where only the driver could be asked."""
        ...

    def inside(self) -> bool:
        """Whether TensorRT-LLM's own programs are here: forge runs inside NVIDIA's container, and needs none around it."""
        ...

    def disk(self, folder: Path) -> Disk: ...

    def shared_memory(self) -> int:
        """Free bytes of POSIX shared memory (/dev/shm); 0 where there is none."""
        ...

    def host(self) -> Host:
        """What serves the twin here."""
        ...

    def restricts(self, triton: str) -> bool:
        """Whether the Triton in that folder can keep model control from who reaches its ports; no folder: the twin's can."""
        ...

    def traces(self) -> bool:
        """Whether programs may be traced here, by which forge keeps a server's secret out of lists of processes."""
        ...

    def check(self, environment: Environment) -> None:
        """HostError where this machine cannot hold a serving environment."""
        ...
