"""run."""

import shlex
from pathlib import Path
from typing import Any

import click

from forge.cli.build import RENAME
from forge.cli.generate import IMAGE, LORA, named, with_sampling
from forge.cli.output import Output, verb
from forge.cli.param_types import RECIPE, RUNTIME_NAME
from forge.repository.folders import whole

PORT = click.IntRange(1, 65535)


@click.command()
@click.argument("what", metavar="RECIPE|HUB-ID|PATH", type=RECIPE)
@click.argument("prompt", required=False)
@click.option("--runtime", type=RUNTIME_NAME, help="Serve by this runtime. [default: the best that this machine can do]")
@click.option(
    "--repository",
    type=click.Path(file_okay=False),
    help="The model repository. [default: where it is served already, or model-repository]",
)
@click.option("--http-port", type=PORT, help="[default: 8000, or one that is free]")
@click.option("--grpc-port", type=PORT, help="[default: 8001, or one that is free]")
@click.option("--metrics-port", type=PORT, help="[default: 8002, or one that is free]")
@RENAME
@click.option("--system", help="Instructions that stand before the conversation.")
@with_sampling
@LORA
@IMAGE
@verb
def run(
    output: Output,
    what: str,
    prompt: str | None,
    runtime: Any,
    repository: str | None,
    http_port: int | None,
    grpc_port: int | None,
    metrics_port: int | None,
    rename_plain: bool,
    system: str | None,
    lora: str | None,
    images: tuple[Path, ...],
    **sampling: object,
) -> None:
    """Build, serve and talk: from a recipe or a hub id to a chat.

    A recipe's file, the name of one that is here, that forge ships or whose model is served, a hub id, a checkpoint's folder or
    a .gguf file; where there is no recipe yet, one is written beside you. The runtime is the best that this machine can do, and
    forge says why. The server goes on when the talk ends, so the next `forge run` is at the prompt at once. With PROMPT, or
    with standard input from a pipe, one question is answered.

    \b
    Example:
        forge run smollm2-135m-instruct
        forge run google/gemma-2b-it --runtime vllm
        forge run smollm2-135m-instruct "Why is the sky blue?"
    """
    from forge.cli.lines import whole
    from forge.cli.shown_answer import guided
    from forge.cli.talk import Talk
    from forge.client.conversation import Conversation
    from forge.schema.sight import blind
    from forge.schema.values import Ports, RuntimeKind

    if prompt is not None and not prompt.strip():
        raise click.UsageError("the prompt is empty: leave it out for a talk")
    guided(sampling["json_schema"], sampling["regex"])  # what is wrong with these is said before anything is built
    shop = output.here()
    choice = shop.runs.choose(what, runtime, repository)
    if images and choice.runtime is not RuntimeKind.VLLM:
        what = f"{choice.name} takes no images: it runs on {choice.runtime}"
        raise click.UsageError(f"{what}. {blind(choice.runtime)} (--runtime vllm)")
    if choice.served is None:
        _tell(output, choice)
    usual, ports = shop.settings.ports, None
    if http_port or grpc_port or metrics_port:
        ports = Ports(http_port or usual.http, grpc_port or usual.grpc, metrics_port or usual.metrics, usual.host)
    target = shop.runs.serve(choice, repository, ports, rename_plain=rename_plain)
    if lora is not None:
        target = shop.target(named(choice.name, lora), target.repository)
    output.close()
    if ports and choice.served is not None:
        output.say(f"{choice.name} is served already, where it is: the ports that you named are not used")
    if why := shop.untemplated(target):
        output.say(f"{choice.name} has {why}: it continues what you write, and remembers nothing of it")
    seen = tuple(image.read_bytes() for image in images)
    talk = Talk(output, shop, target, sampling, Conversation(system or ""), templated=not why, images=seen)
    question = prompt if prompt not in (None, "-") else None if talk.typed and prompt is None else whole().strip()
    if question is None:
        talk.run()
    elif question:
        talk.ask(question)
    else:
        output.say("nothing was asked: the prompt is empty")
    output.say(f"{choice.name} is served at {target.address}; `{_stop(target.repository, shop.settings.repository)}` ends it")
    talk.judge()


def _stop(repository: Path, usual: str) -> str:
    """What ends the server on ``repository``, as it is typed from here."""
    if repository == whole(usual):
        return "forge stop"
    named = repository.relative_to(Path.cwd()) if repository.is_relative_to(Path.cwd()) else repository
    return f"forge stop --repository {shlex.quote(str(named))}"


def _tell(output: Output, choice: Any) -> None:
    """What is about to happen (``forge.api.run.Choice``), and why so."""
    from forge.cli.fit_report import verdicts

    if choice.drafted:
        output.say(f"{choice.recipe}: written for it; it is yours to change")
    output.say(f"runtime {choice.runtime}: {choice.why}")
    for line in verdicts(choice.fit) if choice.fit else [f"whether it fits is not known: {choice.unfit}"]:
        output.say(line)
