"""Whether a served model streams as a client may expect. Each check asks the front model and gives one verdict."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from msgspec import Struct
from msgspec.structs import replace

from forge.client.answer import BROKEN
from forge.client.types import Request
from forge.client.vllm import SAMPLING
from forge.errors import InferenceError
from forge.schema.values import Role, RuntimeKind
from forge.verify.interview import Interview, streamed
from forge.verify.judge import ENDS, PIECED, STREAM, UNARY, Heard, Outcome, Stage, Verdict, text_tied, texts_differ
from forge.verify.tolerances import Tolerance
from forge.verify.transcripts import Reference, Transcript

_SHORT = 5
_SEEDS = (11, 12, 13, 14)
_WARM = 16
"""Tokens of an answer that is drawn."""
_TOP_P = 0.95
_CHANCE = 1e-6
"""Answers to several seeds that are alike with less than this chance are a fault."""
_MOST = 32
"""Streams at most that are begun and left; one more than there are places would do."""
_PATIENCE = 20.0
"""Seconds, at least, in which a freed server answers."""
_CROWD = 8
"""Streams at once."""
_TURNS = 4
"""Prompts that each of them asks, one after another: short answers would hardly overlap otherwise."""


class _Unasked(Exception):  # noqa: N818 - says what became of a check
    """A check that this checkpoint's answers give no occasion for; the words say why."""


class Checks(Struct, frozen=True):
    """One served model, what its checkpoint says, and what was heard from it already."""

    interview: Interview
    reference: Reference
    heard: Sequence[Heard]
    allowed: Tolerance
    clock: Callable[[], float] = time.monotonic
    verdicts: Sequence[Verdict] = ()
    """What was found of the stages already."""

    def run(self, tell: Callable[[str], None]) -> Iterator[Verdict]:
        """Every check in turn; one that the server refuses to take part in is skipped, and its verdict says why."""
        asked = {
            "stream and final flag": self._pieces,
            "max_tokens": self._length,
            "stop words": self._stop,
            "streams at once": self._crowd,
            "seeds": self._seeds,
            "cancellation": self._left,
        }
        for number, (name, check) in enumerate(asked.items(), 1):
            if not self.interview.streams and name in ("stream and final flag", "streams at once", "cancellation"):
                yield Verdict(Stage.TRANSPORT, name, Outcome.SKIPPED, "the model was built to answer whole")
                continue
            if name in ("max_tokens", "stop words") and (failing := self._wrong()):
                yield Verdict(Stage.TRANSPORT, name, Outcome.SKIPPED, f"its texts are wrong already: see {failing}")
                continue
            tell(f"check {number} of {len(asked)}: {name}")
            try:
                what = check()
            except InferenceError as refusal:
                yield Verdict(Stage.TRANSPORT, name, Outcome.SKIPPED, f"refused: {refusal.what}")
                continue
            except _Unasked as reason:
                yield Verdict(Stage.TRANSPORT, name, Outcome.SKIPPED, str(reason))
                continue
            stage = Stage.DETOKENIZER if PIECED in what else Stage.TRANSPORT
            yield Verdict(stage, name, Outcome.DIFFERS if what else Outcome.SAME, what)

    def _wrong(self) -> str:
        """The stage behind wrong texts, where one was found: what follows from it is no finding of its own."""
        found = next((each for each in self.verdicts if each.outcome is Outcome.DIFFERS), None)
        return "" if found is None else ENDS if found.prompt == ENDS else str(found.stage)

    @property
    def _longest(self) -> Transcript:
        """The prompt with the longest answer, of which most can be cut."""
        return max(self.reference.transcripts, key=lambda said: len(said.tokens))

    def _ask(self, said: Transcript, most: int = 0) -> Request:
        return self.interview.greedy(said.prompt, most or self.reference.max_tokens)

    def _unary(self, said: Transcript) -> str:
        return next(heard for heard in self.heard if heard.prompt == said.name).texts[UNARY]

    def _pieces(self) -> str:
        """Exactly one final flag and that last; no character broken that the whole answer has not broken too."""
        for said in self.reference.transcripts:
            chunks = list(self.interview.chunks(streamed(self._ask(said))))
            flags = [chunk.final for chunk in chunks]
            if flags.count(True) != 1 or not flags[-1]:
                return (
                    f"{said.name}: {flags.count(True)} chunks of {len(flags)} are marked as the last; one has to be, the last"
                )
            broken, whole = sum(chunk.text.count(BROKEN) for chunk in chunks), self._unary(said).count(BROKEN)
            said_anyway = "".join(chunk.text for chunk in chunks).replace(BROKEN, "")
            if broken > whole and said_anyway != self._unary(said).replace(BROKEN, ""):
                found = f"{broken} characters are broken at the edges of chunks (U+FFFD), {whole} in the whole answer"
                return f"{said.name}: {found}; {PIECED}"
        return ""

    def _length(self) -> str:
        said = self._longest
        whole, short = self._unary(said), self.interview.say(self._ask(said, _SHORT))
        kept = short.rstrip(BROKEN)
        if not whole.startswith(kept) and not text_tied(said, short, self.allowed):
            return f"asked for {_SHORT} tokens it says {short!r}, which its longer answer does not begin with"
        # Only what those tokens cannot say by themselves is sure: tokens that show no text may follow them.
        if len(said.tokens) > _SHORT and said.text.startswith(kept) and len(kept) > said.lengths[_SHORT - 1]:
            return f"asked for {_SHORT} tokens it says {short!r}, which is more of its answer than {_SHORT} tokens are"
        return ""

    def _stop(self) -> str:
        for said in sorted(self.reference.transcripts, key=lambda said: -len(said.tokens)):
            whole = self._unary(said)
            for word in self._stoppable(said, whole):
                text = self.interview.say(replace(self._ask(said), inputs=self._stopping(word)))
                place = whole.find(word)
                if len(text) > place + len(word):
                    return f"{said.name}: it goes on after the stop word {word!r}: {text[place : place + 40]!r}"
                return "" if whole.startswith(text) else f"{said.name}: a stop word changes what it says before: {text!r}"
        raise _Unasked("no word of any answer is the same tokens when it is a stop word")

    def _stopping(self, word: str) -> Mapping[str, str]:
        """By the model's own name for it: forge's clients would cut the answer themselves."""
        runtime = self.interview.model.runtime
        if runtime is RuntimeKind.VLLM:
            return {SAMPLING: json.dumps({"stop": [word]})}
        return {"sampling_param_stop" if runtime is RuntimeKind.LLMAPI else "stop_words": word}

    def _stoppable(self, said: Transcript, whole: str) -> Iterator[str]:
        """Words from inside the answer that preprocessing makes the very tokens of that the answer has there."""
        role = self.interview.model.roles.get(Role.PREPROCESSING)
        edges = (0, *said.lengths)
        for index in range(2, len(said.tokens) - 3):
            word = said.text[edges[index] : edges[index + 1]]
            if not word.strip() or BROKEN in word or whole.find(word) != edges[index]:
                continue
            if role is None or self.interview.whole:
                yield word
                continue
            _, ids = self.interview.stages.ids(self.interview.address, role, said.prompt, (word,))
            if ids[:1] == said.tokens[index : index + 1]:
                yield word

    def _crowd(self) -> str:
        """Many streams at once, each asker going on with the next prompt: every answer is still its own."""
        told = list(self.reference.transcripts)
        together = Barrier(_CROWD)

        def ask(number: int) -> list[tuple[Transcript, str]]:
            together.wait()
            turns = [told[(number + turn) % len(told)] for turn in range(_TURNS)]
            return [(said, self.interview.say(streamed(self._ask(said)))) for said in turns]

        with ThreadPoolExecutor(_CROWD) as pool:
            answers = [answer for found in pool.map(ask, range(_CROWD)) for answer in found]
        alone = {heard.prompt: heard.texts.get(STREAM, "") for heard in self.heard}
        for said, text in answers:
            what = texts_differ(alone[said.name], text)
            if what and not text_tied(said, text, self.allowed):
                wrong = f"with {_CROWD} streams at once it says something else than alone, {what}"
                return f"{said.name}: {wrong}{_whose(text, said.name, alone)}"
        return ""

    def _seeds(self) -> str:
        said = min(self.reference.transcripts, key=_certainty)
        warm = replace(self._ask(said, _WARM), top_k=None, top_p=_TOP_P, temperature=1.0)
        first, again, *others = (self.interview.say(replace(warm, seed=seed)) for seed in (_SEEDS[0], *_SEEDS))
        if first != again:
            return f"the same seed gives another text: {first[:40]!r}, then {again[:40]!r}"
        if all(other == first for other in others):
            if _certainty(said) ** (len(_SEEDS) - 1) > _CHANCE:
                raise _Unasked("the checkpoint is so sure of its answers that seeds may well not differ")
            return f"{len(_SEEDS)} seeds give one text at temperature 1: {first[:40]!r}"
        return ""

    def _left(self) -> str:
        """Streams are begun and left; then the next answer comes as soon as one did before."""
        said = self._longest
        asked = self._ask(said)
        began = self.clock()
        before = self.interview.say(asked)
        usual = self.clock() - began
        endless = replace(streamed(asked), max_tokens=max(self._room(said), self.reference.max_tokens))
        count = min(self.interview.places + 1, _MOST)
        for _ in range(count):
            self.interview.begin(endless)
        began = self.clock()
        after = self.interview.say(asked)
        took = self.clock() - began
        if took > max(_PATIENCE, 10 * usual):
            return (
                f"after {count} streams were left, an answer that took {usual:.1f} s takes {took:.1f} s: they were not stopped"
            )
        return (
            "" if after == before or text_tied(said, after, self.allowed) else f"after streams were left it says {after[:40]!r}"
        )

    def _room(self, said: Transcript) -> int:
        """Tokens that an answer to the prompt may have at most, as far as is known."""
        return self.interview.room - len(said.ids)


def _whose(text: str, name: str, alone: Mapping[str, str]) -> str:
    """Of whose answer a text holds a piece, if of another's."""
    pieces = {text[place : place + 6] for place in range(max(1, len(text) - 5))}
    own = alone[name]
    others = (
        other
        for other, said in alone.items()
        if other != name and any(len(p) == 6 and p in said and p not in own for p in pieces)
    )
    found = next(others, "")
    return f"; a piece of it belongs to {found!r}" if found else ""


def _certainty(said: Transcript) -> float:
    """At most how likely it is that drawing with ``_TOP_P`` at temperature 1 gives the greedy answer's first tokens.

    What top_p leaves out makes a token that stays likelier by 1 / top_p at most.
    """
    return math.prod(min(1.0, math.exp(each) / _TOP_P) for each in said.log_probs[:_WARM])
