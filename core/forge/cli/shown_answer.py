"""How an answer is shown: as it comes, several side by side, with how likely each token was, as lines of JSON."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

import click
from msgspec import Struct
from msgspec.structs import replace

from forge.cli.output import Output
from forge.cli.text import shown, table
from forge.client.answer import Answer, Hearing, Perf, Piece, Reply
from forge.client.guide import Guide
from forge.client.sampling import over, samples, seeded
from forge.client.types import Chunk, Request
from forge.errors import ConfidenceError, InferenceError
from forge.files import texts

BETWEEN = "\n---\n"
"""Between several answers where they cannot stand side by side."""

Spans = Callable[[str], Sequence[tuple[str, int]]]
"""A text -> its tokens' texts, each with how many tokens it is."""


class Display(Struct, frozen=True):
    """What is to be seen of an answer beside its text. ``whole``: nothing before its end; ``several``: of sequences."""

    log_probs: bool = False
    alternatives: bool = False
    perf: bool = False
    threshold: float | None = None
    whole: bool = False
    several: bool = False
    chunks: bool = True
    """With --json: a line for each chunk."""


def asked(request: Request, options: dict[str, object]) -> tuple[Request, Display]:
    """``request`` with what the person asked for, the recipe's sampling speaking for the rest; and what they want to see."""
    words = dict(options)
    others = bool(words.get("top_log_probs"))
    logprobs, threshold, perf = bool(words.pop("logprobs")) or others, words.pop("min_logprob"), bool(words.pop("perf"))
    guide = guided(words.pop("json_schema", None), words.pop("regex", None))
    more = [each.partition("=") for each in cast("tuple[str, ...]", words.pop("more"))]
    if wrong := [name for name, equals, _ in more if not (name and equals)]:
        raise click.BadParameter(f"{wrong[0]!r} is not NAME=VALUE", param_hint="--input")
    request = replace(
        over(request, {name: value for name, value in words.items() if value != ()}),
        inputs={name: value for name, _, value in more},
        guide=guide,
        return_log_probs=logprobs or threshold is not None,
        return_perf_metrics=perf,
        return_token_counts=True,
    )
    several = (request.n or request.beam_width or 1) > 1
    return seeded(request), Display(logprobs, others, perf, cast("float | None", threshold), not request.stream, several)


def guided(schema: object, expression: object) -> Guide | None:
    """Of a schema's file and a regular expression, at most one of which is given."""
    if schema is not None and expression is not None:
        raise click.UsageError("--json-schema and --regex: an answer can be held to one of them")
    if isinstance(schema, Path):
        return Guide.json_schema(texts.read(schema, InferenceError, "the JSON schema"), str(schema))
    return None if expression is None else Guide.regex(str(expression))


def doubt(request: Request, options: dict[str, object]) -> str:
    """What to say where a seed or several answers were asked for and nothing is drawn; empty where something is."""
    wanted = [name for name, said in (("--seed", options.get("seed") is not None), ("-n", (request.n or 1) > 1)) if said]
    if not wanted or samples(request) or (request.beam_width or 1) > 1:
        return ""
    verb = "changes" if len(wanted) == 1 else "change"
    return f"{' and '.join(wanted)} {verb} nothing: the likeliest token is taken each time (a --temperature above 0 draws)"


class Screen(Protocol):
    """Shows something again and again in the same place."""

    def show(self, replies: Sequence[Reply]) -> None: ...
    def close(self) -> None: ...


def tell(output: Output, request: Request, chunks: Iterator[Chunk], display: Display, spans: Spans = lambda _: ()) -> Answer:
    """Show the answer to ``request`` as it comes, or whole where it has to be; ``spans`` parts the tokens of what came so."""
    hearing = Hearing(request)
    tell_chunk = _teller(output, display)
    screen = _columns(display) if display.several and not output.as_json and sys.stdout.isatty() else None
    try:
        for chunk in chunks:
            hearing.hear(chunk)
            tell_chunk(chunk)
            if screen:
                screen.show(hearing.replies())
    finally:
        if screen:
            screen.close()
    answer = hearing.answer(lambda text: sum(count for _, count in spans(text)) if output.as_json else 0)
    if display.log_probs:
        answer = replace(answer, replies=tuple(_apart(reply, spans) for reply in answer.replies))
    if not output.as_json:
        _finish(answer, display, shown=screen is not None)
    if display.perf:
        if not answer.perf.counted:
            counts = [sum(count for _, count in spans(reply.text)) for reply in answer.replies]
            answer = replace(answer, perf=answer.perf.tokenized(counts))
        output.say(_perf(answer))
    return answer


def _apart(reply: Reply, spans: Spans) -> Reply:
    return reply.spelled(spans(reply.text)) if len(reply.pieces) == 1 and len(reply.log_probs) > 1 else reply


def judge(output: Output, answer: Answer, display: Display) -> None:
    """End with ConfidenceError's exit code where no sequence reaches the threshold; InferenceError where that is unknown."""
    if display.threshold is None:
        return
    below = answer.below(display.threshold)
    if below is None:
        raise InferenceError("the model reports no log-probabilities", hint="--min-logprob cannot be judged by this model")
    if below:
        best = max(reply.log_prob for reply in answer.replies if reply.log_prob is not None)
        output.say(f"the answer's log-probability {best:.3f} is below {display.threshold:g}")
        sys.exit(ConfidenceError.exit_code)


def document(answer: Answer, display: Display) -> dict[str, object]:
    """What the last line of JSON says of an answer."""
    found: dict[str, object] = {
        "answers": [reply.text for reply in answer.replies],
        "sequences": [_sequence(index, reply, display) for index, reply in enumerate(answer.replies)],
    }
    if display.perf:
        found["perf"] = _perf_document(answer.perf)
    if display.threshold is not None:
        found["below_min_logprob"] = answer.below(display.threshold)
    if answer.acceptance is not None:
        held = answer.acceptance
        found["acceptance"] = {"rate": held.rate, "accepted": held.accepted, "drafted": held.drafted}
    counts = {"input_tokens": answer.input_tokens, "output_tokens": answer.output_tokens}
    return found | {name: count for name, count in counts.items() if count is not None}


def _sequence(index: int, reply: Reply, display: Display) -> dict[str, object]:
    found: dict[str, object] = {"index": index, "text": reply.text, "finish_reason": reply.finish}
    if reply.stopped:
        found["stopped"] = True
    if reply.log_prob is not None:
        found |= {"log_prob": reply.log_prob, "geometric_mean": reply.geometric_mean}
        if display.threshold is not None:
            found["below_min_logprob"] = reply.below(display.threshold)
    if display.log_probs:
        found["pieces"] = [_piece(piece) for piece in reply.pieces]
    return found


def _piece(piece: Piece) -> dict[str, object]:
    others = {"alternatives": piece.alternatives} if piece.alternatives else {}
    return {"text": piece.text, "log_probs": piece.log_probs, **others}


def _teller(output: Output, display: Display) -> Callable[[Chunk], None]:
    if output.as_json:
        return (lambda chunk: output.line(_line(chunk))) if display.chunks else (lambda _: None)
    if display.whole or display.several:
        return lambda _: None
    held: list[float] = []

    def say(chunk: Chunk) -> None:
        held.extend(chunk.log_probs)
        click.echo(_safe(_coloured(Piece(chunk.text, tuple(held))) if display.log_probs else chunk.text), nl=False)
        if chunk.text:
            held.clear()
        sys.stdout.flush()

    return say


def _safe(text: str) -> str:
    """A model's words as they are for a file; a terminal does nothing that they say."""
    return shown(text) if sys.stdout.isatty() else text


def _line(chunk: Chunk) -> dict[str, object]:
    """A chunk as JSON; what the model did not say is left out."""
    line: dict[str, object] = {"text": chunk.text, "index": chunk.index, "final": chunk.final}
    more: dict[str, object] = {
        "tokens": chunk.tokens,
        "log_probs": chunk.log_probs,
        "alternatives": chunk.alternatives,
        "cum_log_prob": chunk.cum_log_prob,
        "whole": chunk.whole or None,
        "stopped": chunk.stopped or None,
    }
    return line | {name: value for name, value in more.items() if value not in ((), None)}


def _finish(answer: Answer, display: Display, *, shown: bool) -> None:
    """What is left to show when all is said."""
    if display.whole or display.several:
        if not shown:
            parts = [_whole(reply, display) for reply in answer.replies]
            click.echo(_safe(BETWEEN.join(parts)))
    else:
        click.echo()
        if display.log_probs:
            click.echo(_logged(answer.replies[0], display))


def _whole(reply: Reply, display: Display) -> str:
    if not display.log_probs:
        return reply.text
    return "".join(_coloured(piece) for piece in reply.pieces) + "\n" + _logged(reply, display)


def _logged(reply: Reply, display: Display) -> str:
    """On a terminal the colours have told of each token; elsewhere, and of its alternatives, a table does. Then of the whole
    sequence."""
    told = sys.stdout.isatty() and not display.alternatives
    rows = [] if told else [row for piece in reply.pieces for row in _rows(piece, display)]
    head = ("TOKEN", "LOGPROB", "PROBABILITY", *(("LIKELIEST HERE",) if display.alternatives else ()))
    return (f"{table([head, *rows])}\n" if rows else "") + _sum(reply)


def _rows(piece: Piece, display: Display) -> Iterator[tuple[str, ...]]:
    """One row a token. Of several tokens that came in one piece, which part of its text is whose is not known."""
    count = len(piece.log_probs)
    text = json.dumps(piece.text if len(piece.text) <= 24 else f"{piece.text[:24]}...", ensure_ascii=False)
    for place, log_prob in enumerate(piece.log_probs):
        others = piece.alternatives[place : place + 1]
        told = [f"{json.dumps(each.text, ensure_ascii=False)} {math.exp(each.log_prob):.4f}" for each in (others or ((),))[0]]
        yield (
            text if count == 1 else f"{text} {place + 1}/{count}",
            f"{log_prob:.4f}",
            f"{math.exp(log_prob):.4f}",
            *((", ".join(told),) if display.alternatives else ()),
        )


def _sum(reply: Reply) -> str:
    if reply.log_prob is None:
        return "the model reports no log-probabilities"
    mean = "" if reply.geometric_mean is None else f", geometric mean {reply.geometric_mean:.4f}"
    count = len(reply.log_probs) or len(reply.tokens)
    return f"log-probability {reply.log_prob:.4f}{mean}" + (f" over {count} tokens" if count else "")


def _coloured(piece: Piece) -> str:
    """From red (improbable) over yellow to green (certain); click leaves the colours out where no terminal is."""
    if piece.probability is None:
        return piece.text
    red = round(220 * min(1.0, 2 - 2 * piece.probability))
    green = round(190 * min(1.0, 2 * piece.probability))
    return click.style(piece.text, fg=(red, green, 60))


def _perf(answer: Answer) -> str:
    perf = answer.perf
    unit = "tokens (by its tokenizer)" if perf.by_tokenizer else "tokens" if perf.counted else "pieces (nobody counts tokens)"
    said = [f"TTFT {perf.first * 1000:.1f} ms"] if perf.pieces > 1 else ["came whole"]
    if perf.inter_token is not None:
        said.append(f"ITL {perf.inter_token * 1000:.1f} ms")
    said.append(f"{perf.tokens} {unit} in {perf.total:.3f} s = {perf.rate:.1f}/s")
    if answer.acceptance is not None:
        held = answer.acceptance
        said.append(f"{held.accepted} of {held.drafted} draft tokens accepted ({held.rate:.0%})")
    return ", ".join(said)


def _perf_document(perf: Perf) -> dict[str, object]:
    return {
        "ttft_seconds": perf.first if perf.pieces > 1 else None,
        "itl_seconds": perf.inter_token,
        "total_seconds": perf.total,
        "tokens": perf.tokens,
        "tokens_counted": perf.counted,
        "tokens_counted_by": "tokenizer" if perf.by_tokenizer else "model" if perf.counted else None,
        "tokens_per_second": perf.rate,
    }


def _columns(display: Display) -> Screen:
    from forge.cli.columns import Columns

    return Columns(
        lambda reply: _sum(reply) if display.log_probs else "", lambda piece: piece.probability if display.log_probs else None
    )
