"""Each check of streaming against a client with one fault: it is found, and a client without any passes all of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock

import msgspec
import pytest
from msgspec.structs import replace

from forge.client.types import Chunk, Request
from forge.errors import InferenceError
from forge.schema.manifest import PublishedModel
from forge.schema.values import Role, RuntimeKind
from forge.verify.interview import Interview
from forge.verify.judge import STREAM, UNARY, Heard, Outcome, Verdict
from forge.verify.streaming import Checks
from forge.verify.tolerances import table as allowances
from forge.verify.transcripts import Reference, Transcript

ANSWERS = {"a": (" one", " two", " 🙂", " four", " five", " six", " seven", " eight"), "b": (" uno", " due", " tre", " sei")}
MODEL = PublishedModel(
    name="m",
    entry="k",
    runtime=RuntimeKind.TWIN,
    roles={Role.BLS: "bls", Role.PREPROCESSING: "pre", Role.TENSORRT_LLM: "engine"},
)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Speaker:
    """Says its answers, with the one fault that its name says; ``open`` counts the streams that were left without an end."""

    fault: str = ""
    clock: Clock = field(default_factory=Clock)
    open: int = 0
    lock: Lock = field(default_factory=Lock)

    def generate(self, address: str, request: Request) -> Iterator[Chunk]:
        words = list(ANSWERS[request.prompt])
        if request.temperature and self.fault != "one text for all seeds":
            turn = (request.seed or 0) % 3 if self.fault != "no seeds" else int(self.clock.now) % 3
            words = words[turn:] + words[:turn]
        self.clock.now += 1.0 + (100.0 * self.open if self.fault == "cancels nothing" else 0.0)
        words = words[: request.max_tokens if self.fault != "no max_tokens" else None]
        told = request.inputs.get("stop_words")  # by the model's own name: a client would cut the answer itself
        for stop in (told,) if told and self.fault != "no stop words" else ():
            words = words[: words.index(stop) + 1] if stop in words else words
        if not request.stream:
            yield Chunk("".join(words), final=True)
            return
        if self.fault == "cannot stream":
            raise InferenceError("no")
        with self.lock:
            self.open += 1
        yield from self._pieces(words)
        with self.lock:
            self.open -= 1

    def _pieces(self, words: list[str]) -> Iterator[Chunk]:
        for word in words:
            broken = word.replace("🙂", "\ufffd\ufffd") if self.fault == "breaks characters" else word
            yield Chunk(broken, final=self.fault == "early final flag" and word == words[0])
        if self.fault != "no final flag":
            yield Chunk("", final=True)


class Letters:
    """Preprocessing that knows each word of the answers."""

    def ids(self, address: str, model: str, text: str, stop: tuple[str, ...] = ()) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (1,), tuple(token for word in stop for name in ANSWERS for token in _tokens(name) if _word(token) == word)

    def ends(self, address: str, model: str, further: tuple[str, ...] = ()) -> tuple[int, ...]:
        return (0,)

    def text(self, address: str, model: str, tokens: tuple[int, ...]) -> str:
        return "".join(_word(token) for token in tokens)


def _tokens(name: str) -> tuple[int, ...]:
    return tuple(range(ord(name) * 100, ord(name) * 100 + len(ANSWERS[name])))


def _word(token: int) -> str:
    return ANSWERS[chr(token // 100)][token % 100]


def transcript(name: str, log_prob: float = -2.0) -> Transcript:
    words, tokens = ANSWERS[name], _tokens(name)
    lengths = tuple(len("".join(words[: count + 1])) for count in range(len(words)))
    rivals = (((1, log_prob), (2, log_prob - 3.9)),) * len(words)
    log_probs = (log_prob,) * len(words)
    return Transcript(
        name=name,
        prompt=name,
        ids=(1,),
        tokens=tokens,
        log_probs=log_probs,
        rivals=rivals,
        text="".join(words),
        lengths=lengths,
    )


REFERENCE = Reference(by="", checkpoint="", prompts="", max_tokens=8, transcripts=tuple(map(transcript, ANSWERS)))


def heard() -> tuple[Heard, ...]:
    return tuple(Heard(name, texts=dict.fromkeys((UNARY, STREAM), "".join(words))) for name, words in ANSWERS.items())


def verdicts(speaker: Speaker, streams: bool = True, reference: Reference = REFERENCE) -> dict[str, Verdict]:
    interview = Interview("here", MODEL, speaker, Letters(), streams=streams, room=64, places=2)
    checks = Checks(interview, reference, heard(), allowances().dtypes["float32"], speaker.clock)
    told = list[str]()
    found = {verdict.prompt: verdict for verdict in checks.run(told.append)}
    asked = [name for name, verdict in found.items() if verdict.outcome is not Outcome.SKIPPED]
    assert {f" of 6: {name}" for name in asked} <= {line.removeprefix("check ")[1:] for line in told}
    return found


def test_a_client_without_faults_passes_every_check() -> None:
    found = verdicts(Speaker())
    assert {name: verdict.what for name, verdict in found.items() if verdict.outcome is not Outcome.SAME} == {}
    assert len(found) == 6


@pytest.mark.parametrize(
    ("fault", "check", "told"),
    [
        ("no final flag", "stream and final flag", "0 chunks of 8 are marked as the last"),
        ("early final flag", "stream and final flag", "2 chunks of 9 are marked as the last"),
        ("breaks characters", "stream and final flag", "2 characters are broken at the edges of chunks"),
        ("no max_tokens", "max_tokens", "is more of its answer than 5 tokens are"),
        ("no stop words", "stop words", "goes on after the stop word"),
        ("cancels nothing", "cancellation", "they were not stopped"),
        ("no seeds", "seeds", "the same seed gives another text"),
        ("one text for all seeds", "seeds", "4 seeds give one text"),
    ],
)
def test_a_fault_is_found_by_its_check(fault: str, check: str, told: str) -> None:
    found = verdicts(Speaker(fault))[check]
    assert found.outcome is Outcome.DIFFERS
    assert told in found.what


def test_tokens_without_text_do_not_make_an_answer_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tokens say all that there is to see, as of a checkpoint that goes on with padding."""
    monkeypatch.setitem(ANSWERS, "a", (" one", " two", " 🙂", " four", " five", "", "", ""))
    silent = msgspec.structs.replace(REFERENCE, transcripts=(transcript("a"),))
    assert verdicts(Speaker(), reference=silent)["max_tokens"].outcome is Outcome.SAME


def test_seeds_of_a_sure_checkpoint_are_no_fault() -> None:
    sure = msgspec.structs.replace(REFERENCE, transcripts=tuple(transcript(name, -0.02) for name in ANSWERS))
    found = verdicts(Speaker("one text for all seeds"), reference=sure)["seeds"]
    assert (found.outcome, "seeds may well not differ" in found.what) == (Outcome.SKIPPED, True)
    assert verdicts(Speaker("no seeds"), reference=sure)["seeds"].outcome is Outcome.DIFFERS


def test_mixed_streams_in_a_crowd_are_found_and_named() -> None:
    class Mixing(Speaker):
        def _pieces(self, words: list[str]) -> Iterator[Chunk]:
            yield from super()._pieces(list(ANSWERS["b"]) if words[0] == " one" else words)

    found = verdicts(Mixing())["streams at once"]
    assert found.outcome is Outcome.DIFFERS
    assert "a: with" in found.what
    assert "belongs to 'b'" in found.what


def test_a_model_that_answers_whole_is_not_asked_to_stream() -> None:
    found = verdicts(Speaker("cannot stream"), streams=False)
    skipped = {name for name, verdict in found.items() if verdict.outcome is Outcome.SKIPPED}
    assert skipped == {"stream and final flag", "streams at once", "cancellation"}
    assert {found[name].outcome for name in set(found) - skipped} == {Outcome.SAME}


def test_what_the_server_refuses_is_skipped_with_its_reason() -> None:
    class Greedy(Speaker):
        def generate(self, address: str, request: Request) -> Iterator[Chunk]:
            if request.temperature:
                raise InferenceError("speculative decoding takes no temperature")
            return super().generate(address, request)

    found = verdicts(Greedy())["seeds"]
    assert (found.outcome, found.what) == (Outcome.SKIPPED, "refused: speculative decoding takes no temperature")


def test_a_stop_word_of_other_tokens_is_not_asked() -> None:
    class Strange(Letters):
        def ids(
            self, address: str, model: str, text: str, stop: tuple[str, ...] = ()
        ) -> tuple[tuple[int, ...], tuple[int, ...]]:
            return (1,), (7, 7)

    speaker = Speaker()
    interview = replace(Interview("here", MODEL, speaker, Letters()), stages=Strange())
    checks = Checks(interview, REFERENCE, heard(), allowances().dtypes["float32"], speaker.clock)
    found = {verdict.prompt: verdict for verdict in checks.run(lambda _: None)}["stop words"]
    assert found.outcome is Outcome.SKIPPED
