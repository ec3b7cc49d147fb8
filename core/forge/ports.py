"""What forge asks of the outside world. The adapters answer for real; ``forge.testing`` answers in miniature."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from forge.headers import Tensor
from forge.model import Checkpoint, Command, LimitsTable, Pinned, Scalar, Source
from forge.vitals import Healths, Pulse, Signs


@dataclass(frozen=True, slots=True)
class Event:
    """Something to show while work goes on.

    ``kind`` is one of: ``held`` (the store has the step), ``start``, ``progress`` (``done`` of ``total`` bytes), ``log`` (one
    line in ``text``), ``made`` (``seconds``, ``size`` in bytes), ``failed`` (``text`` what follows from it, or nothing),
    ``note`` (a sentence worth saying aloud). Those of several steps come mixed.
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


@runtime_checkable
class Sealing(Protocol):
    """An origin that can say more of a pin than every plan is worth asking for."""

    def sealed(self, pinned: Pinned) -> Pinned:
        """The pin as a lock keeps it."""
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
    """One command to run, and the real folder behind each of its constant paths: ``/forge/<name>`` by ``name``.

    ``promised`` files have to stand in ``/forge/out`` afterwards, none of them empty.
    """

    command: Command
    mounts: Mapping[str, Path]
    log: Path
    promised: tuple[str, ...] = ()


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
    openai: int = 0  # OpenAI's API; 0 where that is not served
    exposed: bool = False
    """Serve also where model control cannot be kept to forge: who reaches a port, or lists processes here, may run code."""

    @property
    def local(self) -> bool:
        """Whether only programs of this machine reach a server that listens there."""
        return self.host in {"localhost", "::1"} or re.fullmatch(r"127(\.\d{1,3}){3}", self.host) is not None


@dataclass(frozen=True, slots=True)
class Shelf:
    """One of the repositories of a server, and the folders in it that are its models' own."""

    repository: Path
    folders: tuple[str, ...] = ()


ORCHESTRATED = "in orchestrator mode"
"""One of the words of ``Launch.base``."""


@dataclass(frozen=True, slots=True)
class Launch:
    """All that starting a Triton needs.

    Three kinds: the twin's (``environment`` is the private Python environment, ``backends`` the backend folder), a Triton that
    is installed here with its own backends (``triton`` is its folder, neither of those two), and one in a container
    (``image`` names it; ``repository`` then stands at /forge/repository, each of several ``shelves`` at one of its own).
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
    ranks: int = 1  # GPUs that the largest of the models takes; llmapi's starts the processes of its parts itself
    room: bool = False
    """Start one engine so that others can be loaded beside it later: in orchestrator mode too."""
    unrestricted: bool = False
    """Leave out the options that keep model control to forge: this Triton does not know them."""
    host_network: bool = False
    """A container shares the machine's network, instead of having three ports of its own published."""
    shelves: tuple[Shelf, ...] = ()
    """Where the models stand in several repositories: all of them, ``repository`` being the first."""
    turns: tuple[tuple[str, ...], ...] = ()
    """Those of ``models`` that are loaded one group after the other once the rest are ready: an engine takes its share of the
    GPU memory that is free when it loads, and Triton keeps no order of its own."""

    @property
    def repositories(self) -> tuple[Path, ...]:
        return tuple(shelf.repository for shelf in self.shelves) or (self.repository,)

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
        own = (f"environment {self.environment or ''}", f"backends {self.backends or ''}", f"Triton {self.triton or ''}")
        return own if self.backends else (*own, mode)

    @property
    def orchestrated(self) -> bool:
        """Whether TensorRT-LLM starts the processes of its engines itself, instead of being started with all of them."""
        return len(self.engines) > 1 or (self.room and bool(self.engines))


@dataclass(frozen=True, slots=True)
class Running:
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
    nonce: str = ""
    """The server's id, drawn for this start: it says whether the one that answers is this one."""
    stranger: str = ""
    """Who answers at one of its addresses in its place, as a sentence; empty where nobody does."""

    @property
    def repositories(self) -> tuple[str, ...]:
        return (self.repository, *self.others)


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
        """Take ``models`` out of a server that runs, one after the other, each when its requests have been answered."""
        ...

    def current(self, marker: str) -> Running | None:
        """The server with this ``shared_memory`` as it is now; None where it has ended. Nothing is cleared away."""
        ...

    def watch(self, running: Running) -> None:
        """Have a process of its own look after the server's models (``forge.vigil``) until the server ends."""
        ...

    def ask(self, running: Running, deadline: float) -> tuple[Pulse, ...]:
        """Ask every model of a server for something tiny, all at once; each has ``deadline`` seconds to answer."""
        ...

    def signs(self, running: Running) -> Mapping[str, Signs]:
        """What is seen of each model without asking it; nothing while the server does not speak."""
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


@dataclass(frozen=True, slots=True)
class Request:
    """One generation to ask for; ``None`` leaves a value to the server. Lengths in tokens, ``seed`` below 2**64.

    Names and types that go over the wire are the model's own, read from its metadata: ``seed`` is ``random_seed`` where the
    model is of TensorRT-LLM 0.19, ``sampling_param_seed`` where it is llmapi's. What a model has no input for is refused.
    """

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
    """Texts: the answer ends before the first of them, whatever its tokens are. The model is told them too, to end there."""
    bad: tuple[str, ...] = ()
    """Texts that the model is told not to say, each with and without a blank before it. It knows them as tokens."""
    ends: tuple[str, ...] = ()
    """Special tokens, by their text, that end an answer beside the one that the server knows: stop words that nobody chose."""
    stream: bool = True
    tokens: tuple[int, ...] = ()
    """The prompt as token ids, for a model that takes no text (``tensorrt_llm``); ``prompt`` is then left empty."""
    n: int | None = None
    """How many sequences to give (``num_return_sequences``): so many samples; of a beam search, its so many best beams."""
    length_penalty: float | None = None
    early_stopping: bool | None = None
    beam_search_diversity_rate: float | None = None
    top_p_min: float | None = None
    top_p_decay: float | None = None
    top_p_reset_ids: int | None = None
    num_draft_tokens: int | None = None
    end_id: int | None = None
    pad_id: int | None = None
    return_log_probs: bool = False
    return_perf_metrics: bool = False
    return_token_counts: bool = False
    """What speculative decoding accepted, how many tokens there are; a model without such an input is asked all the same."""
    first_seconds: float = LimitsTable().max_first_seconds
    silent_seconds: float = LimitsTable().max_silent_seconds
    """How long the client waits: for the first response (or a whole answer that does not stream), and between two; 0: ever."""
    inputs: Mapping[str, Scalar | tuple[Scalar, ...]] = field(default_factory=dict[str, "Scalar | tuple[Scalar, ...]"])
    """Any other input by its name in the model's metadata. Texts are read as the metadata's type: "0.5" for an FP32."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What speculative decoding made of its drafts in one answer: tokens proposed, tokens kept, kept / proposed."""

    rate: float
    accepted: int = 0
    drafted: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer: a token, or several, as the model cuts it; ``text`` is new in a stream, the whole otherwise."""

    text: str
    final: bool = False
    _: KW_ONLY
    index: int = 0
    """Which sequence, where several are asked for (samples or beams)."""
    tokens: tuple[int, ...] = ()
    """New token ids, from a model that gives them (``tensorrt_llm``; NVIDIA's bls and ensemble give text only)."""
    log_probs: tuple[float, ...] = ()
    """Natural logarithm of each new token's probability, where asked for; of tokens too whose text is held back as yet."""
    cum_log_prob: float | None = None
    """The sequence's log-probability so far, where log-probabilities were asked for."""
    acceptance: Acceptance | None = None
    """What speculation accepted, where it was asked for and the model reports it."""
    input_tokens: int | None = None
    """Tokens of the prompt, where they were asked for and the model counts them (TensorRT-LLM 1.1 and later; the twin)."""
    output_tokens: int | None = None
    """New tokens, likewise; where one response brings several sequences, of all of them, in the first one's chunk."""
    whole: bool = False
    """The chunk states the sequence anew, in place of all before: beams of a stream, which may overtake each other."""
    seconds: float = field(default=0.0, compare=False)
    """From sending the request to the arrival of this chunk, by the client's clock."""
    stopped: bool = False
    """The sequence ends here before one of the request's stop texts; nothing more comes of it."""
    finish: str = ""
    """Why the sequence ended, from a model that says it (llmapi's: ``stop``, ``length``, ``timeout``, ``cancelled``)."""


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """An input or output as the server describes it; -1 in ``shape`` is any length, the batch first where there is one."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a served model takes and gives. ``decoupled``: it may answer more than once, so it can stream."""

    model: str
    inputs: Mapping[str, TensorMetadata]
    outputs: Mapping[str, TensorMetadata]
    decoupled: bool = True
    accumulates: bool = False
    """Each answer of a stream holds the whole text so far (bls with ``accumulate_tokens``, and every llmapi model)."""


class Client(Protocol):
    """Speaks KServe v2 to a served repository."""

    def generate(self, address: str, request: Request) -> Iterator[Chunk]:
        """Stream the answer; closing the iterator cancels the request. InferenceError for what the server refuses."""
        ...
