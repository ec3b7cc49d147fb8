"""Models of vLLM: what their model.json says, and what Triton's vLLM backend wants of the config beside it."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from forge.check.model import Config, Kind, Model, Repository, number, stated_path, table
from forge.check.rules.rule import Found
from forge.errors import meant
from forge.schema.positions import beyond
from forge.schema.vllm_clashes import clashes
from forge.schema.vllm_environment import BEFORE, CPU, GPU
from forge.schema.vllm_images import VERSION
from forge.schema.vllm_known import OVERRIDES, packaged

_UTILIZATION = "gpu_memory_utilization"
LORAS = "multi_lora.json"
_USUAL_RANK = 16
"""max_lora_rank where nobody says it."""
_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size")


def _file(model: Model) -> str:
    """model.json, relative to the repository; empty where there is none."""
    path = next((path for path in model.sources if path.endswith("model.json")), "")
    return f"{model.folder}/{path}" if path else ""


def vllm_arguments(repository: Repository) -> Iterator[Found]:
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


def vllm_model(repository: Repository) -> Iterator[Found]:
    for model, _, file in _stated(repository):
        named = str(model.arguments.get("model") or "")
        checkpoint = repository.checkpoint(model)
        if not named:
            yield Found(file, "it names no model")
        elif checkpoint is None and stated_path(repository.root, model, named):
            yield Found(file, f"model is {named}: there is no such folder", needle=named)
        elif checkpoint is not None and (checkpoint.broken or "config.json" not in checkpoint.files):
            yield Found(file, f"model is {named}: there is no config.json in it", needle=named)


def vllm_argument(repository: Repository) -> Iterator[Found]:
    known = packaged(gpu=False).arguments | packaged(gpu=True).arguments
    for model, _, file in _stated(repository):
        for name in model.arguments:
            if name not in known:
                what = f"{name} is no argument of vLLM's engine ({CPU}, {GPU})"
                yield Found(file, what, meant(name, known), needle=f'"{name}"')


def vllm_decoupled(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.VLLM):
        if not config.decoupled and not config.guessed:
            yield Found(model.file, f"{model.folder} is not decoupled", needle="decoupled")


def vllm_length(repository: Repository) -> Iterator[Found]:
    for model, _, file in _stated(repository):
        checkpoint, wanted = repository.checkpoint(model), number(model.arguments.get("max_model_len"))
        trained = beyond(checkpoint.config, wanted) if checkpoint and not OVERRIDES.intersection(model.arguments) else None
        if trained:
            yield Found(file, f"max_model_len {trained.told(wanted)}", needle="max_model_len")


def vllm_memory(repository: Repository) -> Iterator[Found]:
    parts = [(file, _part(model)) for model, _, file in _stated(repository) if "kv_cache_memory_bytes" not in model.arguments]
    total = sum(part for _, part in parts)
    if len(parts) > 1 and total > 1:
        for file, part in parts:
            what = f"{_UTILIZATION} is {part:g}, and {total:g} with the other models here: more than the whole"
            yield Found(file, what, needle=_UTILIZATION)


def vllm_kind(repository: Repository) -> Iterator[Found]:
    for model, config, file in _stated(repository):
        parts = {name: number(model.arguments.get(name, 1)) for name in _PARALLEL}
        if config.gpu and any(part > 1 for part in parts.values()):
            told = " and ".join(f"{name} {part}" for name, part in parts.items() if part > 1)
            yield Found(model.file, f"{model.folder} is of KIND_GPU, and {file} asks for {told}", needle="KIND_GPU")


def loras(model: Model) -> Mapping[str, object]:
    """Name -> folder of the adapters that requests can name; none where model.json does not enable them."""
    return _listed(model) if str(model.arguments.get("enable_lora", "")).lower() == "true" else {}


def _listed(model: Model) -> Mapping[str, object]:
    """What multi_lora.json says, whether or not model.json enables it."""
    with suppress(ValueError):
        return table(json.loads(next((text for path, text in model.sources.items() if path.endswith(LORAS)), "{}")))
    return {}


def vllm_lora(repository: Repository) -> Iterator[Found]:
    for model, _, file in _stated(repository):
        if str(model.arguments.get("enable_lora", "")).lower() == "true" and not loras(model):
            yield Found(file, f"enable_lora is set, and {LORAS} beside it names no adapters", needle="enable_lora")
        elif not loras(model) and (listed := _listed(model)):
            what = f"{LORAS} names {', '.join(sorted(listed))}, and enable_lora is not set in {file}"
            yield Found(_beside(file), what, "set enable_lora to true, or build it again")
        for name, stated in loras(model).items():
            path = stated_path(repository.root, model, stated)
            if path and not repository.loras.get(path):
                yield Found(_beside(file), f"{name} is {stated}: there is no adapter_config.json in it", needle=str(stated))


def vllm_lora_rank(repository: Repository) -> Iterator[Found]:
    for model, _, file in _stated(repository):
        most = number(model.arguments.get("max_lora_rank", _USUAL_RANK))
        for name, stated in loras(model).items():
            said = repository.loras.get(stated_path(repository.root, model, stated), {})
            rank = max(map(number, (said.get("r"), *table(said.get("rank_pattern")).values())))
            if rank > most:
                yield Found(file, f"max_lora_rank is {most}, and the rank of {name} is {rank}", needle="max_lora_rank")


def _beside(file: str) -> str:
    return f"{file.rpartition('/')[0]}/{LORAS}"


def _clashing(rule: str) -> Callable[[Repository], Iterator[Found]]:
    """Finds what vLLM refuses of a model's arguments under one rule."""

    def look(repository: Repository) -> Iterator[Found]:
        for model, config, file in _stated(repository):
            checkpoint = repository.checkpoint(model)
            for each in clashes(model.arguments, checkpoint.config if checkpoint else {}, config.stated(VERSION)):
                if each.rule == rule:
                    yield Found(file, f"{each.names[0]} {each.what}", needle=_needle(model, each.names))

    return look


def _needle(model: Model, names: tuple[str, ...]) -> str:
    return next((f'"{name}"' for name in names if name in model.arguments), "")


def _part(model: Model) -> float:
    """What a model is sure to take: where nobody says, the least that any vLLM does."""
    try:
        return float(str(model.arguments.get(_UTILIZATION, BEFORE)))
    except ValueError:
        return BEFORE


vllm_batch, vllm_parallel, vllm_speculation, vllm_twice, vllm_value = (
    _clashing(rule) for rule in ("vllm-batch", "vllm-parallel", "vllm-speculation", "vllm-twice", "vllm-value")
)
