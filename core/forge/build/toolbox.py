"""What an image brings for converting and building: its scripts, and the flags of each, read out of the image itself."""

from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from forge.build.executor import Executors
from forge.errors import ForgeError, HostError, meant
from forge.machine.containers import Containers
from forge.schema.values import LOCAL, RuntimeKind, Toolchain
from forge.trtllm import image_table, scripts
from forge.trtllm.scripts import Script

_COMMAND = "trtllm-"
"""How the programs of TensorRT-LLM begin that are no scripts: trtllm-build, trtllm-refit, ..."""


class Toolbox(Struct, frozen=True):
    """An image's scripts by path; ``trtllm`` is empty where the image does not say its version."""

    image: str
    trtllm: str
    examples: str
    scripts: tuple[Script, ...]


def toolbox(executors: Executors, image: str, program: str, gpus: str, say: Callable[[str], None]) -> Toolbox:
    """All scripts of ``image`` (a tag, a reference, or "local"), or those that ``program`` names, each asked by ``--help``.

    Raises HostError where the image is not here: nobody wants 20 GB pulled without a word.
    """
    tools, containers = _tools(executors, image)
    if program.startswith(_COMMAND):
        told = scripts.asked(Script(program, ""), containers.help_text(tools.image, (program, "--help"), gpus))
        return Toolbox(tools.image, tools.trtllm, tools.examples, (told,))
    found = scripts.found(containers.read(tools.image, scripts.ROOTS), tools)
    if not found:
        hint = "conversion scripts came into NVIDIA's images with 25.01, and left them again: see docs/images.md"
        raise ForgeError("there are no scripts in this image", where=tools.image, hint=hint)
    if program:
        found = tuple(_asked(each, containers, tools.image, gpus, say) for each in _named(program, found, tools))
    return Toolbox(tools.image, tools.trtllm, tools.examples, found)


def _tools(executors: Executors, image: str) -> tuple[Toolchain, Containers]:
    if image == LOCAL:
        here = executors.here.toolchain()
        return replace(here, examples=image_table.examples(here.trtllm)), executors.here
    known = image_table.toolchain(image)
    held = executors.containers.inspect(known.image)
    if held is None:
        raise HostError("the image is not here", where=known.image, hint=f"docker pull {known.image}")
    return executors.versioned(replace(known, identity=held.identity), RuntimeKind.ENGINE), executors.containers


def _named(program: str, found: tuple[Script, ...], tools: Toolchain) -> tuple[Script, ...]:
    wanted = tuple(each for each in found if each.named(program))
    if makers := tuple(each for each in wanted if each.maker):
        return makers
    if wanted:
        return wanted
    folders = sorted({each.path.split("/")[-2] for each in found if each.maker})
    hint = f"{meant(program, folders)} there are {', '.join(folders)}".strip()
    raise ForgeError(f"no script is named {program!r}", where=tools.image, hint=hint)


def _asked(script: Script, containers: Containers, image: str, gpus: str, say: Callable[[str], None]) -> Script:
    try:
        return scripts.asked(script, containers.help_text(image, ("python3", script.path, "--help"), gpus))
    except ForgeError as error:  # a script that needs a GPU to be imported says nothing without one
        say(f"{script.path} --help says nothing here, so its flags are those of its source: {error.what}")
        return script
