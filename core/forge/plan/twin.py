"""The twin: no GPU, no container; the checkpoint itself stands where an engine would."""

from collections.abc import Iterator

import msgspec

from forge.errors import Problem
from forge.plan.conflicts import conflicts
from forge.plan.hf_checkpoint import hugging_face, serving, tokenizer_links
from forge.plan.resolved import Resolved
from forge.plan.steps import Assemble, Entry, LayBackends, Link, Step
from forge.repository import config
from forge.schema.twin_environment import twin_sources
from forge.schema.values import Names, Recipe, SourceKind, TextFile
from forge.schema.wheels import named
from forge.twin.architectures import knows

WEIGHTS = (".safetensors", ".safetensors.index.json")


def check(resolved: Resolved) -> Iterator[Problem]:
    """What keeps the twin from serving this recipe."""
    recipe, facts = resolved.recipe, resolved.facts
    yield from config.check(config.skeletons(), _settings(resolved))
    yield from conflicts(recipe, serving(resolved), "the twin is served with")
    if facts.checkpoint.config and not knows(facts.checkpoint.config) and not _brings_transformers(recipe):
        named = ", ".join(facts.checkpoint.architectures) or "no architecture"
        hint = 'let transformers do it: runtime.packages = ["transformers", "torch"]'
        yield Problem("runtime.kind", f"the twin's own decoder does not read {named}", hint)
    elif recipe.runtime.weights and facts.checkpoint.config and not knows(facts.checkpoint.config):
        what = "is for the twin's own decoder, and transformers serves this model, in float32"
        yield Problem("runtime.weights", what, "take it away")
    if facts.source.kind not in (SourceKind.GGUF, SourceKind.WHEEL) and not any(
        file.path.endswith(".safetensors") for file in facts.source.files
    ):
        yield Problem("source", "there are no .safetensors weights, and the twin reads nothing else")


def _brings_transformers(recipe: Recipe) -> bool:
    return any(named(package) == "transformers" for package in recipe.runtime.packages)


def entry(resolved: Resolved, names: Names) -> Entry:
    """The steps of one recipe on the twin."""
    recipe, facts = resolved.recipe, resolved.facts
    host = facts.host
    environment = serving(resolved)
    backends = Step("backends", LayBackends(twin_sources(), host.triton), (("environment", environment),))
    model = hugging_face(resolved)
    names_held = model.promises
    settings = _settings(resolved, names)
    assets = names.assets(recipe.name)
    weights = tuple(path for path in names_held if path.endswith(WEIGHTS))
    engine = ("config.json", "generation_config.json", *weights)
    links = tuple(Link("model", path, f"{assets}/engines/{path}") for path in engine if path in names_held)
    step = Step(
        f"{recipe.name}: entry",
        Assemble(
            names,
            config.skeletons(),
            settings,
            links + tokenizer_links(resolved.family.tokenizer(), names_held, assets),
            (_limits(recipe, assets),),
        ),
        (("model", model),),
    )
    return Entry(recipe.name, names, step, (environment, backends))


def _settings(resolved: Resolved, names: Names | None = None) -> config.Settings:
    return config.settings(resolved.recipe, resolved.family.config_overrides(), resolved.family.tokenizer(), names)


def _limits(recipe: Recipe, assets: str) -> TextFile:
    """What an engine would have been built for, so that the twin refuses what the engine would refuse; and what its weights are
    rounded to."""
    narrowed = {"weights": recipe.runtime.weights} if recipe.runtime.weights else {}
    built = msgspec.to_builtins(
        {
            "max_batch_size": recipe.build.max_batch_size,
            "max_input_len": recipe.build.max_input_len,
            "max_seq_len": recipe.build.max_seq_len,
            "max_beam_width": recipe.build.max_beam_width,
            "max_answers": recipe.limits.max_answers,
            **narrowed,
        }
    )
    return TextFile(f"{assets}/engines/build_config.json", msgspec.json.encode(built).decode() + "\n")
