"""What every runtime in a container stands on: the family's image, and what an image says of itself."""

from forge.plan.resolved import Order
from forge.plan.steps import MakeImage, ReadToolchain, Step
from forge.schema.values import Command, RuntimeKind
from forge.trtllm import toolchain


def tools(order: Order) -> Step:
    """The step that has to be held before the rest is planned with certainty: what the image says of itself."""
    programs = toolchain.programs(_commands(order))
    return Step("toolchain", ReadToolchain(_base(order), programs, order.facts.toolchain.image, order.gpus))


def family_image(order: Order) -> Step:
    """NVIDIA's image with what the recipe's plugins require on top."""
    family, tools = order.family, order.facts.toolchain
    action = MakeImage(family.name, _base(order), family.requirements(tools), order.dockerfile, tools.image)
    return Step("image", action)


def _base(order: Order) -> str:
    return order.facts.toolchain.identity or order.facts.toolchain.image


def _commands(order: Order) -> tuple[Command, ...]:
    """What will run in it, and so has flags to check; llmapi converts and builds nothing."""
    if order.recipe.runtime.kind is RuntimeKind.LLMAPI:
        return ()
    tools = order.facts.toolchain
    return (*order.family.convert_commands(tools), *order.family.build_commands(tools))
