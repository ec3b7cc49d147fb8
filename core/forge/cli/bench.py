"""bench."""

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from forge.cli.output import Output, verb
from forge.cli.param_types import FILE

RUN = "run"
_NEW = click.Path(dir_okay=False, path_type=Path)
_FAIL_IF = click.option(
    "--fail-if", "fail_if", multiple=True, metavar="LIMIT", help='Exit code 16 if this holds, as "ttft_p95>200ms".'
)
_LARGEST = 4 << 30
"""Bytes of the largest file of results that is read: it holds every request."""


class _Bench(click.Group):
    """A group whose first word is a verb of its own, or else a model: ``forge bench MODEL`` is ``forge bench run MODEL``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = [RUN, *args] if args and args[0] not in (*self.commands, *ctx.help_option_names) else args
        return super().parse_args(ctx, words)


@click.group(cls=_Bench, context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure what is served, and compare measurements.

    \b
    forge bench MODEL [OPTIONS]      the same as `forge bench run MODEL`; see `forge bench run --help`
    forge bench compare A B
    forge bench page RESULTS

    \b
    Example:
        forge bench smollm2-135m-instruct --concurrency 4
    """


@bench.command(RUN)
@click.argument("model")
@click.option("--repository", type=click.Path(file_okay=False), help="Ask the server of this model repository.")
@click.option("--concurrency", type=click.IntRange(1), help="Requests under way at any time. [default: 1]")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Requests that arrive in a second, at random, instead.")
@click.option("--requests", type=click.IntRange(1), help="Of each repeat. [default: 32, or twice the concurrency]")
@click.option("--duration", metavar="TIME", help="Send requests for so long instead, as 30s.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--warmup", type=click.IntRange(0), help="Uncounted requests before each repeat. [default: the concurrency]")
@click.option("--input-tokens", type=click.IntRange(1), help="Length of made prompts. [default: 128]")
@click.option("--output-tokens", type=click.IntRange(1), help="Length of answers. [default: 64; a data set: as it says]")
@click.option("--dataset", type=FILE, help='Prompts from a JSONL file instead: {"prompt": "...", "max_tokens": 64}')
@click.option("--chat", is_flag=True, help="Put the data set's prompts into the chat template.")
@click.option(
    "--ignore-end/--respect-end",
    default=None,
    help="Keep answers from ending before their length. [default: where --output-tokens holds]",
)
@click.option("--no-stream", is_flag=True, help="Ask for whole answers.")
@click.option("--set", "stated", multiple=True, metavar="NAME=VALUE", help="Sampling, as temperature=0.7.")
@click.option("--sweep", multiple=True, metavar="NAME=A,B", help="Measure each value, and each combination of several.")
@click.option("--goodput", default="", metavar="LIMITS", help="What a good answer keeps to, as ttft=200ms,itl=50ms.")
@click.option("--quality", type=FILE, help="Prompts with checks (TOML), scored at each point.")
@click.option("--export-promptfoo", "promptfoo", type=_NEW, help="Write --quality for promptfoo; no run.")
@click.option(
    "--driver",
    type=click.Choice(("forge", "aiperf")),
    default="forge",
    show_default=True,
    help="Who puts the load on; NVIDIA's AIPerf gets an environment of its own (1.2 GB, once).",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of prompts, arrivals and sampling.")
@click.option("--timeout", metavar="TIME", default="600s", show_default=True, help="Give up a request after so long.")
@click.option("--output", "into", type=_NEW, help="Write the results here too.")
@click.option("--page", type=_NEW, help="Where the page with plots goes. [default: beside the results in forge's home folder]")
@click.option("--no-page", is_flag=True, help="Leave no page.")
@_FAIL_IF
@verb
def run(
    output: Output,
    model: str,
    repository: str | None,
    promptfoo: Path | None,
    into: Path | None,
    page: Path | None,
    no_page: bool,
    fail_if: tuple[str, ...],
    **options: object,
) -> None:
    """Put a served MODEL, or every model of a DEPLOYMENT's file, under load and say how fast it is.

    \b
    Example:
        forge bench run smollm2-135m-instruct --sweep concurrency=1,4 --sweep temperature=0.2,0.7
    """
    from forge.bench import compare as comparing, drawing
    from forge.cli.measurements import document, lines, options_of

    limits = [comparing.limit(text) for text in fail_if]
    comparing.require_absolute(limits)
    if page is not None:
        drawing.require()
    wanted = options_of(options)
    shop = output.here()
    if promptfoo is not None:
        promptfoo.write_text(shop.promptfoo(model, repository, wanted), encoding="utf-8")
        output.result({"written": str(promptfoo)}, f"written: {promptfoo}")
        return
    found, kept = shop.bench(model, repository, wanted)
    if into is not None:
        into.write_bytes(kept.read_bytes())
    place = str(into or kept)
    drawn, said = ("", "") if no_page else _page(lambda: drawing.leave(found, page or kept.with_suffix(".html")))
    text = "\n".join([*lines(found), f"results: {place}", *said.splitlines()])
    output.result({**document(found, place), "page": drawn}, text)
    _judge(output, comparing.exceeded(limits, found))


@bench.command()
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option("--anyway", is_flag=True, help="Compare what is unlike, too.")
@click.option("--all", "everything", is_flag=True, help="Show every figure, not the chief ones.")
@_FAIL_IF
@verb
def compare(output: Output, first: Path, second: Path, anyway: bool, everything: bool, fail_if: tuple[str, ...]) -> None:
    """Say how SECOND differs from FIRST, both results of `forge bench`: ratios with their 95 % intervals.

    \b
    Example:
        forge bench compare before.json after.json --fail-if "ttft_p95>1.05x"
    """
    from forge.bench import compare as comparing, results
    from forge.cli.measurements import comparison_lines

    limits = [comparing.limit(text) for text in fail_if]
    one, other = (results.read(_results(file), str(file)) for file in (first, second))
    found = comparing.compare(one, other)
    if not anyway:
        comparing.require_alike(found, f"{first}, {second}")
    broken = comparing.broken(limits, found)
    shown = {"differences": found.differences, "pairs": found.pairs, "broken": broken}
    output.result(shown, "\n".join(comparison_lines(found, everything=everything)))
    _judge(output, broken)


@bench.command("page")
@click.argument("file", metavar="RESULTS", type=FILE)
@click.option("-o", "--output", "into", type=_NEW, help="[default: beside RESULTS, with .html]")
@verb
def draw(output: Output, file: Path, into: Path | None) -> None:
    """Draw RESULTS of `forge bench`: one HTML file with plots that needs no network.

    \b
    Example:
        forge bench page results.json -o results.html
    """
    from forge.bench import drawing, results

    place = drawing.leave(results.read(_results(file), str(file)), into or file.with_suffix(".html"))
    output.result({"page": str(place)}, f"page: {place}")


def _results(file: Path) -> str:
    """What stands in a file of results."""
    from forge.errors import BenchError
    from forge.files import texts

    return texts.read(file, BenchError, "this file of results", most=_LARGEST)


def _page(leave: Callable[[], Path]) -> tuple[str, str]:
    """The page's path and what to say of it. A benchmark that has run is not failed by a page that cannot be drawn."""
    from forge.errors import BenchError

    try:
        place = str(leave())
    except BenchError as error:
        return "", f"no page: {error.what} ({error.hint})"
    return place, f"page: {place}"


def _judge(output: Output, broken: Sequence[str]) -> None:
    """Exit code 16 where a limit holds; the one document of --json has been said by then."""
    from forge.errors import LimitError

    if broken:
        output.say("\n".join(click.style("beyond a limit: ", fg="red") + each for each in broken))
        raise SystemExit(LimitError.exit_code)
