"""What starting, watching and stopping a Triton takes and gives."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct, field

from forge.errors import ServerError
from forge.schema.values import Command, Ports
from forge.serve.vitals import Healths, Pulse, Signs, Stance, Usage


class RepositoryFolders(Struct, frozen=True):
    """One of the repositories of a server, and the folders in it that are its models' own."""

    repository: Path
    folders: tuple[str, ...] = ()


ORCHESTRATED = "in orchestrator mode"
"""One of the words of ``Launch.base``."""


class Launch(Struct, frozen=True):
    """All that starting a Triton needs.

    Three kinds: the twin's (``environment`` is the private Python environment, ``backends`` the backend folder; ``vllm`` is the
    environment of vLLM's own process where the backend is its), a Triton that
    is installed here with its own backends (``triton`` is its folder, neither of those two), and one in a container
    (``image`` names it; ``repository`` then stands at /forge/repository, each of ``several`` at one of its own).
    """

    repository: Path
    models: tuple[str, ...]
    environment: Path | None = None
    backends: Path | None = None
    ports: Ports = field(default_factory=Ports)
    triton: str = ""
    detach: bool = False
    """The server outlives this process; otherwise it ends with it, however it ends."""
    image: str = ""
    gpus: str = ""
    """For a container: ``all``, or device numbers or ids joined by commas; empty for none."""
    engines: tuple[str, ...] = ()
    """The ones of ``models`` that TensorRT-LLM's own C++ backend serves: two of them in one server need its orchestrator."""
    world: int = 1  # processes that hold the parts of one engine: tensor parallel times pipeline parallel
    ranks: int = 1  # GPUs that the largest of the models takes; llmapi's starts the processes of its parts itself
    room: bool = False  # start one engine so that others can be loaded beside it later: in orchestrator mode too
    unrestricted: bool = False  # leave out the options that keep model control to forge: this Triton does not know them
    host_network: bool = False  # a container shares the machine's network, instead of having three ports of its own published
    several: tuple[RepositoryFolders, ...] = ()
    """Where the models stand in several repositories: all of them, ``repository`` being the first."""
    vllm: Path | None = None
    turns: tuple[tuple[str, ...], ...] = ()
    """Those of ``models`` that are loaded one group after the other once the rest are ready: an engine takes its share of the
    GPU memory that is free when it loads, and Triton keeps no order of its own."""

    entries: Mapping[str, str] = field(default_factory=dict[str, str])
    """Model -> the key of what it is published from."""

    @property
    def repositories(self) -> tuple[Path, ...]:
        return tuple(part.repository for part in self.several) or (self.repository,)

    @property
    def first(self) -> tuple[str, ...]:
        """The models that are loaded as the server starts."""
        later = {model for turn in self.turns for model in turn}
        return tuple(model for model in self.models if model not in later)

    @property
    def base(self) -> tuple[str, ...]:
        """What cannot change while the server runs, in words for a person; a launch that differs needs a server of its own."""
        mode = ORCHESTRATED if self.orchestrated else f"with {self.world} process{'es' * (self.world > 1)}"
        if self.image:
            return (f"image {self.image}", f"GPUs {self.gpus or 'none'}", mode)
        vllm = (f"vLLM {self.vllm}",) if self.vllm else ()
        own = (f"environment {self.environment or ''}", f"backends {self.backends or ''}", f"Triton {self.triton or ''}", *vllm)
        return own if self.backends else (*own, mode)

    @property
    def orchestrated(self) -> bool:
        """Whether TensorRT-LLM starts the processes of its engines itself, instead of being started with all of them."""
        return len(self.engines) > 1 or (self.room and bool(self.engines))


class Crash(Struct, frozen=True):
    """A Triton that died: when, in seconds since 1970, and of what."""

    at: float
    why: str


def stop_line(repository: str | Path) -> str:
    """What ends the server on ``repository``, from wherever it is typed."""
    return f"forge stop --repository {shlex.quote(str(repository))}"


class Running(Struct, frozen=True):
    """A server that was started: what ``status``, ``logs`` and ``stop`` know of it."""

    repository: str
    pid: int
    """Of a container: its first process, as the container engine's machine numbers it."""
    started: float
    """Its start in clock ticks since boot: a recycled pid is not the server. 0 where it is seen from another machine only."""
    ports: Ports
    models: tuple[str, ...]
    log: str
    shared_memory: str
    """Prefix of the shared-memory regions to clear away afterwards."""
    container: str = ""  # its name; empty for a process of this machine
    others: tuple[str, ...] = ()  # the further repositories that it serves
    base: tuple[str, ...] = ()  # what it was started on (see ``Launch.base``)
    front: int = 0  # the process that keeps OpenAI's API up; 0 where none does
    front_started: float = 0.0  # when that one started, as ``started``
    nonce: str = ""  # the server's id, drawn for this start: it says whether the one that answers is this one
    vigil: int = 0  # the process that starts it again where it dies; 0 where none does
    vigil_started: float = 0.0  # when that one started, as ``started``
    crashes: tuple[Crash, ...] = ()  # how its Triton died since `forge serve`, each time
    awaited: tuple[str, ...] = ()  # models that it is to have while it is being started; empty when it is ready
    missing: tuple[str, ...] = ()  # models that it had before it died, and that the repository no longer had afterwards
    down: str = ""  # why it does not answer just now, as a sentence: it has died and is started again, or is stopped
    stranger: str = ""  # who answers at one of its addresses in its place, as a sentence; empty where nobody does

    inode: int = 0
    """Of its log, by which that is found where it was renamed; 0 of one that an older forge has started."""
    loaded: Mapping[str, str] = field(default_factory=dict[str, str])
    """Model -> the key of what it was loaded from; nothing of one that an older forge has loaded."""

    @property
    def repositories(self) -> tuple[str, ...]:
        return (self.repository, *self.others)


class Way(Protocol):
    """One way to run a Triton. ``pause`` is how many seconds to wait between two looks whether it is ready."""

    pause: float

    def command(self, launch: Launch, running: Running) -> Command: ...
    def inside(self, launch: Launch) -> Ports: ...
    def check(self, launch: Launch) -> None: ...
    def gpus(self) -> int: ...
    def guarded(self) -> dict[str, str]: ...
    def begin(self, launch: Launch, running: Running) -> Running: ...
    def furnish(self, launch: Launch, running: Running) -> None: ...
    def alive(self, running: Running) -> bool: ...
    def ended(self, running: Running) -> str: ...
    def died(self, running: Running) -> str: ...
    def stands(self, running: Running) -> bool: ...
    def kill(self, running: Running) -> None: ...
    def end(self, running: Running, patience: float) -> None: ...


class StartingError(ServerError):
    """Another forge is starting a server on this repository just now."""


class Server(Protocol):
    """Starts, watches and stops a Triton on this machine."""

    def command(self, launch: Launch) -> Command:
        """The exact command line and environment that ``start`` would use."""
        ...

    def start(self, launch: Launch, line: Callable[[str], None]) -> Running:
        """Start and wait until every model is ready; ServerError says which is not, with its part of the log."""
        ...

    def running(self) -> tuple[Running, ...]:
        """The servers that are alive, whoever started them."""
        ...

    def load(self, running: Running, launch: Launch, models: Sequence[str], line: Callable[[str], None]) -> Running:
        """Load ``models`` of ``launch`` into a server that runs, one after the other: what runs under a name goes on until its
        successor is ready. ServerError names the one that did not load, and why; the server as it is then. What there is to
        say of them besides is told to ``line``."""
        ...

    def unload(self, running: Running, models: Sequence[str]) -> Running:
        """Take ``models`` out of a server that runs, one after the other, each when its requests have been answered; those
        that it does not have are passed over, noted or not."""
        ...

    def current(self, marker: str) -> Running | None:
        """The server with this ``shared_memory`` as it is now; None where it has ended. Nothing is cleared away."""
        ...

    def settled(self, running: Running, model: str) -> Running:
        """The server once it has ``model`` ready, or nobody starts it or changes its models any more. ServerError where it has
        ended by then."""
        ...

    def watch(self, running: Running, *, restart: bool, scrub: float) -> Running:
        """Have a process of its own look after the server (``forge.api.vigil``) until that ends: with ``restart`` after models
        that die and after Triton itself, and after files that were not read for ``scrub`` seconds (0: after none)."""
        ...

    def postmortem(self, marker: str) -> tuple[Running, str] | None:
        """The server with this mark that does not run, and of what it died, empty where it was asked to end; None where
        nobody knows of one."""
        ...

    def crashed(self, running: Running, crash: Crash) -> Running:
        """Note it."""
        ...

    def again(self, running: Running, launch: Launch, line: Callable[[str], None]) -> Running | None:
        """Start one that died as it was, with the models that it had; ServerError as ``start``, and then nothing of it runs.
        None where nobody wants it any more."""
        ...

    def give_up(self, running: Running, why: str) -> None:
        """Clear away one that died, and note ``why`` for ``ended``."""
        ...

    def ended(self) -> Mapping[str, str]:
        """Repository -> why its server ended, where that was no wish of anybody; until the next start, or stop, there."""
        ...

    def ask(self, running: Running, deadline: float) -> tuple[Pulse, ...]:
        """Ask every model of a server for something tiny, all at once; each has ``deadline`` seconds to answer."""
        ...

    def signs(self, running: Running) -> Mapping[str, Signs] | None:
        """What is seen of each model that is loaded, without asking it; None while the server does not speak."""
        ...

    def stance(self, running: Running) -> Stance:
        """How its Triton is as a whole: whether it speaks, or somebody has stopped it, and what it has used."""
        ...

    def kill(self, running: Running) -> None:
        """End a Triton that hangs, as a signal would; what it leaves stays, for ``postmortem`` and ``again``."""
        ...

    def usage(self, running: Running) -> Usage:
        """Since when it runs, what it and its models hold in memory, and how often each was asked, as far as that is seen."""
        ...

    def restart(self, running: Running, launch: Launch, models: Sequence[str]) -> Running:
        """Take ``models`` out, whatever state their processes are in, and load them again, in the order that is given. Their
        requests are lost. ServerError names the one that did not load; the server as it is then."""
        ...

    def health(self, running: Running) -> Healths:
        """What was noted of its models by whoever watches over it."""
        ...

    def note(self, running: Running, healths: Healths) -> None:
        """Note it, for ``health``."""
        ...

    def stop(self, running: Running) -> None:
        """SIGINT, wait, then SIGKILL the group and clear its shared memory; returns when nothing is left."""
        ...
