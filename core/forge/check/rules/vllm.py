"""Models of vLLM: what their model.json says, and what Triton's vLLM backend wants of the config beside it."""

import difflib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress

from forge.check.model import Config, Kind, Model, Repository, number, stated_path, table
from forge.check.rules.rule import Found, Rule, Severity
from forge.schema.vllm_environment import BEFORE, CPU, GPU, USUAL
from forge.schema.vllm_known import packaged

_UTILIZATION = "gpu_memory_utilization"
LORAS = "multi_lora.json"
_USUAL_RANK = 16
"""max_lora_rank where nobody says it."""
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


def loras(model: Model) -> Mapping[str, object]:
    """Name -> folder of the adapters that requests can name; none where model.json does not enable them."""
    if str(model.arguments.get("enable_lora", "")).lower() != "true":
        return {}
    with suppress(ValueError):
        return table(json.loads(next((text for path, text in model.sources.items() if path.endswith(LORAS)), "{}")))
    return {}


def _adapters(repository: Repository) -> Iterator[Found]:
    for model, _, file in _stated(repository):
        if str(model.arguments.get("enable_lora", "")).lower() == "true" and not loras(model):
            yield Found(file, f"enable_lora is set, and {LORAS} beside it names no adapters", needle="enable_lora")
        for name, stated in loras(model).items():
            path = stated_path(repository.root, model, stated)
            if path and not repository.loras.get(path):
                yield Found(_beside(file), f"{name} is {stated}: there is no adapter_config.json in it", needle=str(stated))


def _ranks(repository: Repository) -> Iterator[Found]:
    for model, _, file in _stated(repository):
        most = number(model.arguments.get("max_lora_rank", _USUAL_RANK))
        for name, stated in loras(model).items():
            said = repository.loras.get(stated_path(repository.root, model, stated), {})
            rank = max(map(number, (said.get("r"), *table(said.get("rank_pattern")).values())))
            if rank > most:
                yield Found(file, f"max_lora_rank is {most}, and the rank of {name} is {rank}", needle="max_lora_rank")


def _beside(file: str) -> str:
    return f"{file.rpartition('/')[0]}/{LORAS}"


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
        "vllm-lora",
        Severity.ERROR,
        "the LoRA adapters of a model of vLLM are not there",
        "With enable_lora the backend reads multi_lora.json beside model.json: a JSON object of names and folders. A "
        "path that begins with a dot, which forge's own backend knows, goes from the model's folder.",
        "FileNotFoundError: Triton backend cannot find /models/m/1/multi_lora.json.",
        "name adapters there that the server sees, or build it again",
        _adapters,
    ),
    Rule(
        "vllm-lora-rank",
        Severity.ERROR,
        "a LoRA adapter has a higher rank than its model of vLLM takes",
        "vLLM keeps room for adapters of max_lora_rank (16 where nobody says), and refuses one with a larger r when it is "
        "first asked with it.",
        "ValueError: LoRA rank 64 is greater than max_lora_rank 16.",
        "raise max_lora_rank to the adapter's r, or build it again",
        _ranks,
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
