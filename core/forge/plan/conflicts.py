"""Packages of a recipe that pip could not install beside forge's own pins, or beside each other: told before it tries. Pure."""

from collections.abc import Iterator

from forge.errors import Problem
from forge.plan.steps import MakeEnvironment, Step
from forge.schema.values import Recipe
from forge.schema.wheels import named


def conflicts(recipe: Recipe, step: Step, own: str) -> Iterator[Problem]:
    """What the environment that ``step`` makes cannot hold, as far as versions say it; ``own``: what its pins are for."""
    if not recipe.runtime.packages or not isinstance(step.action, MakeEnvironment):
        return
    from packaging.requirements import InvalidRequirement, Requirement  # a recipe with packages of its own alone needs it

    pins = {named(each): each for each in step.action.environment.bare}
    seen: dict[str, list[Requirement]] = {}
    for text in recipe.runtime.packages:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:  # pip has words of its own for it
            continue
        pin, before = pins.get(named(text), ""), seen.setdefault(named(text), [])
        if pin and not wanted.specifier.contains(pin.partition("==")[2], prereleases=True):
            hint = f"take it away, or ask for what {pin.partition('==')[2]} is among"
            yield Problem("runtime.packages", f"{text!r} leaves out {pin}, which {own}", hint)
        for other in before:
            stated = ((each, two) for one, two in ((wanted, other), (other, wanted)) for each in one.specifier)
            exact = ((each, two) for each, two in stated if each.operator == "==" and "*" not in each.version)
            if not all(two.specifier.contains(each.version, prereleases=True) for each, two in exact):
                yield Problem(
                    "runtime.packages", f"{text!r} and {str(other)!r} are two versions of one package", "take one away"
                )
        before.append(wanted)
