"""Engines beside each other and under a server: instances, memory, drafts, and the image and GPU that serve them."""

from collections.abc import Iterator

from forge.check.model import Config, EngineFolder, Kind, Model, Repository, table
from forge.check.rules.decoupled import pairs
from forge.check.rules.engine import halves
from forge.check.rules.rule import Found
from forge.fit import gpus
from forge.schema.tags import same
from forge.trtllm.image_table import release, releases

TAKES_ALL = 0.9
"""The backend's default for kv_cache_free_gpu_mem_fraction."""


def instances(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.ENGINE):
        groups = len([group for group in config.stated("gpu_device_ids").split(";") if group.strip()])
        if config.instances > max(groups, 1):
            what = f"{model.folder} has {config.instances} instances, each a copy of the engine on the same GPUs"
            yield Found(model.file, what, needle="count")


def _served(repository: Repository) -> list[tuple[Model, Config]]:
    """Models that load an engine of TensorRT-LLM's, as far as is known: not the twin's."""
    return [
        (model, config)
        for model, config in repository.of(Kind.ENGINE)
        if not ((engine := repository.engine(config)) and engine.twin)
    ]


def orchestrator(repository: Repository) -> Iterator[Found]:
    served = _served(repository)
    # `forge serve` starts what forge published as it has to be.
    if len(served) > 1 and any(repository.served_by(model) is None for model, _ in served):
        names = ", ".join(model.folder for model, _ in served)
        yield Found(served[1][0].file, f"{len(served)} engines in one server: {names}")


def kv_memory(repository: Repository) -> Iterator[Found]:
    served = _served(repository)
    for at, (model, config) in enumerate(served):
        text = config.stated("kv_cache_free_gpu_mem_fraction")
        if config.stated("max_tokens_in_paged_kv_cache") or (text and _fraction(text) < TAKES_ALL):
            continue
        devices = config.stated("gpu_device_ids")
        later = (other for other, theirs in served[at + 1 :] if not devices or theirs.stated("gpu_device_ids") in ("", devices))
        if (beside := next(later, None)) is not None:
            takes = f"{model.folder} takes {text or TAKES_ALL} of the free GPU memory for its KV cache"
            what = f"{takes}, and {beside.folder} finds what is left of it"
            yield Found(model.file, what, needle='"kv_cache_free_gpu_mem_fraction"')


def _fraction(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return TAKES_ALL


def draft_vocabulary(repository: Repository) -> Iterator[Found]:
    asked: dict[str, list[tuple[Model, Config]]] = {}
    for bls, _, member, config in pairs(repository):
        asked.setdefault(bls.folder, []).append((member, config))
    for members in asked.values():
        if len(members) < 2:
            continue
        (target, ours), (draft, theirs) = members
        found, other = repository.engine(ours), repository.engine(theirs)
        if found and other and found.vocabulary and other.vocabulary and found.vocabulary != other.vocabulary:
            what = f"{draft.folder} guesses in a vocabulary of {other.vocabulary}, and {target.folder} has {found.vocabulary}"
            yield Found(draft.file, what)


def engine_image(repository: Repository) -> Iterator[Found]:
    built = [(engine, engine.version) for _, engine in halves(repository) if engine.version]
    for engine, version in built:
        if repository.trtllm and not same(version, repository.trtllm):
            known = release(repository.image)
            name = f"image {known.tag}" if known else repository.image
            what = f"the engine was built by TensorRT-LLM {version}, and {name}, which serves it, holds {repository.trtllm}"
            yield Found(engine.shown, what, _fitting(version))
    if not repository.trtllm and len({version for _, version in built}) > 1:
        said = ", ".join(f"{engine.shown} {version}" for engine, version in built)
        yield Found(built[-1][0].shown, f"one server loads engines of one TensorRT-LLM, and these are of several: {said}")


def _fitting(version: str) -> str:
    tags = " or ".join(each.tag for each in releases() if same(version, each.trtllm))
    return (f"serve it with image {tags}, or " if tags else "") + "build it again with the image that serves"


def engine_gpu(repository: Repository) -> Iterator[Found]:
    present = {gpu.capability: gpu.name for gpu in repository.gpus if gpu.capability}
    for model, engine in halves(repository):
        held = repository.served_by(model)
        built = _capability(repository.architectures.get(held.name, "") if held else "") or _clustered(engine)
        if present and built and built not in present:
            here = ", ".join(f"{name} has {capability}" for capability, name in present.items())
            yield Found(engine.shown, f"the engine was built for compute capability {built}, and {here}")


def _capability(architecture: str) -> str:
    """``sm_89`` -> ``8.9``, ``sm_120`` -> ``12.0``; empty for anything else."""
    digits = architecture.removeprefix("sm_")
    return f"{digits[:-1]}.{digits[-1]}" if architecture.startswith("sm_") and digits.isdecimal() and len(digits) > 1 else ""


def _clustered(engine: EngineFolder) -> str:
    """The capability of the GPU that trtllm-build noted beside the limits, as versions up to 0.17 do (``H100-PCIe``)."""
    card = gpus.known(str(table(engine.limits.get("auto_parallel_config")).get("cluster_key") or ""))
    return card.capability if card else ""
