"""What a check looks at: a model repository as values, read by ``forge.check.check``. Nothing here touches the disk."""

import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import cast

from msgspec import Struct, field

from forge.check.literals import names
from forge.recipe.deployment import Deployed
from forge.repository.config import ROOT
from forge.schema.adapters import AdapterFolder
from forge.schema.manifest import Manifest, PublishedModel
from forge.schema.values import Gpu

SENTENCE_PIECE = (".model", ".spm")


class Kind(StrEnum):
    """What a model is for, whoever made it and whatever it is called."""

    ENSEMBLE = "ensemble"
    PREPROCESSING = "preprocessing"
    ENGINE = "engine"
    POSTPROCESSING = "postprocessing"
    BLS = "bls"
    LLMAPI = "llmapi"
    VLLM = "vllm"
    OTHER = "other"


class Tensor(Struct, frozen=True):
    """One input or output of a model. ``dims`` without the batch; ``type`` as Triton writes it (``TYPE_INT32``)."""

    name: str
    type: str
    dims: tuple[int, ...] = ()
    optional: bool = False


class Step(Struct, frozen=True):
    """One step of an ensemble: the model's tensor -> the ensemble's."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


class Config(Struct, frozen=True):
    """A config.pbtxt, as far as the rules look. ``instances`` is the sum over its instance groups, 1 where it has none."""

    name: str
    backend: str
    ensemble: bool
    max_batch_size: int
    decoupled: bool
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, str]
    instances: int
    gpu: bool  # whether an instance group is of KIND_GPU
    steps: tuple[Step, ...]
    file: str = ""
    """default_model_filename; empty where it is the backend's own."""
    queued: bool = True
    """Whether a batcher keeps the requests that wait."""
    guessed: bool = False
    """Whether the file does not parse and was read for what can be read: its max_batch_size and decoupled say nothing then."""

    def stated(self, key: str) -> str:
        """A parameter's text; empty where it is absent, or a placeholder that nobody filled."""
        value = self.parameters.get(key, "")
        return "" if value.startswith("${") else value

    def tensors(self) -> Iterator[Tensor]:
        yield from self.inputs
        yield from self.outputs


class Model(Struct, frozen=True):
    """One folder that holds a model, or should. ``broken`` says why config.pbtxt cannot be read; ``config`` is what can
    be read of it all the same, or None."""

    folder: str
    text: str
    config: Config | None
    broken: str = ""
    versions: tuple[str, ...] = ()
    """Its version folders, as Triton counts them: names that are numbers."""
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    """Its Python files, model.yaml and model.json: path in the folder -> text."""
    arguments: Mapping[str, object] = field(default_factory=dict[str, object])
    """What model.yaml says, or a vLLM model's model.json, where there is one that can be read."""

    @property
    def file(self) -> str:
        """Where its config.pbtxt stands, relative to the repository."""
        return f"{self.folder}/config.pbtxt"

    @property
    def code(self) -> str:
        """The Python file that Triton's Python backend would load, relative to the folder; empty where it is not there."""
        name = (self.config and self.config.file) or "model.py"
        places = (*(f"{version}/{name}" for version in sorted(self.versions, key=int, reverse=True)), name)
        return next((place for place in places if place in self.sources), "")


class EngineFolder(Struct, frozen=True):
    """What stands where a config says that an engine is; lengths in tokens."""

    shown: str
    """Where it was found, relative to the repository if it is inside."""
    files: Mapping[str, int] = field(default_factory=dict[str, int])
    """Name -> bytes, of the folder's own files."""
    config: Mapping[str, object] = field(default_factory=dict[str, object])
    limits: Mapping[str, object] = field(default_factory=dict[str, object])
    """build_config of the engine; for the twin what build_config.json says."""
    broken: str = ""
    """Why its config.json cannot be read."""

    @property
    def built(self) -> bool:
        """Whether it is TensorRT-LLM's, and not the checkpoint that the twin reads."""
        return "pretrained_config" in self.config

    @property
    def twin(self) -> bool:
        """Whether it is the checkpoint that forge's twin reads."""
        return "architectures" in self.config and not self.built

    @property
    def version(self) -> str:
        """TensorRT-LLM's version that built it; empty where it does not say."""
        return str(self.config.get("version") or "") if self.built else ""

    @property
    def model(self) -> Mapping[str, object]:
        """What it says of the model: TensorRT-LLM's pretrained_config, or Hugging Face's config.json."""
        return table(self.config.get("pretrained_config")) if self.built else self.config

    @property
    def vocabulary(self) -> int:
        return number(self.model.get("vocab_size"))

    @property
    def ranks(self) -> int:
        """How many processes it was built for."""
        mapping = table(self.model.get("mapping"))
        sizes = [number(mapping.get(name)) or 1 for name in ("tp_size", "pp_size", "cp_size")]
        return max(number(mapping.get("world_size")), prod(sizes)) if self.built else 1

    def limit(self, name: str) -> int:
        """A limit that it was built with; 0 where it does not say."""
        return number(self.limits.get(name))

    def plugin(self, name: str) -> object:
        """A setting of the build's plugin_config; None where it does not say."""
        return table(self.limits.get("plugin_config")).get(name)


class BrokenTemplate(Struct, frozen=True):
    """A chat template that jinja cannot read: in which ``line`` of which ``file`` of the tokenizer's folder, and why."""

    file: str
    line: int
    why: str


class TokenizerFolder(Struct, frozen=True):
    """What stands where a config says that a tokenizer is. ``ids`` are those of the special tokens that settings name."""

    shown: str
    files: Mapping[str, int] = field(default_factory=dict[str, int])
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    generation: Mapping[str, object] = field(default_factory=dict[str, object])
    broken: Mapping[str, str] = field(default_factory=dict[str, str])
    """File -> why it is no tokenizer's."""
    ids: Mapping[str, int] = field(default_factory=dict[str, int])
    """``eos_token``, ... -> its id in tokenizer.json."""
    largest: int = -1
    """The largest id in tokenizer.json; -1 without one."""
    strips: bool = False
    """Whether it drops the blank at the start of what it decodes, as SentencePiece does."""
    template: BrokenTemplate | None = None
    """Its chat template, where that cannot be read."""


class Fault(Struct, frozen=True):
    """A file whose bytes are not what its name promises."""

    path: str
    what: str


class Repository(Struct, frozen=True, dict=True):
    """All that is known of one model repository. ``image`` is the serving image's reference, empty where nobody says."""

    root: str
    models: tuple[Model, ...]
    engines: Mapping[str, EngineFolder] = field(default_factory=dict[str, EngineFolder])
    """By the path that a config states; those that are there. So are ``adapters``, ``loras`` and ``tokenizers``."""
    adapters: Mapping[str, AdapterFolder] = field(default_factory=dict[str, AdapterFolder])
    loras: Mapping[str, Mapping[str, object]] = field(default_factory=dict[str, Mapping[str, object]])
    """What adapter_config.json says in the folders of vLLM's adapters, by their whole path."""
    guides: frozenset[str] = frozenset()
    """The stated files for guided decoding that are there."""
    tokenizers: Mapping[str, TokenizerFolder] = field(default_factory=dict[str, TokenizerFolder])
    strays: tuple[str, ...] = ()
    """Folders at the top that hold no config.pbtxt, also those whose names begin with a dot."""
    faults: tuple[Fault, ...] = ()
    manifest: Manifest | None = None
    image: str = ""
    trtllm: str = ""
    """TensorRT-LLM's version in that image; empty where the compatibility table does not know it."""
    architectures: Mapping[str, str] = field(default_factory=dict[str, str])
    """Published model -> the GPU that its engine was built for (``sm_89``), as the store remembers."""
    gpus: tuple[Gpu, ...] = ()
    deployed: Deployed | None = None
    unrestricted: str = ""
    """The folder of the Triton that forge would serve it with, where that cannot keep model control from its ports' users."""

    @cached_property
    def by_folder(self) -> Mapping[str, Model]:
        return {model.folder: model for model in self.models}

    @cached_property
    def kinds(self) -> Mapping[str, Kind]:
        return {model.folder: kind(model) for model in self.models}

    @cached_property
    def _published(self) -> Mapping[str, PublishedModel]:
        return {folder: held for held in (self.manifest.models if self.manifest else ()) for folder in held.roles.values()}

    def served_by(self, model: Model) -> PublishedModel | None:
        """The published model that a folder belongs to; None in a repository that forge did not make."""
        return self._published.get(model.folder)

    @cached_property
    def asked(self) -> Mapping[str, Mapping[str, str]]:
        """Folder of a bls model -> whom it asks: ``engine``, ``preprocessing``, ... -> a model's name."""
        return {model.folder: _asked(model, config) for model, config in self.of(Kind.BLS)}

    def of(self, wanted: Kind) -> Iterator[tuple[Model, Config]]:
        """The models of one kind, those whose config can be read."""
        return ((model, config) for model, config in self.readable() if self.kinds[model.folder] is wanted)

    def checkpoint(self, model: Model) -> EngineFolder | None:
        """What stands where a vLLM model's model.json says that its model is; None where nothing does."""
        return self.engines.get(stated_path(self.root, model, model.arguments.get("model")))

    def holds(self, path: str) -> bool:
        """Whether a path that a config states leads into it, as this machine or the server's container sees it."""
        return path.startswith((f"{ROOT}/", f"{self.root}/"))

    def readable(self) -> Iterator[tuple[Model, Config]]:
        for model in self.models:
            if model.config is not None:
                yield model, model.config

    def engine(self, config: Config, key: str = "gpt_model_path") -> EngineFolder | None:
        """The engine that a config names, where it was found."""
        return self.engines.get(config.stated(key))

    def tokenizer(self, config: Config) -> TokenizerFolder | None:
        return self.tokenizers.get(config.stated("tokenizer_dir"))

    @cached_property
    def chains(self) -> tuple["Chain", ...]:
        """Who works together: through ensembles, and through bls models."""
        ensembles = (self._chain(model, [step.model for step in config.steps]) for model, config in self.of(Kind.ENSEMBLE))
        return (*ensembles, *(self._chain(model, self.asked[model.folder].values()) for model, _ in self.of(Kind.BLS)))

    def _chain(self, head: Model, asked: Iterable[str]) -> "Chain":
        """``head`` with the first of each kind among those that it asks."""
        there = [self.by_folder[name] for name in asked if name in self.by_folder]
        return Chain(head, *(next((each for each in there if self.kinds[each.folder] is wanted), None) for wanted in _MEMBERS))


_MEMBERS = (Kind.PREPROCESSING, Kind.ENGINE, Kind.POSTPROCESSING)


class Chain(Struct, frozen=True):
    """One way through a repository: who is asked, and its members; None where one is missing or cannot be read."""

    head: Model
    preprocessing: Model | None
    engine: Model | None
    postprocessing: Model | None


def kind(model: Model) -> Kind:
    """What a model is, by what it holds: names can be anything."""
    if model.config is None:
        return Kind.OTHER
    return next((kind for kind, holds in _SIGNS if holds(model, model.config)), Kind.OTHER)


def _has(config: Config, inputs: set[str], outputs: frozenset[str] = frozenset()) -> bool:
    return inputs <= {each.name for each in config.inputs} and outputs <= {each.name for each in config.outputs}


_SIGNS: tuple[tuple[Kind, Callable[[Model, Config], bool]], ...] = (
    (Kind.ENSEMBLE, lambda _, config: config.ensemble),
    (Kind.ENGINE, lambda _, config: config.backend == "tensorrtllm" or "gpt_model_type" in config.parameters),
    (Kind.ENGINE, lambda _, config: _has(config, {"input_ids", "input_lengths"})),
    (Kind.VLLM, lambda _, config: config.backend == "vllm"),
    (Kind.LLMAPI, lambda model, _: any(path.endswith(("model.yaml", "model.yml")) for path in model.sources)),
    (Kind.LLMAPI, lambda _, config: _has(config, {"sampling_param_max_tokens"})),
    (Kind.PREPROCESSING, lambda _, config: _has(config, {"QUERY"}, frozenset({"INPUT_ID"}))),
    (Kind.POSTPROCESSING, lambda _, config: _has(config, {"TOKENS_BATCH"})),
    (Kind.BLS, lambda _, config: "tensorrt_llm_model_name" in config.parameters),
    (Kind.BLS, lambda model, config: _has(config, {"text_input"}) and _asks_others(model)),
)
"""How each kind is told: the first that holds."""


def _asks_others(model: Model) -> bool:
    return any("InferenceRequest(" in text for text in model.sources.values())


PARAMETERS = {
    "engine": ("tensorrt_llm_model_name", "tensorrt_llm"),
    "preprocessing": ("preprocessing_model_name", "preprocessing"),
    "postprocessing": ("postprocessing_model_name", "postprocessing"),
    "draft": ("tensorrt_llm_draft_model_name", ""),
    "encoders": ("multimodal_encoders_name", ""),
}
"""What a bls model asks -> the config parameter that names it, and the name without one."""


def _asked(model: Model, config: Config) -> dict[str, str]:
    """By parameters, and where its code has names as literals, by those."""
    literals = names(model.code, model.sources.get(model.code, ""))
    found: dict[str, str] = {}
    for what, (key, default) in PARAMETERS.items():
        if name := literals.get(what) or config.stated(key) or default:
            found[what] = name
    return found


def stated_path(root: str, model: Model, named: object) -> str:
    """The folder that what stands beside a model names, as a whole path; empty where it is none."""
    if not isinstance(named, str) or not named.startswith(("/", "./", "../")):
        return ""
    return posixpath.normpath(posixpath.join(root, model.folder, named))


def table(value: object) -> Mapping[str, object]:
    """A JSON object; an empty one for anything else."""
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def number(value: object) -> int:
    """A whole number, also where it is written as text; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return 0
    try:
        return int(value)
    except ValueError:
        return 0


def truth(text: str) -> bool | None:
    """A parameter as TensorRT-LLM's backend reads it; None for a text that it takes for no answer."""
    return text.lower() in ("true", "1") if text in _CASES else None


_CASES = frozenset({"true", "True", "TRUE", "1", "false", "False", "FALSE", "0"})
