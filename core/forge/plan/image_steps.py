"""What every runtime in a container stands on: the family's image, and what an image says of itself."""

from forge.plan.resolved import Resolved
from forge.plan.steps import MakeImage, ReadToolchain, Step
from forge.schema.values import Command, RuntimeKind
from forge.trtllm import toolchain


def tools(resolved: Resolved) -> Step:
    """The step that has to be held before the rest is planned with certainty: what the image says of itself."""
    programs = toolchain.programs(_commands(resolved))
    return Step("toolchain", ReadToolchain(_base(resolved), programs, resolved.facts.toolchain.image, resolved.gpus))


def family_image(resolved: Resolved) -> Step:
    """NVIDIA's image with what the recipe's plugins require on top."""
    family, tools = resolved.family, resolved.facts.toolchain
    action = MakeImage(family.name, _base(resolved), family.requirements(tools), resolved.dockerfile, tools.image)
    return Step("image", action)


def _base(resolved: Resolved) -> str:
    return resolved.facts.toolchain.identity or resolved.facts.toolchain.image


def _commands(resolved: Resolved) -> tuple[Command, ...]:
    """What will run in it, and so has flags to check; llmapi converts and builds nothing."""
    if resolved.recipe.runtime.kind is RuntimeKind.LLMAPI:
        return ()
    tools = resolved.facts.toolchain
    return (*resolved.family.convert_commands(tools), *resolved.family.build_commands(tools))
