"""TensorRT-LLM's engine: convert and build in the family's image, serve from NVIDIA's skeletons."""

from forge import repository
from forge.lowering.assets import tokenizer_links
from forge.model import JsonPatch, Names
from forge.order import Order
from forge.steps import Assemble, Entry, Fetch, Link, MakeImage, PatchCheckpoint, Run, Step


def entry(order: Order, names: Names) -> Entry:
    """The steps of one recipe on the engine path."""
    recipe, facts, family = order.recipe, order.facts, order.family
    image = Step("image", MakeImage(facts.toolchain.image, family.requirements(facts.toolchain)))
    patches = family.patches(facts.toolchain)
    model = Step(f"{recipe.name}: model", Fetch(facts.source), promises=tuple(file.path for file in facts.source.files))
    if edits := tuple(patch for patch in patches if isinstance(patch, JsonPatch)):
        model = Step(f"{recipe.name}: patched", PatchCheckpoint(edits), (("model", model),), model.promises)
    draft = (("draft", Step(f"{recipe.name}: draft", Fetch(facts.draft))),) if facts.draft else ()
    scripts = tuple(patch for patch in patches if not isinstance(patch, JsonPatch))
    checkpoint = Step(
        f"{recipe.name}: checkpoint",
        Run(family.convert_commands(facts.toolchain), scripts),
        (("image", image), ("model", model), *draft),
        promises=("config.json",),
    )
    ranks = tuple(f"rank{rank}.engine" for rank in range(recipe.convert.tp * recipe.convert.pp))
    engine = Step(
        f"{recipe.name}: engine",
        Run(family.build_commands(facts.toolchain), gpu=facts.gpu or "any"),
        (("image", image), ("checkpoint", checkpoint)),
        promises=("config.json", *ranks),
    )
    assets = f"_assets/{recipe.name}"
    links = tuple(Link("engine", path, f"{assets}/engines/{path}") for path in engine.promises)
    links += tokenizer_links(family.tokenizer(), model.promises, assets)
    settings = repository.settings(recipe, family.config_overrides(), family.tokenizer())
    entry = Step(
        f"{recipe.name}: entry",
        Assemble(names, (), settings, links),
        (("image", image), ("engine", engine), ("model", model)),
    )
    return Entry(recipe.name, names, entry, None)
