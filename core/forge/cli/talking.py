"""generate, chat."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import click

from forge.cli.show import Output, verb

Function = Callable[..., None]

SAMPLING = (
    click.option("--max-tokens", type=click.IntRange(1), help="At most so many new tokens."),
    click.option("--temperature", type=click.FloatRange(0), help="0 takes the likeliest token each time."),
    click.option("--top-k", type=click.IntRange(0), help="Draw among the k likeliest tokens."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw among the likeliest that hold p."),
    click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="The same seed gives the same text."),
    click.option("--beam-width", type=click.IntRange(1), help="Beam search with so many beams."),
    click.option("--repetition-penalty", type=click.FloatRange(0, min_open=True), help="Above 1 avoids repeating."),
    click.option("--presence-penalty", type=float, help="Above 0 avoids tokens that have occurred."),
    click.option("--frequency-penalty", type=float, help="Above 0 avoids tokens the more they have occurred."),
    click.option("--min-tokens", type=click.IntRange(0), help="No end before so many new tokens."),
    click.option("--stop", multiple=True, help="End at this text; may be given several times."),
    click.option("--bad", multiple=True, help="Never say this text; may be given several times."),
    click.option(
        "--repository",
        type=click.Path(file_okay=False),
        help="Ask the server on this repository; any running one that offers MODEL otherwise.",
    ),
)


def _sampling(function: Function) -> Function:
    for option in reversed(SAMPLING):
        function = option(function)
    return function


def _given(options: dict[str, object]) -> dict[str, object]:
    """What the person asked for; the recipe's sampling speaks for the rest."""
    return {name: value for name, value in options.items() if value is not None and value != ()}


@click.command()
@click.argument("model")
@click.argument("prompt")
@_sampling
@click.option("--no-stream", is_flag=True, help="Print the answer when it is whole.")
@click.option("--chat", "templated", is_flag=True, help="Ask PROMPT as a user's message, in the model's chat template.")
@click.option("--show-seed", is_flag=True, help="Say on stderr which seed was used.")
@verb
def generate(
    output: Output,
    model: str,
    prompt: str,
    repository: str | None,
    no_stream: bool,
    templated: bool,
    show_seed: bool,
    **sampling: object,
) -> None:
    """Ask a served MODEL to continue PROMPT and stream its answer. PROMPT - reads standard input.

    \b
    Example:
        forge generate smollm2-135m-instruct "Why is the sky blue?" --chat --temperature 0.7
    """
    from forge.workshop import Workshop

    shop = Workshop.here(output.listener)
    target = shop.target(model, repository)
    text = sys.stdin.read() if prompt == "-" else prompt
    if templated:
        text = shop.templated(target, [("user", text)])
    request = replace(target.request(text), stream=not no_stream, **_given(sampling))  # type: ignore[arg-type]
    said: dict[int, str] = {}
    for chunk in shop.generate(target.address, request):
        said[chunk.index] = said.get(chunk.index, "") + chunk.text
        if output.as_json:
            output.line({"text": chunk.text, "index": chunk.index, "final": chunk.final})
        elif chunk.index == 0 and not no_stream:
            click.echo(chunk.text, nl=False)
            sys.stdout.flush()
    if output.as_json:
        output.line({"done": True, "seed": request.seed, "answers": [said[index] for index in sorted(said)]})
    elif no_stream:
        click.echo("\n---\n".join(said[index] for index in sorted(said)))
    else:
        click.echo()
    if show_seed:
        output.say(f"seed: {request.seed}")


@click.command()
@click.argument("model")
@_sampling
@click.option("--system", help="Instructions that stand before the conversation.")
@verb
def chat(output: Output, model: str, repository: str | None, system: str | None, **sampling: object) -> None:
    """Talk with a served MODEL, in its own chat template, with history. An empty line or Ctrl-D ends it.

    \b
    Example:
        forge chat smollm2-135m-instruct
    """
    from forge.workshop import Workshop

    shop = Workshop.here(output.listener)
    target = shop.target(model, repository)
    history = [("system", system)] if system else []
    for question in _questions(output):
        history.append(("user", question))
        request = replace(target.request(shop.templated(target, history)), **_given(sampling))  # type: ignore[arg-type]
        answer = ""
        for chunk in shop.generate(target.address, request):
            if chunk.index == 0:
                answer += chunk.text
                if not output.as_json:
                    click.echo(chunk.text, nl=False)
                    sys.stdout.flush()
        history.append(("assistant", answer))
        if output.as_json:
            output.line({"question": question, "answer": answer, "seed": request.seed})
        else:
            click.echo()


def _questions(output: Output) -> Iterator[str]:
    """Lines typed at the prompt, or read from a pipe, until an empty one."""
    asks = sys.stdin.isatty() and not output.as_json
    while True:
        try:
            question = (input("> ") if asks else sys.stdin.readline()).strip()
        except EOFError:
            return
        if not question:
            return
        yield question
