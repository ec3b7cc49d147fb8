"""generate, chat."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
from msgspec.structs import replace

from forge.cli.output import Output, verb
from forge.cli.param_types import FILE, PROMPT, SERVED

Function = Callable[..., None]

SAMPLING = (
    click.option("--max-tokens", type=click.IntRange(1), help="At most so many new tokens."),
    click.option("--temperature", type=click.FloatRange(0), help="0 takes the likeliest token each time."),
    click.option("--top-k", type=click.IntRange(0), help="Draw among the k likeliest tokens."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw among the likeliest that hold p."),
    click.option("--min-p", type=click.FloatRange(0, 1), help="Draw none below this part of the likeliest one's probability."),
    click.option("--json-schema", type=FILE, metavar="FILE", help="The answer is JSON of the schema in FILE."),
    click.option("--regex", metavar="EXPR", help="The answer is a text that this regular expression matches."),
    click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="The same seed gives the same text."),
    click.option("--beam-width", type=click.IntRange(1), help="Beam search with so many beams."),
    click.option("--repetition-penalty", type=click.FloatRange(0, min_open=True), help="Above 1 avoids repeating."),
    click.option("--presence-penalty", type=float, help="Above 0 avoids tokens that have occurred."),
    click.option("--frequency-penalty", type=float, help="Above 0 avoids tokens the more they have occurred."),
    click.option("--min-tokens", type=click.IntRange(0), help="No end before so many new tokens."),
    click.option("--length-penalty", type=float, help="Of beams: above 0 prefers long ones, below 0 short ones."),
    click.option("--early-stopping/--no-early-stopping", default=None, help="Of beams: end when enough are done."),
    click.option("--beam-search-diversity-rate", type=float, help="Of beams: above 0 makes them differ."),
    click.option("--top-p-min", type=click.FloatRange(0, 1), help="top_p decays no further."),
    click.option("--top-p-decay", type=click.FloatRange(0, 1), help="top_p times this with each token."),
    click.option("--top-p-reset-ids", type=click.IntRange(0), help="The token after which top_p is whole again."),
    click.option("--num-draft-tokens", type=click.IntRange(0), help="Guess so many tokens ahead (speculative decoding)."),
    click.option("--end-id", type=click.IntRange(0), help="The token that ends the answer."),
    click.option("--pad-id", type=click.IntRange(0), help="The token that fills up."),
    click.option(
        "--input", "more", multiple=True, metavar="NAME=VALUE", help="Any other input that the model's metadata offers."
    ),
    click.option("--logprobs", is_flag=True, help="How likely each token was: colours on a terminal, a table elsewhere."),
    click.option(
        "--top-logprobs",
        "top_log_probs",
        type=click.IntRange(1, 20),
        help="The likeliest in each token's place too, so many (twin, vLLM).",
    ),
    click.option(
        "--min-logprob", type=float, metavar="X", help="Exit code 17 when the answer's log-probability (a sum) is below X."
    ),
    click.option("--perf", is_flag=True, help="Time to first token, inter-token latency and tokens/s, on stderr."),
    click.option("--stop", multiple=True, help="End at this text; may be given several times."),
    click.option(
        "--bad", multiple=True, help="Never say this text, as the tokens it is written in; may be given several times."
    ),
    click.option(
        "--first-seconds",
        type=click.FloatRange(0),
        metavar="N",
        help="Give up when nothing has come after so long; 0: wait for ever. [default: the recipe's]",
    ),
    click.option(
        "--silent-seconds",
        type=click.FloatRange(0),
        metavar="N",
        help="Give up when no more comes for so long; 0: wait for ever. [default: the recipe's]",
    ),
)
LORA = click.option("--lora", metavar="NAME", help="Ask with this adapter of the model's.")
REPOSITORY = click.option(
    "--repository",
    type=click.Path(file_okay=False),
    help="Ask the server on this repository; any running one that offers MODEL otherwise.",
)
IMAGE = click.option(
    "--image",
    "images",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="Show the model this image; may be given several times.",
)


def with_sampling(function: Function) -> Function:
    """A command with every option that says how to draw, and what to show of it."""
    for option in reversed(SAMPLING):
        function = option(function)
    return function


@click.command()
@click.argument("model", type=SERVED)
@click.argument("prompt", type=PROMPT)
@with_sampling
@LORA
@REPOSITORY
@click.option("-n", type=click.IntRange(1), help="So many answers: samples, or of a beam search its best.")
@click.option("--no-stream", is_flag=True, help="Print the answer when it is whole.")
@click.option("--chat", "templated", is_flag=True, help="Ask PROMPT as a user's message, in the model's chat template.")
@IMAGE
@click.option("--show-seed", is_flag=True, help="Say on stderr which seed was used.")
@verb
def generate(
    output: Output,
    model: str,
    prompt: str,
    lora: str | None,
    repository: str | None,
    no_stream: bool,
    templated: bool,
    images: tuple[Path, ...],
    show_seed: bool,
    **sampling: object,
) -> None:
    """Ask a served MODEL to continue PROMPT.

    The answer comes as a stream. PROMPT - reads standard input.

    \b
    Example:
        forge generate smollm2-135m-instruct "Why is the sky blue?" --chat --temperature 0.7
    """
    from forge.cli.lines import whole
    from forge.cli.shown_answer import asked, document, doubt, judge, tell
    from forge.client.chat_template import asked as with_images

    shop = output.here()
    target = shop.target(named(model, lora), repository)
    text = whole() if prompt == "-" else prompt
    if templated:
        text = shop.templated(target, [("user", with_images(text, len(images)))])
    seen = tuple(image.read_bytes() for image in images)
    request, display = asked(replace(target.request(text), stream=not no_stream, images=seen), sampling)
    if said := doubt(request, sampling):
        output.say(said)
    answer = tell(output, request, shop.generate(target.address, request), display, partial(shop.spans, target))
    if output.as_json:
        output.line({"done": True, "seed": request.seed, **document(answer, display)})
    if show_seed:
        output.say("no seed: the likeliest token was taken each time" if request.seed is None else f"seed: {request.seed}")
    judge(output, answer, display)


@click.command()
@click.argument("model", type=SERVED)
@with_sampling
@LORA
@REPOSITORY
@click.option("--system", help="Instructions that stand before the conversation.")
@IMAGE
@verb
def chat(
    output: Output,
    model: str,
    lora: str | None,
    repository: str | None,
    system: str | None,
    images: tuple[Path, ...],
    **sampling: object,
) -> None:
    """Talk with a served MODEL, in its own chat template.

    At a terminal with line editing, history and commands (/help shows them); Ctrl-C ends an answer, Ctrl-D the talk. Through a
    pipe each line is a question, and an empty one ends it. Images stand before the first question, and stay there.

    \b
    Example:
        forge chat smollm2-135m-instruct
    """
    from forge.cli.talk import Talk
    from forge.client.conversation import Conversation
    from forge.errors import InferenceError

    shop = output.here()
    target = shop.target(named(model, lora), repository)
    if why := shop.untemplated(target):
        hint = "base models have none: ask with `forge generate`, or take an instruction-tuned checkpoint"
        raise InferenceError(f"this model has {why}", where=str(target.tokenizer), hint=hint)
    seen = tuple(image.read_bytes() for image in images)
    Talk(output, shop, target, sampling, Conversation(system or ""), images=seen).run()


def named(model: str, lora: str | None) -> str:
    """A model as it is looked up, with its adapter where one is asked with."""
    from forge.schema.adapters import BETWEEN

    return model if lora is None else f"{model}{BETWEEN}{lora}"
