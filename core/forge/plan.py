"""Recipe + family + facts -> plan. Pure: the same words always give the same keys, and nothing runs."""

from collections.abc import Sequence

from forge import compatibility
from forge.errors import Problem, RecipeError
from forge.lowering import engine, twin
from forge.model import Names, Role, RuntimeKind
from forge.order import Order
from forge.steps import Entry, Plan


def plan(orders: Sequence[Order], *, prefixed: bool = False) -> Plan:
    """Everything that has to stand for these recipes to be served together.

    One recipe gets plain names, several (or ``prefixed``) get their own name as prefix. RecipeError carries all
    problems that can be known now.
    """
    problems = [problem for order in orders for problem in check(order)]
    if problems:
        raise RecipeError(tuple(problems))
    several = prefixed or len(orders) > 1
    names = [Names(order.recipe.name if several else "", _guesses(order)) for order in orders]
    entries = tuple(_entry(order, named) for order, named in zip(orders, names, strict=True))
    return Plan(entries, notes=tuple(note for order in orders for note in _notes(order)))


def _guesses(order: Order) -> bool:
    """Whether there is a second engine, with a model of its own in the repository."""
    if order.recipe.runtime.kind is not RuntimeKind.ENGINE:
        return False
    return any(each.role is Role.DRAFT for each in order.family.engines())


def _notes(order: Order) -> tuple[str, ...]:
    if order.recipe.runtime.kind is not RuntimeKind.ENGINE:
        return ()
    if order.tooling is None:
        return (f"{order.recipe.name}: its image has not been read yet; keys that stand on it are not final",)
    return tuple(f"{order.recipe.name}: {note}" for note in engine.notes(order))


def check(order: Order) -> tuple[Problem, ...]:
    """What cannot work, seen from config.json, the plugins and the skeletons: before anything heavy runs."""
    recipe, config = order.recipe, order.facts.checkpoint.config
    found = [*compatibility.check(recipe), *order.family.check(order.facts.toolchain)]
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
        case RuntimeKind.LLMAPI:
            found.append(
                Problem(
                    f"{recipe.name}: runtime.kind",
                    "this version of forge does not lower recipes to llmapi yet",
                    'use "engine" or "twin"',
                )
            )
        case RuntimeKind.ENGINE:
            found += engine.check(order)
    return tuple(found)


def _entry(order: Order, names: Names) -> Entry:
    if order.recipe.runtime.kind is RuntimeKind.TWIN:
        return twin.entry(order, names)
    return engine.entry(order, names)
