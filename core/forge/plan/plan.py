"""Recipe + family + facts -> plan. Pure: the same words always give the same keys, and nothing runs."""

from collections.abc import Iterator, Sequence

from forge.errors import Problem, RecipeError
from forge.plan import engine, llmapi, twin, vllm
from forge.plan.resolved import Order
from forge.plan.shared import with_verdict
from forge.plan.steps import Entry, Plan
from forge.schema.quantized import PACKED, quantized
from forge.schema.values import COMMON_ROLES, Names, Role, RuntimeKind
from forge.trtllm import images


def plan(orders: Sequence[Order], *, prefixed: bool = False, inside: bool = False) -> Plan:
    """Everything that has to stand for these recipes to be served together.

    One recipe gets plain names, several (or ``prefixed``) get their own name as prefix. ``inside`` puts assets into a model's
    own folder. RecipeError carries all problems that can be known now.
    """
    several = prefixed or len(orders) > 1
    require(orders, several=several)
    names = [Names(order.recipe.name if several or _alone(order) else "", _roles(order), inside) for order in orders]
    entries = tuple(with_verdict(order, _entry(order, named)) for order, named in zip(orders, names, strict=True))
    return Plan(entries, notes=tuple(note for order in orders for note in _notes(order)))


def _alone(order: Order) -> bool:
    """Whether it has one model, which bears the recipe's name."""
    return order.recipe.runtime.kind is RuntimeKind.VLLM


def require(orders: Sequence[Order], *, several: bool = False) -> None:
    """RecipeError with every problem that can be known now; ``several`` recipes are served under prefixes."""
    problems = [*(problem for order in orders for problem in check(order)), *vllm.check_together(orders)]
    if several:
        engines = [order for order in orders if order.recipe.runtime.kind is RuntimeKind.ENGINE]
        problems += [problem for order in engines for problem in engine.check_prefix(order)]
    if problems:
        raise RecipeError(tuple(problems))


def _roles(order: Order) -> tuple[Role, ...]:
    """The models that the recipe becomes: one for llmapi and vllm, one more than usual where an engine guesses for another."""
    kind = order.recipe.runtime.kind
    if kind in (RuntimeKind.LLMAPI, RuntimeKind.VLLM):
        return llmapi.ROLES if kind is RuntimeKind.LLMAPI else vllm.ROLES
    guesses = kind is RuntimeKind.ENGINE and any(each.role is Role.DRAFT for each in order.family.engines())
    return (*COMMON_ROLES, Role.DRAFT) if guesses else COMMON_ROLES


def _notes(order: Order) -> tuple[str, ...]:
    kind = order.recipe.runtime.kind
    if not kind.contained:
        return tuple(f"{order.recipe.name}: {note}" for note in vllm.notes(order)) if kind is RuntimeKind.VLLM else ()
    if order.tooling is None:
        notes = ("its image has not been read yet; keys that stand on it are not final", *_unversioned(order))
    else:
        notes = llmapi.notes(order) if kind is RuntimeKind.LLMAPI else engine.notes(order)
    return tuple(f"{order.recipe.name}: {note}" for note in (*notes, *_doubts(order)))


def _unversioned(order: Order) -> tuple[str, ...]:
    tools = order.facts.toolchain
    if tools.trtllm:
        return ()
    return (f"nobody has said which TensorRT-LLM {tools.image} holds: a build asks the image, or state runtime.trtllm",)


def _doubts(order: Order) -> Iterator[str]:
    """What config.json lets one expect, and only the image can tell."""
    recipe, facts = order.recipe, order.facts
    found = quantized(facts.checkpoint.config, [file.path for file in facts.source.files])
    if found is not None:
        reader = "LLM() of the image" if recipe.runtime.kind is RuntimeKind.LLMAPI else "the conversion script"
        known = recipe.runtime.kind is RuntimeKind.ENGINE and found.method in PACKED
        end = "reads that as it is" if known else "has the last word on whether it reads that"
        yield f"the checkpoint's weights are quantized already ({found}); {reader} {end}"
    served, wanted = order.family.architectures(), facts.checkpoint.architectures
    if wanted and not set(wanted).intersection(served):
        yield f"family {order.family.name} does not name {', '.join(wanted)} as its own; the image's script has the last word"


def check(order: Order) -> tuple[Problem, ...]:
    """What cannot work, seen from config.json, the plugins and the skeletons: before anything heavy runs."""
    recipe, config = order.recipe, order.facts.checkpoint.config
    found = [*images.check(recipe, order.facts.toolchain), *order.family.check(order.facts.toolchain)]
    found += images.check_since(recipe, order.facts, order.family.since())
    found += _input_above_sequence(order)
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
            found += twin.check(order)
        case RuntimeKind.VLLM:
            found += vllm.check(order)
        case RuntimeKind.LLMAPI:
            found += llmapi.check(order)
        case RuntimeKind.ENGINE:
            gone = tuple(llmapi.lacks_engines(order))
            found += gone or engine.check(order)
    return tuple(found)


def _input_above_sequence(order: Order) -> Iterator[Problem]:
    """An encoder reads as much as it likes: max_seq_len is its decoder's alone (NVIDIA's enc_dec README: 1024 and 201). What
    has no config.json yet is a GGUF, and those that forge converts are decoders."""
    build = order.recipe.build
    if build.max_input_len > build.max_seq_len and not order.facts.checkpoint.config.get("is_encoder_decoder"):
        what = f"is {build.max_input_len}, above build.max_seq_len ({build.max_seq_len})"
        yield Problem(f"{order.recipe.name}: build.max_input_len", what, "prompt and answer share max_seq_len")


def _entry(order: Order, names: Names) -> Entry:
    match order.recipe.runtime.kind:
        case RuntimeKind.TWIN:
            return twin.entry(order, names)
        case RuntimeKind.VLLM:
            return vllm.entry(order, names)
        case RuntimeKind.LLMAPI:
            return llmapi.entry(order, names)
        case RuntimeKind.ENGINE:
            return engine.entry(order, names)
