"""What forge asks of the outside world. The adapters answer for real; ``forge.testing`` answers in miniature."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from forge.headers import Tensor
from forge.model import Checkpoint, Command, Pinned, Source


@dataclass(frozen=True, slots=True)
class Event:
    """Something to show while work goes on.

    ``kind`` is one of: ``held`` (the store has the step), ``start``, ``progress`` (``done`` of ``total`` bytes), ``log`` (one
    line in ``text``), ``made`` (``seconds``, ``size`` in bytes), ``note`` (a sentence worth saying aloud).
    """

    kind: str
    step: str
    key: str = ""
    text: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    size: int = 0


Listener = Callable[[Event], None]
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


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


@dataclass(frozen=True, slots=True)
class Environment:
    """A private Python environment: an interpreter and what is installed into it."""

    python: str
    platform: str
    packages: tuple[str, ...]
    bare: tuple[str, ...] = ()
    """Installed without their dependencies."""


class Environments(Protocol):
    """Makes private Python environments."""

    def make(self, environment: Environment, interpreter: str, into: Path, log: Callable[[str], None]) -> None: ...


@dataclass(frozen=True, slots=True)
class Job:
    """One command to run, and the real folder behind each of its constant paths: ``/forge/<name>`` by ``name``."""

    command: Command
    mounts: Mapping[str, Path]
    log: Path


class Executor(Protocol):
    """Runs a step's command; raises StepError with the log's end and path when it does not exit with 0."""

    def run(self, job: Job, line: Callable[[str], None]) -> None: ...


@dataclass(frozen=True, slots=True)
class Ports:
    """The addresses of one server."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    host: str = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Launch:
    """All that starting a Triton needs.

    Three kinds: the twin's (``environment`` is the private Python environment, ``backends`` the backend folder), a Triton that
    is installed here with its own backends (``triton`` is its folder, neither of those two), and one in a container
    (``image`` names it; ``repository`` then stands at /forge/repository).
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
    world: int = 1
    """Processes that hold the parts of one engine: tensor parallel times pipeline parallel."""
    host_network: bool = False
    """A container shares the machine's network, instead of having three ports of its own published."""

    @property
    def orchestrated(self) -> bool:
        """Whether TensorRT-LLM starts the processes of its engines itself, instead of being started with all of them."""
        return len(self.engines) > 1


@dataclass(frozen=True, slots=True)
class Running:
    """A server that was started: what ``status``, ``logs`` and ``stop`` know of it."""

    repository: str
    pid: int
    """Of a container: its first process, as the container engine's machine numbers it."""
    started: float
    """The process's start time in clock ticks since boot, so that a recycled pid is not taken for the server; 0 where this
    machine does not see the process (a container engine in a virtual machine)."""
    ports: Ports
    models: tuple[str, ...]
    log: str
    shared_memory: str
    """Prefix of the shared-memory regions to clear away afterwards."""
    container: str = ""
    """Its name; empty for a process of this machine."""


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

    def stop(self, running: Running) -> None:
        """SIGINT, wait, then SIGKILL the group and clear its shared memory; returns when nothing is left."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """One generation to ask for; ``None`` leaves a value to the server. Lengths in tokens, ``seed`` below 2**64."""

    model: str
    prompt: str
    max_tokens: int
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    beam_width: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None
    stop: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    stream: bool = True


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. ``text`` is new text in a stream, the whole answer otherwise; the last chunk is ``final``."""

    text: str
    final: bool = False
    index: int = 0
    """Which sequence, where several are asked for (beams)."""


class Client(Protocol):
    """Speaks KServe v2 to a served repository."""

    def generate(self, address: str, request: Request) -> Iterator[Chunk]:
        """Stream the answer; closing the iterator cancels the request. InferenceError for what the server refuses."""
        ...
