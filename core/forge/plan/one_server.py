"""Whether one Triton can serve what is built together: it is of one image, or of one environment of this machine. Pure."""

from collections.abc import Callable, Iterator, Sequence

from forge.errors import Problem
from forge.plan.resolved import Resolved
from forge.schema.values import Recipe, RuntimeKind
from forge.schema.wheels import requested

NVIDIAS = "nvcr.io/nvidia/tritonserver:"
"""Whose tags are images that differ."""
_KINDS = {RuntimeKind.TWIN: "the twin's environment", RuntimeKind.VLLM: "vLLM's environment on this machine"}


def check(all_resolved: Sequence[Resolved], where: str = "") -> Iterator[Problem]:
    """What cannot be in one server, as far as that is sure before an image is there; ``where`` is the deployment's file."""
    kinds = {kind(resolved.recipe) for resolved in all_resolved}
    if len(kinds) > 1:
        told = _told(all_resolved, lambda each: kind(each.recipe))
        yield _apart(all_resolved, where, f"one server cannot serve them all: {told}")
        return
    first = all_resolved[0] if all_resolved else None
    if first and first.recipe.runtime.contained and any(_differ(first, other) for other in all_resolved[1:]):
        told = _told(all_resolved, lambda each: each.facts.toolchain.image)
        yield _apart(all_resolved, where, f"one server has one image: {told}")
    needed = {each.recipe.name: frozenset(requested(each.recipe.runtime.packages)) for each in all_resolved}
    if (
        first
        and not first.recipe.runtime.contained
        and not any(has >= frozenset().union(*needed.values()) for has in needed.values())
    ):
        told = "; ".join(f"{name} asks for {', '.join(sorted(packages)) or 'none'}" for name, packages in needed.items())
        yield _apart(all_resolved, where, f"one server has the packages of one of them: {told}")


def _apart(all_resolved: Sequence[Resolved], where: str, what: str) -> Problem:
    kinds = {resolved.recipe.runtime.kind for resolved in all_resolved}
    same = {resolved.recipe.runtime.contained for resolved in all_resolved} == {True} and RuntimeKind.VLLM not in kinds
    if where:
        hint = "write a deployment for each, with a repository and ports of its own"
    else:
        hint = "build each into a --repository of its own, and serve them on ports of their own"
    cards = RuntimeKind.VLLM in kinds and len(kinds) > 1 and RuntimeKind.TWIN not in kinds
    share = "; where they share a card give each its part (gpu.memory of a deployment) and start the engines' server first"
    give = (
        "give them one runtime.image; or " if same else "give one of them all runtime.packages; or " if len(kinds) == 1 else ""
    )
    return Problem(where or "recipes", what, f"{give}{hint}{share if cards else ''} (docs/deployments.md)")


def kind(recipe: Recipe) -> str:
    """Whose Triton serves it, in words."""
    runtime = recipe.runtime
    if not runtime.contained:
        return _KINDS[runtime.kind]
    return f"an image of NVIDIA's with {'vLLM' if runtime.kind is RuntimeKind.VLLM else 'TensorRT-LLM'}"


def _differ(one: Resolved, other: Resolved) -> bool:
    """Whether two images are not the same for sure: their ids say so, or they are two tags of NVIDIA's."""
    here, there = one.facts.toolchain, other.facts.toolchain
    if here.identity and there.identity:
        return here.identity != there.identity
    return here.image != there.image and here.image.startswith(NVIDIAS) and there.image.startswith(NVIDIAS)


def _told(all_resolved: Sequence[Resolved], how: Callable[[Resolved], str]) -> str:
    groups: dict[str, list[str]] = {}
    for resolved in all_resolved:
        groups.setdefault(how(resolved), []).append(resolved.recipe.name)
    return "; ".join(f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} served by {by}" for by, names in groups.items())
