"""tune."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from forge.cli.build import RUNTIME
from forge.cli.output import Output, verb
from forge.cli.param_types import FILE, RECIPE
from forge.cli.predictions import predict
from forge.cli.text import table


@click.command()
@click.argument("recipe", type=RECIPE)
@click.option("--for", "figure", default="tokens_per_s", help="The figure that is to be best. [default: tokens_per_s]")
@click.option("--goal", multiple=True, metavar="LIMIT", help='What has to be kept, as "ttft_p95<200ms".')
@click.option("--vary", multiple=True, metavar="KEY=A,B", help="Values to try of a recipe's key, variant, concurrency or rate.")
@click.option("--requests", type=click.IntRange(2), default=16, help="Of each candidate in the first round. [default: 16]")
@click.option("--input-tokens", type=click.IntRange(1), help="Length of made prompts. [default: 128]")
@click.option("--output-tokens", type=click.IntRange(1), help="Length of answers. [default: 64; a data set: as it says]")
@click.option("--dataset", type=FILE, help='Prompts from a JSONL file instead: {"prompt": "...", "max_tokens": 64}')
@click.option("--quality", type=FILE, help="Prompts with checks (TOML): the figure `quality` is how many pass.")
@RUNTIME
@click.option("--offline", is_flag=True, help="Measure nothing: ask NVIDIA's AIConfigurator for its prediction.")
@click.option("--gpu", default="", help="With --offline, the card to predict for, such as h100_sxm; what is here otherwise.")
@click.option("--no-write", is_flag=True, help="Leave the recipe as it is.")
@verb
def tune(
    output: Output,
    recipe: str,
    figure: str,
    goal: tuple[str, ...],
    vary: tuple[str, ...],
    requests: int,
    runtime: Any,
    offline: bool,
    gpu: str,
    no_write: bool,
    **options: Any,
) -> None:
    """Find the settings of RECIPE that serve best, by measuring.

    Candidates are built, served on free ports and put under load one after the other: all of them a little, the better half
    twice as long, and so on (successive halving). What is best is measured once more by turns with the recipe as it is, and
    written into it with the evidence where it is better by more than chance. Exit code 16 where nothing keeps the goals.

    With --offline nothing is measured: AIConfigurator predicts, for the models and cards of its data, and the keys that --vary
    names are written, with a line that says that they are a prediction.

    \b
    Example:
        forge tune my-model.toml --goal "ttft_p95<200ms" --vary build.max_batch_size=4,8 --vary concurrency=1,4,8
        forge tune my-model.toml --goal "ttft_mean<200ms" --offline --gpu h100_sxm --vary convert.tp=1,2
    """
    import msgspec

    from forge.api.forge import Forge
    from forge.api.tune import Asked, Tuner
    from forge.bench.options import BenchOptions
    from forge.bench.tune import goal as wanted
    from forge.bench.tune.space import axes
    from forge.errors import LimitError
    from forge.recipe.shipped import folder, located

    if gpu and not offline:
        raise click.UsageError("--gpu names a card for --offline; what is measured is measured on the card that is here")
    if offline and (options["dataset"] or options["quality"]):
        raise click.UsageError("AIConfigurator is asked about lengths alone: --input-tokens and --output-tokens")
    aim = wanted.goal(figure, goal)
    if wanted.QUALITY in aim.figures and options["quality"] is None:
        raise click.UsageError("the figure `quality` wants prompts with checks: --quality FILE")
    asked = Asked(aim, axes(vary), requests, options=BenchOptions(**options), runtime=runtime)
    file = Path(located(recipe))
    if offline:
        predict(output, file, asked, gpu, writes=not no_write and (str(file) == recipe or file.parent != folder()))
        return
    listener = output.listener

    def told(event: Any) -> None:
        if event.kind != "held":  # the same steps for each candidate
            listener(event)

    tuner = Tuner(Forge.here(told), output.say)
    found, kept = tuner.tune(file, asked)
    own = str(file) != recipe and file.parent == folder()
    written = not (no_write or own) and tuner.write(file, found)
    shown = {**msgspec.to_builtins(found), "written": written, "file": str(kept)}
    output.result(
        shown, "\n".join([*_lines(found, aim), _end(found, file, aim, written=written, own=own), f"all of it: {kept}"])
    )
    if not aim.kept({name: each.value for name, each in found.best.figures.items()}):
        raise SystemExit(LimitError.exit_code)


def _lines(found: Any, aim: Any) -> Iterator[str]:
    """A table of every candidate as it was measured last, the best first."""
    last = {_label(trial): trial for trials in found.rounds for trial in trials}
    order = sorted(last.values(), key=lambda it: aim.rank({name: each.value for name, each in it.figures.items()}))
    rows = [("", *map(str.upper, aim.figures)), *(_row(trial, _label(trial), aim) for trial in reversed(order))]
    ends = [found.best, *([found.before] if found.before != found.best else [])]
    rows += [_row(each, f"in the end, {_label(each)}", aim) for each in ends]
    yield table(rows)


def _row(trial: Any, label: str, aim: Any) -> tuple[str, ...]:
    from forge.bench.tune.evidence import figure

    if trial.failed:
        return (label, trial.failed.splitlines()[0][:60], *([""] * (len(aim.figures) - 1)))
    return (label, *(figure(trial.figures[name]) if name in trial.figures else "-" for name in aim.figures))


def _label(trial: Any) -> str:
    from forge.bench.tune.space import shown

    words = [f"{key}={shown(value)}" for key, value in {**trial.settings, **trial.load}.items()]
    return " ".join(words if trial.settings else ["as it is:", *words])


def _end(found: Any, file: Path, aim: Any, *, written: bool, own: bool) -> str:
    if written:
        return f"written into {file}: {', '.join(found.best.settings)}"
    if not aim.kept({name: each.value for name, each in found.best.figures.items()}):
        return f"no setting keeps {' and '.join(found.limits)}; the nearest is shown last"
    if found.better and found.best.settings:
        copied = f": it is forge's own (`forge new --example {file.stem} -o FILE` copies it)" if own else ""
        return f"better than {file} as it is; not written{copied}"
    return f"{file} stays as it is: nothing is better by more than chance"
