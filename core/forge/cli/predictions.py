"""What `forge tune --offline` shows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forge.cli.output import Output

_HEAD = ("", "TP", "PP", "BATCH", "CONCURRENCY", "TOKENS/S", "TOKENS/S/GPU", "TOKENS/S/USER", "TTFT", "ITL", "MEMORY")


def predict(output: Output, file: Path, asked: Any, gpu: str, *, writes: bool) -> None:
    """Ask AIConfigurator, show its best settings as predictions, and write what was varied where the recipe may be written."""
    import msgspec

    from forge.errors import LimitError

    told = output.here().predict(file, asked, gpu)
    found = told.found
    written = writes and told.write(file)
    lines = [
        *_lines(found, told.question),
        *([f"note: {found.note}"] if found.note else []),
        _end(found, file, written=written),
    ]
    output.result({**msgspec.to_builtins(found), "written": written}, "\n".join(lines))
    if not found.kept:
        raise SystemExit(LimitError.exit_code)


def _lines(found: Any, question: Any) -> Iterator[str]:
    yield f"predicted, not measured: {found.by}, {question.input_tokens} tokens in and {question.output_tokens} out"
    rows = [_HEAD, *(_row(at, row) for at, row in enumerate(found.rows, 1))]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_HEAD))]
    yield from ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _row(at: int, row: Any) -> tuple[str, ...]:
    speeds = (f"{each:.4g}" for each in (row.tokens_per_s, row.tokens_per_s_gpu, row.tokens_per_s_user))
    times = (f"{row.ttft_ms:.3g} ms", f"{row.tpot_ms:.3g} ms", f"{row.memory_gib:.3g} GiB")
    return (str(at), *map(str, (row.tp, row.pp, row.batch, row.concurrency)), *speeds, *times)


def _end(found: Any, file: Path, *, written: bool) -> str:
    if not found.kept:
        return f"no setting is predicted to keep {' and '.join(found.limits) or 'this'}"
    if written:
        return f"written into {file}, as a prediction: {', '.join(found.settings)}"
    if found.settings:
        keys = ", ".join(f"{key} = {value}" for key, value in found.settings.items())
        return f"{file} stays as it is; the best would say {keys}"
    return f"{file} stays as it is: --vary names the keys that may be written"
