"""verify."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import click

from forge.cli.output import Output, verb
from forge.cli.param_types import FILE
from forge.cli.text import table

_COLOURS = {"same": "green", "near tie": "yellow", "differs": "red", "skipped": "cyan"}
_STAGES = ("tokenizer", "engine", "detokenizer", "transport", "pipeline")
Row = Mapping[str, object]


@click.command()
@click.argument("model", metavar="MODEL|RECIPE")
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where MODEL is published; it is served for the time being unless a server runs there. [default: model-repository]",
)
@click.option("--lora", metavar="NAME", default="", help="Ask with this adapter of MODEL's, and merge it into the checkpoint.")
@click.option("--prompts", type=FILE, help="Prompts: JSONL, or one a line.")
@click.option("--max-tokens", type=click.IntRange(1), help="Tokens of each answer.  [default: the recipe's, 32]")
@click.option("--no-streaming", is_flag=True, help="Leave out the checks of streaming.")
@click.option("--update", is_flag=True, help="Write RECIPE.golden.json: what the checkpoint says, for later verifications.")
@click.option("--fresh", is_flag=True, help="Ask transformers even where golden transcripts fit.")
@click.option("--python", default="", help="A Python that has torch and transformers.")
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Hold it to the checkpoint in this folder, not to the one it was built from.",
)
@verb
def verify(output: Output, model: str, repository: Path | None, no_streaming: bool, **options: object) -> None:
    """Prove that a served MODEL says what its checkpoint says.

    Where it does not, the stage that fails is named. Nothing is built: a running server that offers MODEL is asked, or
    the repository is served for the time being. Exit code 13 when something differs by more than its dtype and quantization
    allow (docs/verify.md).

    \b
    Example:
        forge verify recipes/smollm2-135m-instruct.toml
    """
    from forge.errors import VerifyError
    from forge.verify.verify import VerifyOptions, document

    wanted = VerifyOptions(streaming=not no_streaming, **options)  # type: ignore[arg-type]
    report = output.here().verify(model, repository, wanted)
    output.close()
    shown = document(report)
    output.result(shown, _text(shown))
    if not report.passed:
        raise SystemExit(VerifyError.exit_code)


def _text(shown: dict[str, object]) -> str:
    """A row for each prompt with a column for each stage, the checks, and what to do next."""
    import msgspec

    held = cast("Row", msgspec.to_builtins(shown))
    verdicts, checks = (cast("list[Row]", held[name]) for name in ("verdicts", "checks"))
    stages = [stage for stage in _STAGES if any(each["stage"] == stage for each in verdicts)]
    rows = [("PROMPT", *(stage.upper() for stage in stages))]
    for prompt in dict.fromkeys(str(each["prompt"]) for each in verdicts):
        rows.append((prompt, *(_worst(verdicts, prompt, stage) for stage in stages)))
    lines = [_coloured(line) for line in table(rows).splitlines()]
    if checks:
        lines += [
            "",
            *(
                _coloured(line)
                for line in table([("CHECK", ""), *((str(c["prompt"]), str(c["outcome"])) for c in checks)]).splitlines()
            ),
        ]
    allowed = cast("Row", held["allowed"])
    lines += ["", f"reference: {held['reference']}", f"allowed: {allowed['name']}, near ties up to {allowed['tie']} nats"]
    lines += [f"note: {note}" for note in cast("list[str]", held["notes"])]
    told = [each for each in (*verdicts, *checks) if each["outcome"] != "same" and each["what"]]
    lines += ["", *(f"{each['stage']}, {each['prompt']}: {each['outcome']}: {each['what']}" for each in told)] if told else []
    failing = cast("list[str]", held["failing"])
    if not failing:
        return "\n".join([*lines, "", click.style(f"{held['model']} says what its checkpoint says", fg="green")])
    following = cast("Mapping[str, str]", held["next"])
    lines += ["", click.style(f"failing: {', '.join(failing)}", fg="red", bold=True)]
    return "\n".join([*lines, *(f"  {stage}: {following[stage]}" for stage in failing)])


def _worst(verdicts: list[Row], prompt: str, stage: str) -> str:
    found = {str(each["outcome"]) for each in verdicts if each["prompt"] == prompt and each["stage"] == stage}
    return next((outcome for outcome in ("differs", "near tie", "skipped", "same") if outcome in found), "-")


def _coloured(line: str) -> str:
    """Outcomes in their colours; done on whole lines, so that columns keep their widths."""
    name, rest = line[:1], line[1:]
    for outcome, colour in _COLOURS.items():
        rest = rest.replace(f"  {outcome}", f"  {click.style(outcome, fg=colour)}")
    return name + rest
