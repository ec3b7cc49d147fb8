"""One prompt's verdicts: what each stage said against what the checkpoint says. Pure.

Each stage is judged alone: the engine is asked with the checkpoint's own ids, the detokenizer with its tokens, and the pipeline
is held to what its own stages say, so that a fault is found where it is and not everywhere behind it too.
"""

from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from enum import StrEnum

from msgspec import Struct, field

from forge.client.answer import BROKEN
from forge.verify.tolerances import Tolerance
from forge.verify.transcripts import Reference, Transcript

PIECED = (
    "its pieces are decoded each by itself, which loses blanks and characters that span tokens: set accumulate_tokens = true "
    "([serve.parameters.tensorrt_llm_bls]), or ask without streaming"
)
_SILENT = 1e-6
"""Log-probabilities that are all this near 0 are no log-probabilities: some versions normalize them over the top 1."""
_SHOWN = 24
_CHARACTER = 4
"""Bytes at most."""
ENDS = "end tokens"
"""What the finding about them is called in place of a prompt."""
TEMPLATE = "chat template"
"""Likewise."""
_ALIKE = 0.5
"""Part of the letters that two texts share in order, from which on one is the other decoded wrongly."""


class Stage(StrEnum):
    """Where a fault can be, in the order in which a request passes them. ``PIPELINE`` is a model that holds all in one."""

    TOKENIZER = "tokenizer"
    ENGINE = "engine"
    DETOKENIZER = "detokenizer"
    TRANSPORT = "transport"
    PIPELINE = "pipeline"


class Outcome(StrEnum):
    """What came out. ``TIE``: it differs where the checkpoint itself holds two tokens for almost equally likely."""

    SAME = "same"
    TIE = "near tie"
    DIFFERS = "differs"
    SKIPPED = "skipped"


class Difference(Struct, frozen=True):
    """The first place where two rows of tokens differ: the token of each (None: it had ended), and what both sides give for
    the token that the served model took and for the checkpoint's own, in nats (None: not told)."""

    position: int
    expected: int | None
    found: int | None
    expected_log_prob: float | None = None
    found_log_prob: float | None = None
    """The checkpoint's, for the token that was found; None also where it is not among the likeliest."""
    served_log_prob: float | None = None
    gap: float | None = None
    """The checkpoint's own top two there, apart in nats."""


class Verdict(Struct, frozen=True):
    """One stage, one prompt (or one streaming check, by its name), and what came out."""

    stage: Stage
    prompt: str
    outcome: Outcome
    what: str = ""
    difference: Difference | None = None


class Heard(Struct, frozen=True):
    """What the served stages said to one prompt; None where there is no such stage, or it could not be asked.

    ``tokens`` answers the checkpoint's ids and ``own_tokens`` those that preprocessing made; ``decoded`` is postprocessing's
    text of the checkpoint's tokens and ``own_decoded`` of ``own_tokens``. ``texts`` are the pipeline's, by way.
    """

    prompt: str
    ids: tuple[int, ...] | None = None
    tokens: tuple[int, ...] | None = None
    log_probs: tuple[float, ...] = ()
    own_tokens: tuple[int, ...] | None = None
    decoded: str | None = None
    own_decoded: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict[str, str])
    ends: tuple[int, ...] | None = None
    """Tokens that end an answer: preprocessing's end id, and stop words of one token; of a model that holds all stages, those
    that were seen to end one."""
    prompt_tokens: int | None = None
    """How many tokens the prompt had, as a model counts them that holds all stages."""
    stream_tokens: tuple[int, ...] | None = None
    """What such a model said when it streamed; ``tokens`` are those of ``texts[UNARY]`` there."""


UNARY, STREAM, ENSEMBLE = "unary", "stream", "ensemble"
"""Ways through the pipeline: the front model whole and streamed, and the ensemble."""


def judge_ends(ended: Sequence[int] | None, reference: Reference, whose: str = "preprocessing") -> tuple[Verdict, ...]:
    """Whether what is sent ends answers where the checkpoint does; nothing where nobody said. ``whose`` the ends are."""
    if ended is None or not reference.ends:
        return ()
    missing = [each for each in reference.ends if each not in ended]
    more = [each for each in ended if each not in reference.ends]
    what = "; ".join(
        f"{told} {', '.join(map(str, ids))}"
        for told, ids in (("the checkpoint ends at", missing), (f"{whose} ends at", more))
        if ids
    )
    where = f"{what}, and the other does not: answers go on too long or end too early" if what else ""
    return (Verdict(Stage.TOKENIZER, ENDS, Outcome.DIFFERS if what else Outcome.SAME, where),)


def judge(said: Transcript, heard: Heard, reference: Reference, allowed: Tolerance) -> tuple[Verdict, ...]:
    """The verdict of every stage that could be asked."""
    return tuple(_verdicts(said, heard, reference, allowed))


def _verdicts(said: Transcript, heard: Heard, reference: Reference, allowed: Tolerance) -> Iterator[Verdict]:
    if heard.ids is not None:
        what = ids_differ(said.ids, heard.ids, reference.begin)
        yield Verdict(Stage.TOKENIZER, said.name, Outcome.DIFFERS if what else Outcome.SAME, what)
    if heard.tokens is not None:
        yield judge_tokens(said, heard, reference, allowed)
    if heard.decoded is not None:
        what = texts_differ(said.text, heard.decoded)
        yield Verdict(
            Stage.DETOKENIZER, said.name, Outcome.DIFFERS if what else Outcome.SAME, what and f"postprocessing: {what}"
        )
    yield from _whole(said, heard, allowed) if heard.tokens is None else _pipeline(said, heard, reference, allowed)


def ids_differ(expected: Sequence[int], found: Sequence[int], begin: int | None = None) -> str:
    """In words how two rows of prompt ids differ; empty where they are the same. ``begin`` is the token that begins a text."""
    if tuple(expected) == tuple(found):
        return ""
    if begin is not None and tuple(found) == (begin, *expected):
        twice = bool(expected) and expected[0] == begin
        kind = (
            "twice: the chat template writes it, and preprocessing adds it again" if twice else "and the checkpoint adds none"
        )
        return f"the beginning token {begin} stands there {kind}"
    if begin is not None and (begin, *found) == tuple(expected):
        return (
            f"the beginning token {begin} is missing: add_special_tokens is off, or the tokenizer's settings do not ask for it"
        )
    place = _first(expected, found)
    left, right = list(expected[place : place + 4]), list(found[place : place + 4])
    counts = "" if len(expected) == len(found) else f" ({len(expected)} and {len(found)} ids)"
    return f"from token {place} on: the checkpoint's {left}, preprocessing's {right}{counts}"


def texts_differ(expected: str, found: str) -> str:
    """In words how two texts differ; empty where they are the same. Blanks at the very start do not count: tokenizers drop one
    there or keep it. Nor does how bytes that are no character are shown."""
    expected, found = expected.lstrip(), found.lstrip()
    if expected == found or _broken_alike(expected, found):
        return ""
    if expected.split() and "".join(expected.split()) == "".join(found.split()):
        return f"the same but for blanks: {_around(expected, found)}"
    return _around(expected, found)


def _broken_alike(expected: str, found: str) -> bool:
    """Whether two texts say the same but for U+FFFD: one for each byte of a run or one for all, or at the end the characters of
    a run that another decoder shows as broken, all or nothing, because it breaks off."""
    if BROKEN in expected and BROKEN in found and expected.replace(BROKEN, "") == found.replace(BROKEN, ""):
        return True
    whole = expected.rstrip(BROKEN)
    cut, rest = len(expected) - len(whole), found[len(whole) :]
    bytes_said = len(rest.replace(BROKEN, "").encode()) + rest.count(BROKEN)
    return found.startswith(whole) and 0 <= cut - bytes_said < _CHARACTER and cut > 0


def _around(expected: str, found: str) -> str:
    place = _first(expected, found)
    begin = max(0, place - 8)
    return f"at character {place}: expected {expected[begin : begin + _SHOWN]!r}, found {found[begin : begin + _SHOWN]!r}"


def first_difference(
    said: Transcript, tokens: Sequence[int], log_probs: Sequence[float] = (), ends: Sequence[int] = ()
) -> Difference | None:
    """Where ``tokens`` leave the checkpoint's; None where they do not. ``ends`` are the ids that an answer can end with."""
    if said.tokens == tuple(tokens):
        return None
    place = _first(said.tokens, tokens)
    expected = said.tokens[place] if place < len(said.tokens) else None
    found = tokens[place] if place < len(tokens) else None
    rivals = dict(said.rivals[place]) if place < len(said.rivals) else {}
    best = said.rivals[place][0] if place < len(said.rivals) and said.rivals[place] else None
    likely = [rivals[token] for token in (ends if found is None else (found,)) if token in rivals]
    return Difference(
        place,
        expected,
        found,
        best[1] if best else None,
        max(likely, default=None),
        log_probs[place] if place < len(log_probs) else None,
        said.gap(place),
    )


def judge_tokens(said: Transcript, heard: Heard, reference: Reference, allowed: Tolerance) -> Verdict:
    """The engine's verdict: its tokens, and their log-probabilities where it told them."""
    tokens = reference.until_end(heard.tokens or ())
    difference = first_difference(said, tokens, heard.log_probs, reference.ends)
    shared = len(tokens) if difference is None else difference.position
    drift = _drift(said.log_probs[:shared], heard.log_probs[:shared])
    if drift is not None and drift > allowed.drift:
        what = f"log-probabilities of {shared} tokens are {drift:.3g} nats apart on the average; allowed: {allowed.drift:g}"
        if difference is not None:
            what += f"; {_told(difference)}"
        return Verdict(Stage.ENGINE, said.name, Outcome.DIFFERS, what, difference)
    if difference is None:
        return Verdict(Stage.ENGINE, said.name, Outcome.SAME, f"{len(tokens)} tokens")
    tied = _tied(difference, allowed)
    return Verdict(Stage.ENGINE, said.name, Outcome.TIE if tied else Outcome.DIFFERS, _told(difference), difference)


def _tied(difference: Difference, allowed: Tolerance) -> bool:
    """Whether the checkpoint holds what was found for almost as likely as its own."""
    best, other = difference.expected_log_prob, difference.found_log_prob
    return best is not None and other is not None and best - other <= allowed.tie


def _told(difference: Difference) -> str:
    def shown(log_prob: float | None) -> str:
        return "not told" if log_prob is None else f"{log_prob:.4f}"

    expected, found = (each if each is not None else "the end" for each in (difference.expected, difference.found))
    other = shown(difference.found_log_prob) if difference.found_log_prob is not None else "not among its likeliest"
    return (
        f"token {difference.position}: the checkpoint says {expected} (log-prob {shown(difference.expected_log_prob)}, "
        f"the other {other}), the engine {found} (its log-prob {shown(difference.served_log_prob)}); "
        f"the checkpoint's top two are {shown(difference.gap)} nats apart"
    )


def _drift(expected: Sequence[float], found: Sequence[float]) -> float | None:
    """The mean distance in nats; None where the engine told no log-probabilities."""
    pairs = list(zip(expected, found, strict=False))
    if not pairs or all(abs(value) < _SILENT for _, value in pairs):
        return None
    return sum(abs(one - other) for one, other in pairs) / len(pairs)


def _pipeline(said: Transcript, heard: Heard, reference: Reference, allowed: Tolerance) -> Iterator[Verdict]:
    """The texts of the pipeline against what its own stages say: the tokens that it must have had, decoded."""
    expected = _expected(said, heard, reference)
    if expected is None:
        why = "what it should say cannot be known while the engine and the detokenizer both differ"
        yield Verdict(Stage.TRANSPORT, said.name, Outcome.SKIPPED, why)
        return
    wrong = {way: what for way, text in heard.texts.items() if (what := _text(said, expected, text, allowed))}
    if ends_elsewhere(heard, reference):
        begun = [way for way in wrong if begins(expected, heard.texts[way])]
        wrong = {way: what for way, what in wrong.items() if way not in begun}
        if begun and not wrong:
            yield Verdict(Stage.TRANSPORT, said.name, Outcome.SKIPPED, f"its answers end elsewhere: see {ENDS}")
            return
    unary, stream = heard.texts.get(UNARY), heard.texts.get(STREAM)
    found = False
    # The front model decodes by itself: what it says wrongly in the same way, whole and streamed, is its decoding.
    if UNARY in wrong and (stream is None or STREAM in wrong) and _alike(expected, unary or ""):
        yield Verdict(Stage.DETOKENIZER, said.name, Outcome.DIFFERS, f"the front model: {wrong.pop(UNARY)}")
        wrong.pop(STREAM, None)
        found = True
    if STREAM in wrong and UNARY not in wrong and pieced(expected, stream or ""):
        yield Verdict(Stage.DETOKENIZER, said.name, Outcome.DIFFERS, f"stream: {PIECED}; {wrong.pop(STREAM)}")
        found = True
    if heard.decoded is not None and texts_differ(said.text, heard.decoded):
        wrong.pop(ENSEMBLE, None)  # postprocessing's fault, told already
    for way, what in wrong.items():
        yield Verdict(Stage.TRANSPORT, said.name, Outcome.DIFFERS, f"{way}: {what}")
        found = True
    if not found:
        yield Verdict(Stage.TRANSPORT, said.name, Outcome.SAME, f"{', '.join(heard.texts)} say the same")


def ends_elsewhere(heard: Heard, reference: Reference) -> bool:
    """Whether its answers were found to end at other tokens than the checkpoint's."""
    return bool(judge_ends(heard.ends, reference)) and set(heard.ends or ()) != set(reference.ends)


def begins(expected: str, found: str) -> bool:
    """Whether one of two texts is the other, and more."""
    one, other = expected.strip().rstrip(BROKEN), found.strip().rstrip(BROKEN)
    return one.startswith(other) or other.startswith(one)


def pieced(expected: str, found: str) -> bool:
    """Whether a text lacks no more than what is lost where its tokens are decoded piece by piece: blanks, and characters that
    span tokens."""
    whole, pieces = "".join(expected.split()), "".join(found.split())
    if BROKEN not in pieces:
        return bool(whole) and whole == pieces
    left = iter(whole)
    letters = pieces.replace(BROKEN, "")
    # What is nothing but broken says nothing of how it was decoded.
    return len(letters) >= pieces.count(BROKEN) and all(letter in left for letter in letters)


def _alike(expected: str, found: str) -> bool:
    """Whether it is the same answer written otherwise, and not another answer."""
    return SequenceMatcher(None, "".join(expected.split()), "".join(found.split()), autojunk=False).ratio() >= _ALIKE


def _expected(said: Transcript, heard: Heard, reference: Reference) -> str | None:
    own = reference.until_end(heard.own_tokens or ())
    if own == said.tokens:
        return said.text
    trusted = heard.decoded is not None and not texts_differ(said.text, heard.decoded)
    return heard.own_decoded if trusted else None


def _text(said: Transcript, expected: str, text: str, allowed: Tolerance) -> str:
    """How a text of the pipeline differs by more than a near tie of the engine's, which batches anew each time."""
    what = texts_differ(expected, text)
    return "" if not what or (expected == said.text and text_tied(said, text, allowed)) else what


def text_tied(said: Transcript, text: str, allowed: Tolerance) -> bool:
    """Whether ``text`` leaves the checkpoint's where the checkpoint holds two tokens for almost equally likely.

    In float32 nothing is a tie by its text alone: the same batch or another, the same tokens come out.
    """
    if allowed.tie < 0.01:
        return False
    gap = said.gap(said.token_at(_first(said.text.lstrip(), text.lstrip())))
    return gap is not None and gap <= allowed.tie


def _whole(said: Transcript, heard: Heard, allowed: Tolerance) -> Iterator[Verdict]:
    """A model that takes text and gives text, with all stages inside: only its text can be held to the checkpoint's."""
    for way, text in heard.texts.items():
        what = texts_differ(said.text, text)
        outcome = Outcome.SAME if not what else Outcome.TIE if text_tied(said, text, allowed) else Outcome.DIFFERS
        yield Verdict(Stage.PIPELINE, said.name, outcome, what and f"{way}: {what}")


def _first(left: Sequence[object], right: Sequence[object]) -> int:
    """The first place where two rows differ."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(left), len(right)))
