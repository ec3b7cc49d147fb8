"""Models of vLLM: what their model.json says, and what Triton's vLLM backend wants of the config beside it."""

import difflib
from collections.abc import Iterator

from forge.check.model import Config, Kind, Model, Repository, number
from forge.check.rules.rule import Found, Rule, Severity
from forge.schema.vllm_environment import BEFORE, CPU, GPU, USUAL
from forge.schema.vllm_known import packaged

_UTILIZATION = "gpu_memory_utilization"
_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size")


def _file(model: Model) -> str:
    """model.json, relative to the repository; empty where there is none."""
    path = next((path for path in model.sources if path.endswith("model.json")), "")
    return f"{model.folder}/{path}" if path else ""


def _unread(repository: Repository) -> Iterator[Found]:
    for model, _ in repository.of(Kind.VLLM):
        if not (file := _file(model)):
            yield Found(model.file, f"{model.folder} has no model.json, which says what vLLM is to load")
        elif not model.arguments:
            yield Found(file, "it cannot be read as a JSON object, or says nothing")


def _stated(repository: Repository) -> Iterator[tuple[Model, Config, str]]:
    """The models whose model.json can be read, with its place."""
    for model, config in repository.of(Kind.VLLM):
        if model.arguments:
            yield model, config, _file(model)


def _model(repository: Repository) -> Iterator[Found]:
    for model, _, file in _stated(repository):
        named = str(model.arguments.get("model") or "")
        checkpoint = repository.checkpoint(model)
        if not named:
            yield Found(file, "it names no model")
        elif checkpoint is not None and not checkpoint.shown:
            yield Found(file, f"model is {named}: there is no such folder", needle=named)
        elif checkpoint is not None and (checkpoint.broken or "config.json" not in checkpoint.files):
            yield Found(file, f"model is {named}: there is no config.json in it", needle=named)


def _unknown(repository: Repository) -> Iterator[Found]:
    known = packaged(gpu=False).arguments | packaged(gpu=True).arguments
    for model, _, file in _stated(repository):
        for name in model.arguments:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {close[0]!r}?" if close else ""
                yield Found(file, f"{name} is no argument of vLLM's engine ({CPU}, {GPU})", hint, needle=f'"{name}"')


def _whole(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.VLLM):
        if not config.decoupled and not config.guessed:
            yield Found(model.file, f"{model.folder} is not decoupled", needle="decoupled")


def _long(repository: Repository) -> Iterator[Found]:
    for model, _, file in _stated(repository):
        checkpoint, wanted = repository.checkpoint(model), number(model.arguments.get("max_model_len"))
        longest = number(checkpoint.config.get("max_position_embeddings")) if checkpoint else 0
        if longest and wanted > longest:
            what = f"max_model_len is {wanted}, and the checkpoint was trained for {longest} tokens"
            yield Found(file, what, needle="max_model_len")


def _shared(repository: Repository) -> Iterator[Found]:
    parts = [(file, _part(model)) for model, _, file in _stated(repository) if "kv_cache_memory_bytes" not in model.arguments]
    total = sum(part for _, part in parts)
    if len(parts) > 1 and total > 1:
        for file, part in parts:
            what = f"{_UTILIZATION} is {part:g}, and {total:g} with the other models here: more than the whole"
            yield Found(file, what, needle=_UTILIZATION)


def _kind(repository: Repository) -> Iterator[Found]:
    for model, config, file in _stated(repository):
        parts = {name: number(model.arguments.get(name, 1)) for name in _PARALLEL}
        if config.gpu and any(part > 1 for part in parts.values()):
            told = " and ".join(f"{name} {part}" for name, part in parts.items() if part > 1)
            yield Found(model.file, f"{model.folder} is of KIND_GPU, and {file} asks for {told}", needle="KIND_GPU")


def _part(model: Model) -> float:
    """What a model is sure to take: where nobody says, the least that any vLLM does."""
    try:
        return float(str(model.arguments.get(_UTILIZATION, BEFORE)))
    except ValueError:
        return BEFORE


RULES = (
    Rule(
        "vllm-arguments",
        Severity.ERROR,
        "model.json cannot be read",
        "A model of the vllm backend has its engine's arguments in 1/model.json: a JSON object of AsyncEngineArgs.",
        "vLLM's arguments cannot be read: Expecting ',' delimiter: line 3 column 5",
        "mend its JSON, or build it again",
        _unread,
    ),
    Rule(
        "vllm-model",
        Severity.ERROR,
        "model.json does not lead to a model",
        "Its `model` is a folder with a Hugging Face checkpoint, or a name on the hub. A path that begins with a dot, which "
        "forge's own backend knows, goes from the model's folder.",
        "OSError: Can't load the configuration of '../_assets/m/model'.",
        "name the folder that the server sees, or build it again",
        _model,
    ),
    Rule(
        "vllm-argument",
        Severity.WARNING,
        "model.json has an argument that vLLM does not know",
        f"vLLM refuses to start over an unknown argument. Forge knows those of {CPU} and {GPU}; another version may "
        "have others.",
        "TypeError: AsyncEngineArgs.__init__() got an unexpected keyword argument 'max_modle_len'",
        "take it away, or spell it as vLLM does",
        _unknown,
    ),
    Rule(
        "vllm-decoupled",
        Severity.ERROR,
        "a model of vLLM is not decoupled",
        "The vllm backend answers from threads of its own, as often as it likes, also a request that wants one answer.",
        "model_transaction_policy { decoupled: true } is needed: vLLM streams",
        "model_transaction_policy { decoupled: true }",
        _whole,
    ),
    Rule(
        "vllm-kind",
        Severity.ERROR,
        "a model of vLLM that takes several GPUs is of KIND_GPU",
        "Triton makes an instance of KIND_GPU for one GPU, and of each GPU one: the vLLM backend of its images then shows vLLM "
        "that GPU alone, and refuses a model that takes more.",
        "ValueError: KIND_GPU is currently for single-GPU models, please specify KIND_MODEL in the model's config.pbtxt",
        "instance_group [ { count: 1 kind: KIND_MODEL } ]",
        _kind,
    ),
    Rule(
        "vllm-length",
        Severity.ERROR,
        "max_model_len is above what the checkpoint was trained for",
        "vLLM holds max_model_len against max_position_embeddings of config.json and refuses to start.",
        "ValueError: User-specified max_model_len (8192) is greater than the derived max_model_len",
        "lower it to the checkpoint's, or build with a smaller build.max_seq_len",
        _long,
    ),
    Rule(
        "vllm-memory",
        Severity.ERROR,
        "models of vLLM want more memory together than there is",
        f"{_UTILIZATION} is a part of the whole card, not of what is free ({BEFORE} where nobody says, {USUAL} from "
        "vLLM 0.20 on): the opposite of TensorRT-LLM's fraction. Two models on one card have to share 1 between them.",
        "ValueError: Free memory on device cuda:0 on startup is less than desired GPU memory utilization",
        f"[serve.vllm] {_UTILIZATION} in each recipe, so that they add up to less than 1",
        _shared,
    ),
)
