"""Keys of [speculation] held to what the recipe's variant reads, for variants that forge does not ship.

What forge's own read is known before any plugin is asked (``forge.recipe.rules``).
"""

from collections.abc import Iterator, Sequence

from msgspec.structs import asdict

from forge.errors import Problem, near
from forge.schema.speculation_key import SpeculationKey
from forge.schema.values import Recipe, SpeculationTable

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "text": "text in quotes"}


def unread(recipe: Recipe, declared: Sequence[SpeculationKey] | None) -> Iterator[Problem]:
    """What the recipe states and its variant does not read. ``declared`` is None where the variant does not say what it reads:
    then only keys of its own are refused, which nobody could hold to anything."""
    stated, unset = asdict(recipe.speculation), asdict(SpeculationTable())
    common = [key for key, value in stated.items() if key != "args" and value != unset[key]]
    if declared is None:
        hint = "its author declares them: forge_speculation, in docs/hooks.md"
        yield from (_refused(f"args.{key}", "the variant declares no key of its own", hint) for key in recipe.speculation.args)
        return
    known = {each.name: each for each in declared}
    yield from (_unknown(recipe, key, known) for key in common if key not in known)
    for key, value in recipe.speculation.args.items():
        if key not in known:
            yield _unknown(recipe, f"args.{key}", known)
        elif known[key].common:
            yield _refused(f"args.{key}", "stands in [speculation] itself", f"write it there: {key} = ...")
        elif not known[key].takes(value):
            yield _refused(f"args.{key}", f"found {value!r}; allowed: {_KINDS[known[key].kind]}", "")


def _unknown(recipe: Recipe, key: str, known: dict[str, SpeculationKey]) -> Problem:
    close = near(key.removeprefix("args."), known)
    places = [each.name if each.common else f"args.{each.name}" for each in known.values()]
    hint = f"it reads {', '.join(places)}" if places else "it reads no key at all"
    meant = next((place for place in places if close and place.removeprefix("args.") == close), "")
    return _refused(key, f"{recipe.variant} does not read it", f"did you mean speculation.{meant}?" if meant else hint)


def _refused(key: str, what: str, hint: str) -> Problem:
    return Problem(f"speculation.{key}", what, hint)
