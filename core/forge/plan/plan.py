"""Recipe + family + facts -> plan. Pure: the same words always give the same keys, and nothing runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from forge.errors import Problem, RecipeError
from forge.plan import adapters, engine, gpu_share, llmapi, llmapi_adapters, lock as locks, twin, vllm
from forge.plan.families import WITHOUT_FAMILY
from forge.plan.hf_checkpoint import with_verdict
from forge.plan.resolved import Resolved
from forge.plan.steps import Entry, Plan
from forge.schema.config_json import PACKED, quantized
from forge.schema.positions import BEYOND, Trained, beyond
from forge.schema.values import COMMON_ROLES, Names, Role, RuntimeKind
from forge.schema.vllm_known import OVERRIDES
from forge.trtllm import image_table


class _Path(Protocol):
    """A runtime's own part of planning."""

    def check(self, resolved: Resolved) -> Iterator[Problem]:
        """What it cannot do for the recipe, by the recipe's keys."""
        ...

    def entry(self, resolved: Resolved, names: Names) -> Entry:
        """The steps of one recipe."""
        ...


_PATHS: Mapping[RuntimeKind, _Path] = {
    RuntimeKind.TWIN: twin,
    RuntimeKind.VLLM: vllm,
    RuntimeKind.LLMAPI: llmapi,
    RuntimeKind.ENGINE: engine,
}


def plan(all_resolved: Sequence[Resolved], *, prefixed: bool = False, inside: bool = False) -> Plan:
    """Everything that has to stand for these recipes to be served together.

    One recipe gets plain names, several (or ``prefixed``) get their own name as prefix. ``inside`` puts assets into a model's
    own folder. RecipeError carries all problems that can be known now.
    """
    several = prefixed or len(all_resolved) > 1
    require(all_resolved, several=several)
    names = [
        # vLLM's one model bears the recipe's name
        Names(each.recipe.name if several or each.recipe.runtime.kind is RuntimeKind.VLLM else "", _roles(each), inside)
        for each in all_resolved
    ]
    entries = tuple(
        with_verdict(resolved, _PATHS[resolved.recipe.runtime.kind].entry(resolved, named))
        for resolved, named in zip(all_resolved, names, strict=True)
    )
    return Plan(entries, notes=tuple(note for resolved in all_resolved for note in _notes(resolved)))


def require(all_resolved: Sequence[Resolved], *, several: bool = False) -> None:
    """RecipeError with every problem that can be known now; ``several`` recipes are served under prefixes."""
    if problems := problems_of(all_resolved, several=several):
        raise RecipeError(tuple(problems))


def problems_of(all_resolved: Sequence[Resolved], *, several: bool = False) -> list[Problem]:
    """The same problems, raised by nobody."""
    problems = [problem for resolved in all_resolved for problem in check(resolved)]
    for group in gpu_share.groups(all_resolved, RuntimeKind.VLLM):
        problems += vllm.check_together(group)
    if several:
        engines = [resolved for resolved in all_resolved if resolved.recipe.runtime.kind is RuntimeKind.ENGINE]
        problems += [each.within(resolved.recipe.name) for resolved in engines for each in engine.check_prefix(resolved)]
    return list(dict.fromkeys(problems))


def require_sizes(all_resolved: Sequence[Resolved]) -> None:
    """RecipeError with what keeps recipes from having a size on any card: what each of them cannot do, and parts of one card
    that they state and that are more than all of it. Parts that nobody stated are for ``forge fit`` to find and to judge."""
    problems = [problem for resolved in all_resolved for problem in check(resolved)]
    for group in gpu_share.groups(all_resolved, RuntimeKind.VLLM):
        problems += vllm.check_stated(group)
    if problems:
        raise RecipeError(tuple(problems))


def _roles(resolved: Resolved) -> tuple[Role, ...]:
    """The models that the recipe becomes: one for llmapi and vllm, one more than usual where an engine guesses for another."""
    kind = resolved.recipe.runtime.kind
    if kind in (RuntimeKind.LLMAPI, RuntimeKind.VLLM):
        return llmapi.ROLES if kind is RuntimeKind.LLMAPI else vllm.ROLES
    guesses = kind is RuntimeKind.ENGINE and any(each.role is Role.DRAFT for each in resolved.family.engines())
    return (*COMMON_ROLES, Role.DRAFT) if guesses else COMMON_ROLES


def _beyond(resolved: Resolved, config: Mapping[str, object]) -> Trained | None:
    """How long a text the checkpoint was trained for, where the recipe wants a longer one; vLLM can be told of another."""
    recipe = resolved.recipe
    if recipe.runtime.kind is RuntimeKind.VLLM and OVERRIDES.intersection(recipe.serve.vllm):
        return None
    return beyond(config, recipe.build.max_seq_len)


def length_notes(resolved: Resolved, config: Mapping[str, object]) -> tuple[str, ...]:
    """What its runtime makes of sequences that are longer than the checkpoint with this config.json was trained for."""
    recipe, trained = resolved.recipe, _beyond(resolved, config)
    if trained is None:
        return ()
    told = trained.told(recipe.build.max_seq_len)
    return (f"{recipe.name}: build.max_seq_len {told}: {BEYOND[recipe.runtime.kind]}",)


def _notes(resolved: Resolved) -> tuple[str, ...]:
    return (*length_notes(resolved, resolved.facts.checkpoint.config), *_other_notes(resolved))


def _other_notes(resolved: Resolved) -> tuple[str, ...]:
    kind = resolved.recipe.runtime.kind
    if not kind.contained:
        notes = (*(vllm.notes(resolved) if kind is RuntimeKind.VLLM else ()), *_unclaimed(resolved))
        return tuple(f"{resolved.recipe.name}: {note}" for note in (*notes, *_unheld(resolved)))
    if resolved.tooling is None:
        told = engine.notes(resolved) if kind is RuntimeKind.ENGINE else tuple(llmapi_adapters.notes(resolved))
        notes = ("its image has not been read yet; keys that stand on it are not final", *_unversioned(resolved), *told)
    else:
        notes = llmapi.notes(resolved) if kind is RuntimeKind.LLMAPI else engine.notes(resolved)
    return tuple(f"{resolved.recipe.name}: {note}" for note in (*notes, *_doubts(resolved)))


def _unheld(resolved: Resolved) -> Iterator[str]:
    """What of its environments is installed by version alone."""
    exact = map(resolved.pins.exact, locks.environments(resolved.recipe, resolved.facts, resolved.pins))
    if free := [pin for each in exact for pin in locks.unheld(each, resolved.pins.hashes)]:
        hint = "`forge lock` takes down what the index has"
        yield f"held to no hash: {', '.join(free[:3])}{f' and {len(free) - 3} more' if free[3:] else ''}; {hint}"


def _unversioned(resolved: Resolved) -> tuple[str, ...]:
    tools = resolved.facts.toolchain
    if tools.trtllm:
        return ()
    return (f"nobody has said which TensorRT-LLM {tools.image} holds: a build asks the image, or state runtime.trtllm",)


def _unclaimed(resolved: Resolved) -> tuple[str, ...]:
    if not resolved.unclaimed:
        return ()
    return (f"no installed family serves {', '.join(resolved.facts.checkpoint.architectures)}: {WITHOUT_FAMILY}",)


def _doubts(resolved: Resolved) -> Iterator[str]:
    """What config.json lets one expect, and only the image can tell."""
    recipe, facts = resolved.recipe, resolved.facts
    found = quantized(facts.checkpoint.config, [file.path for file in facts.source.files])
    if found is not None:
        reader = "LLM() of the image" if recipe.runtime.kind is RuntimeKind.LLMAPI else "the conversion script"
        known = recipe.runtime.kind is RuntimeKind.ENGINE and found.method in PACKED
        end = "reads that as it is" if known else "has the last word on whether it reads that"
        yield f"the checkpoint's weights are quantized already ({found}); {reader} {end}"
    family, wanted = resolved.family, facts.checkpoint.architectures
    if resolved.unclaimed:
        yield from (*_unclaimed(resolved), "LLM() of the image has the last word on whether it knows this model")
    elif wanted and not set(wanted).intersection(family.architectures()):
        yield f"family {family.name} does not name {', '.join(wanted)} as its own; the image's script has the last word"


def check(resolved: Resolved) -> tuple[Problem, ...]:
    """What cannot work, seen from config.json, the plugins and the skeletons: before anything heavy runs."""
    return tuple(each.within(resolved.named or resolved.recipe.name) for each in objections(resolved))


def objections(resolved: Resolved) -> tuple[Problem, ...]:
    """The same by the recipe's keys alone."""
    recipe = resolved.recipe
    found = [*image_table.check(recipe, resolved.facts.toolchain), *resolved.family.check(resolved.facts.toolchain)]
    found += image_table.check_since(recipe, resolved.facts, resolved.family.since())
    return (*found, *_unable(resolved))


def _unable(resolved: Resolved) -> Iterator[Problem]:
    """What neither an image nor a plugin objects to."""
    kind, build, config = resolved.recipe.runtime.kind, resolved.recipe.build, resolved.facts.checkpoint.config
    # An encoder reads as much as it likes: max_seq_len is its decoder's alone (NVIDIA's enc_dec README: 1024 and 201). What
    # has no config.json yet is a GGUF, and those that forge converts are decoders.
    if build.max_input_len > build.max_seq_len and not config.get("is_encoder_decoder"):
        what = f"is {build.max_input_len}, above build.max_seq_len ({build.max_seq_len})"
        yield Problem("build.max_input_len", what, "prompt and answer share max_seq_len")
    yield from adapters.none_here(resolved)
    if (trained := _beyond(resolved, config)) and (
        kind is RuntimeKind.VLLM or (trained.table and kind is not RuntimeKind.LLMAPI)
    ):
        hint = f"set it to {trained.tokens} or less" + (f": {BEYOND[kind]}" if kind is RuntimeKind.VLLM else "")
        yield Problem("build.max_seq_len", trained.told(build.max_seq_len), hint)
    gone = tuple(llmapi.lacks_engines(resolved)) if kind is RuntimeKind.ENGINE else ()
    yield from gone or _PATHS[kind].check(resolved)
