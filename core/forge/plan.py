"""Recipe + family + facts -> plan. Pure: the same words always give the same keys, and nothing runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from forge import compatibility, repository
from forge.errors import Problem, RecipeError
from forge.families import Family
from forge.model import (
    Command,
    Facts,
    JsonPatch,
    Names,
    Pinned,
    Recipe,
    RuntimeKind,
    SourceKind,
    TextFile,
    Tokenizer,
)
from forge.serving import converter_sources, serving_environment, twin_sources
from forge.steps import (
    Assemble,
    Entry,
    Fetch,
    LayBackends,
    LayTexts,
    Link,
    MakeEnvironment,
    MakeImage,
    PatchCheckpoint,
    Plan,
    Run,
    Step,
)
from forge.twin.architectures import knows

WEIGHTS = (".safetensors", ".safetensors.index.json")
CONVERTED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""What the conversion of a GGUF promises (forge.twin.gguf)."""


@dataclass(frozen=True)
class Order:
    """One recipe with all that planning may know of it."""

    recipe: Recipe
    family: Family
    facts: Facts


def plan(orders: Sequence[Order], *, prefixed: bool = False) -> Plan:
    """Everything that has to stand for these recipes to be served together.

    One recipe gets plain names, several (or ``prefixed``) get their own name as prefix. RecipeError carries all
    problems that can be known now.
    """
    problems = [problem for order in orders for problem in check(order)]
    if problems:
        raise RecipeError(tuple(problems))
    several = prefixed or len(orders) > 1
    return Plan(tuple(_entry(order, Names(order.recipe.name if several else "")) for order in orders))


def check(order: Order) -> tuple[Problem, ...]:
    """What cannot work, seen from config.json, the plugins and the skeletons: before anything heavy runs."""
    recipe, config = order.recipe, order.facts.checkpoint.config
    found = [*compatibility.check(recipe), *order.family.check()]
    longest = config.get("max_position_embeddings")
    if isinstance(longest, int) and recipe.build.max_seq_len > longest:
        found.append(
            Problem(
                f"{recipe.name}: build.max_seq_len",
                f"{recipe.build.max_seq_len} tokens, and the checkpoint was trained for {longest}",
                f"set max_seq_len to {longest} or less",
            )
        )
    match recipe.runtime.kind:
        case RuntimeKind.TWIN:
            found += _check_twin(order)
        case RuntimeKind.LLMAPI:
            found.append(
                Problem(
                    f"{recipe.name}: runtime.kind",
                    "this version of forge does not lower recipes to llmapi yet",
                    'use "engine" or "twin"',
                )
            )
        case RuntimeKind.ENGINE:
            pass
    return tuple(found)


def _check_twin(order: Order) -> list[Problem]:
    recipe, facts = order.recipe, order.facts
    settings = repository.settings(recipe, order.family.config_overrides())
    found = list(repository.check(repository.skeletons(), settings, recipe.name))
    if facts.checkpoint.config and not knows(facts.checkpoint.config) and not _brings_transformers(recipe):
        named = ", ".join(facts.checkpoint.architectures) or "no architecture"
        found.append(
            Problem(
                f"{recipe.name}: runtime.kind",
                f"the twin's own decoder does not read {named}",
                'let transformers do it: runtime.packages = ["transformers", "torch"]',
            )
        )
    if facts.source.kind not in (SourceKind.GGUF, SourceKind.WHEEL) and not any(
        file.path.endswith(".safetensors") for file in facts.source.files
    ):
        found.append(Problem(f"{recipe.name}: source", "there are no .safetensors weights, and the twin reads nothing else"))
    return found


def _brings_transformers(recipe: Recipe) -> bool:
    return any(package.startswith("transformers") for package in recipe.runtime.packages)


def _entry(order: Order, names: Names) -> Entry:
    if order.recipe.runtime.kind is RuntimeKind.TWIN:
        return _twin(order, names)
    return _engine(order, names)


def _twin(order: Order, names: Names) -> Entry:
    recipe, facts = order.recipe, order.facts
    host = facts.host
    environment = Step(
        "environment",
        MakeEnvironment(serving_environment(host, recipe.runtime.packages), host.interpreter),
    )
    backends = Step("backends", LayBackends(twin_sources(), host.triton), (("environment", environment),))
    model = _checkpoint(recipe, facts.source, environment)
    names_held = model.promises
    settings = repository.settings(recipe, order.family.config_overrides())
    assets = f"_assets/{recipe.name}"
    weights = tuple(path for path in names_held if path.endswith(WEIGHTS))
    engine = ("config.json", "generation_config.json", *weights)
    links = tuple(Link("model", path, f"{assets}/engines/{path}") for path in engine if path in names_held)
    step = Step(
        f"{recipe.name}: entry",
        Assemble(
            names,
            repository.skeletons(),
            settings,
            links + _tokenizer_links(order.family.tokenizer(), names_held, assets),
            (_limits(recipe, assets),),
        ),
        (("model", model),),
    )
    return Entry(recipe.name, names, step, (environment, backends))


def _limits(recipe: Recipe, assets: str) -> TextFile:
    """What an engine would have been built for, so that the twin refuses what the engine would refuse."""
    built = msgspec.to_builtins(
        {
            "max_batch_size": recipe.build.max_batch_size,
            "max_input_len": recipe.build.max_input_len,
            "max_seq_len": recipe.build.max_seq_len,
            "max_beam_width": recipe.build.max_beam_width,
        }
    )
    return TextFile(f"{assets}/engines/build_config.json", msgspec.json.encode(built).decode() + "\n")


def _tokenizer_links(tokenizer: Tokenizer, held: Sequence[str], assets: str) -> tuple[Link, ...]:
    return tuple(Link("model", path, f"{assets}/tokenizer/{path}") for path in tokenizer.files if path in held)


def _checkpoint(recipe: Recipe, source: Pinned, environment: Step) -> Step:
    """The step that ends in a Hugging Face checkpoint, whatever the source is."""
    model = Step(f"{recipe.name}: model", Fetch(source), promises=tuple(file.path for file in source.files))
    if source.kind is SourceKind.HUB or source.kind is SourceKind.PATH:
        return model
    convert = Command(
        ("python3", "-m", "twin.gguf", f"/forge/model/{source.files[0].path}", "/forge/out"),
        {"PYTHONPATH": "/forge/converter"},
    )
    converter = Step("converter", LayTexts(converter_sources()))
    needs = (("environment", environment), ("converter", converter), ("model", model))
    return Step(f"{recipe.name}: checkpoint", Run((convert,)), needs, promises=CONVERTED)


def _engine(order: Order, names: Names) -> Entry:
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
    links += _tokenizer_links(family.tokenizer(), model.promises, assets)
    settings = repository.settings(recipe, family.config_overrides())
    entry = Step(
        f"{recipe.name}: entry",
        Assemble(names, (), settings, links),
        (("image", image), ("engine", engine), ("model", model)),
    )
    return Entry(recipe.name, names, entry, None)
