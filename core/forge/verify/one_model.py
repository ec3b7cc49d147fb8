"""One prompt's verdicts on a model that holds all stages and tells the tokens of what it says: vLLM's. Pure.

Its stages cannot be asked one by one. But an answer of it has its text, its tokens, and how many the prompt had. So each is
judged by what stands before it: the tokens by the checkpoint's, the text by the tokens, the stream by the whole answer.
"""

import re
from collections.abc import Iterator

from msgspec.structs import replace

from forge.verify.judge import (
    ENDS,
    PIECED,
    STREAM,
    UNARY,
    Heard,
    Outcome,
    Stage,
    Verdict,
    begins,
    ends_elsewhere,
    first_difference,
    judge,
    judge_tokens,
    pieced,
    text_tied,
    texts_differ,
)
from forge.verify.tolerances import Tolerance
from forge.verify.transcripts import Reference, Transcript

WHOSE = "the served model"
_CLEANED = re.compile(r" (?=[.?!,]|n't|'m|'s|'ve|'re)|(?<= ') | (?=' )")
"""Blanks that transformers leaves out where a tokenizer's settings say clean_up_tokenization_spaces, and vLLM keeps: it
decodes as it goes."""


def judge_one(said: Transcript, heard: Heard, reference: Reference, allowed: Tolerance) -> tuple[Verdict, ...]:
    """The verdict of every stage that can be told apart; by the text alone (PIPELINE) where it told no tokens."""
    return tuple(_verdicts(said, heard, reference, allowed))


def _verdicts(said: Transcript, heard: Heard, reference: Reference, allowed: Tolerance) -> Iterator[Verdict]:
    if heard.prompt_tokens is not None:
        what = _counts_differ(said, heard.prompt_tokens, reference.begin)
        yield Verdict(Stage.TOKENIZER, said.name, Outcome.DIFFERS if what else Outcome.SAME, what)
        if what:
            why = "it had other tokens before it than the checkpoint: see tokenizer"
            yield Verdict(Stage.ENGINE, said.name, Outcome.SKIPPED, why)
            return
    if heard.tokens is None:
        yield from judge(said, heard, reference, allowed)
        return
    engine = judge_tokens(_as_far(said, heard, reference), heard, reference, allowed)
    yield engine
    yield _detokenizer(said, heard, reference)
    if STREAM in heard.texts:
        yield from _stream(said, heard, reference, allowed, engine)


def _counts_differ(said: Transcript, count: int, begin: int | None) -> str:
    expected = len(said.ids)
    if count == expected:
        return ""
    told = f"the checkpoint makes {expected} tokens of the prompt, and the served model {count}"
    if begin is not None and count == expected + 1 and said.ids[:1] == (begin,):
        return f"{told}: the beginning token {begin} may stand there twice"
    if begin is not None and count == expected - 1 and said.ids[:1] == (begin,):
        return f"{told}: the beginning token {begin} may be missing"
    return told


def _as_far(said: Transcript, heard: Heard, reference: Reference) -> Transcript:
    """What the checkpoint says up to a token that ends answers in the served model alone: that is no fault of the engine's."""
    tokens = heard.tokens or ()
    count = len(tokens)
    ended = bool(tokens) and tokens[-1] in (heard.ends or ()) and tokens[-1] not in reference.ends
    if not ended or tokens != said.tokens[:count]:
        return said
    return replace(said, tokens=tokens, log_probs=said.log_probs[:count], rivals=said.rivals[:count])


def _detokenizer(said: Transcript, heard: Heard, reference: Reference) -> Verdict:
    """The text of the whole answer against the text of its tokens, as far as those are the checkpoint's."""
    name, text = said.name, heard.texts[UNARY]
    tokens = reference.until_end(heard.tokens or ())
    if tokens[-1:] and tokens[-1] in (heard.ends or ()):
        tokens = tokens[:-1]  # what ends an answer is no text of it
    difference = first_difference(said, tokens)
    if difference is None:
        what = _texts_differ(said.text, text)
        if what and ends_elsewhere(heard, reference) and begins(said.text, text):
            return Verdict(Stage.DETOKENIZER, name, Outcome.SKIPPED, f"its answers end elsewhere: see {ENDS}")
        return Verdict(Stage.DETOKENIZER, name, Outcome.DIFFERS if what else Outcome.SAME, what)
    shared = said.text[: said.lengths[difference.position - 1]].strip() if difference.position else ""
    if not shared:
        return Verdict(Stage.DETOKENIZER, name, Outcome.SKIPPED, "it shares no text with the checkpoint's answer")
    what = _texts_differ(shared, text.lstrip()[: len(shared)])
    return Verdict(Stage.DETOKENIZER, name, Outcome.DIFFERS if what else Outcome.SAME, what)


def _stream(said: Transcript, heard: Heard, reference: Reference, allowed: Tolerance, engine: Verdict) -> Iterator[Verdict]:
    """The streamed answer against the whole one, where both are of the same tokens; of others, against the checkpoint."""
    whole, stream = heard.texts[UNARY], heard.texts[STREAM]
    if heard.stream_tokens is not None and heard.stream_tokens != heard.tokens:
        again = replace(heard, tokens=heard.stream_tokens, log_probs=())
        found = judge_tokens(_as_far(said, again, reference), again, reference, allowed)
        if found.outcome is Outcome.DIFFERS and engine.outcome is not Outcome.DIFFERS:
            yield replace(found, what=f"streamed: {found.what}")
        why = "streamed it said other tokens than whole"
        yield Verdict(Stage.TRANSPORT, said.name, Outcome.SKIPPED, f"{why}: see engine")
        return
    what = texts_differ(whole, stream)
    if what and heard.stream_tokens is None and text_tied(said, stream, allowed):
        yield Verdict(Stage.TRANSPORT, said.name, Outcome.TIE, f"stream: {what}")
    elif what and pieced(whole, stream):
        yield Verdict(Stage.DETOKENIZER, said.name, Outcome.DIFFERS, f"stream: {PIECED}; {what}")
    else:
        told = f"stream: {what}" if what else "unary, stream say the same"
        yield Verdict(Stage.TRANSPORT, said.name, Outcome.DIFFERS if what else Outcome.SAME, told)


def _texts_differ(expected: str, found: str) -> str:
    what = texts_differ(expected, found)
    return what and texts_differ(_CLEANED.sub("", expected), _CLEANED.sub("", found)) and what
