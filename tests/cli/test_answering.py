"""What `forge generate` and `forge chat` show of an answer, and what they end with."""

import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace
from rich.console import Console

from forge.cli import main
from forge.cli.columns import Columns
from forge.cli.output import Output
from forge.cli.shown_answer import Display, document, judge, tell
from forge.client.answer import Hearing, Piece, Reply
from forge.client.tokenizer import spans
from forge.client.types import Acceptance, Chunk, Request
from forge.errors import ConfidenceError, InferenceError
from skeleton_kit import TOKENIZERS, lay
from tiny_served import Tiny

ASKED = Request("model", "prompt", 9)
SURE = (
    Chunk("Pa", log_probs=(-0.5,), cum_log_prob=-0.5, seconds=0.1),
    Chunk("", log_probs=(-1.0,), cum_log_prob=-1.5, seconds=0.2),
    Chunk("ris", log_probs=(-0.25,), cum_log_prob=-1.75, seconds=0.3),
    Chunk("", final=True, seconds=0.3),
)
TWO = (Chunk("yes", cum_log_prob=-1.0), Chunk("no", index=1, cum_log_prob=-3.0), Chunk("", final=True))


def shown(capsys: pytest.CaptureFixture[str], display: Display, chunks: Iterable[Chunk] = SURE, **how: bool) -> tuple[str, str]:
    """What stdout and stderr say of an answer."""
    tell(Output(**how), ASKED, iter(chunks), display)
    return tuple(capsys.readouterr())  # type: ignore[return-value]


def test_a_stream_is_shown_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []

    def pieces() -> Iterator[Chunk]:
        for chunk in SURE:
            yield chunk
            seen.append(capsys.readouterr().out)

    tell(Output(), ASKED, pieces(), Display())
    assert seen == ["Pa", "", "ris", ""]
    assert capsys.readouterr().out == "\n"


def test_a_table_says_token_likelihoods_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = shown(capsys, Display(log_probs=True))
    assert out.splitlines() == [
        "Paris",
        "TOKEN      LOGPROB  PROBABILITY",
        '"Pa"       -0.5000  0.6065',
        '"ris" 1/2  -1.0000  0.3679',
        '"ris" 2/2  -0.2500  0.7788',
        "log-probability -1.7500, geometric mean 0.5580 over 3 tokens",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_colours_say_how_likely_each_token_was(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    tell(
        Output(),
        ASKED,
        iter([Chunk("Pa", log_probs=(-0.01,)), Chunk("ris", log_probs=(-4.0,)), Chunk("", final=True)]),
        Display(log_probs=True),
    )
    (sure, unsure), rest = re.findall(r"\x1b\[38;2;(\d+);(\d+);60m", screen.getvalue()), screen.getvalue().splitlines()[1:]
    assert int(sure[0]) < int(sure[1])  # green
    assert int(unsure[0]) > int(unsure[1])  # red
    assert rest == ["log-probability -4.0100, geometric mean 0.1347 over 2 tokens"]


@pytest.mark.parametrize("whole", [False, True])
def test_a_models_words_do_nothing_to_a_terminal(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """Where they go elsewhere they are as they were said."""
    words = "a\x1b]52;c;cm0gLXJm\x07b\x9b2Jc\rd\u202ee\tf\r\ng"
    safe = r"a\x1b]52;c;cm0gLXJm\x07b\x9b2Jc\rd\u202ee" + "\tf\r\ng"
    for screen, wanted in ((Terminal(), f"{safe}\n"), (io.StringIO(), f"{words}\n")):
        monkeypatch.setattr(sys, "stdout", screen)
        tell(Output(), ASKED, iter([Chunk(words), Chunk("", final=True)]), Display(whole=whole))
        assert screen.getvalue() == wanted


def test_a_whole_answer_is_cut_into_the_tokenizers_tokens(tmp_path: Path) -> None:
    lay(tmp_path, "byte_level")
    text = "hello 🚀 world"
    found = spans(tmp_path, text)
    count = len(TOKENIZERS["byte_level"].encode(text).ids)
    assert "".join(piece for piece, _ in found) == text
    assert sum(tokens for _, tokens in found) == count
    assert any(tokens > 1 for _, tokens in found)
    whole = Chunk(text, final=True, log_probs=tuple(-float(place) for place in range(count)))
    display = Display(log_probs=True, whole=True)
    cut = tell(Output(), ASKED, iter([whole]), display, partial(spans, tmp_path)).replies[0].pieces
    assert [(piece.text, len(piece.log_probs)) for piece in cut] == list(found)
    other = replace(whole, log_probs=whole.log_probs[1:])
    assert tell(Output(), ASKED, iter([other]), display, partial(spans, tmp_path)).replies[0].pieces == (
        Piece(text, other.log_probs),
    )
    assert spans(tmp_path / "nowhere", text) == ()


def test_json_is_a_line_per_chunk_with_the_models_words(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = shown(capsys, Display(log_probs=True), as_json=True)
    assert [json.loads(line) for line in out.splitlines()] == [
        {"text": "Pa", "index": 0, "final": False, "log_probs": [-0.5], "cum_log_prob": -0.5},
        {"text": "", "index": 0, "final": False, "log_probs": [-1.0], "cum_log_prob": -1.5},
        {"text": "ris", "index": 0, "final": False, "log_probs": [-0.25], "cum_log_prob": -1.75},
        {"text": "", "index": 0, "final": True},
    ]


def test_several_answers_are_apart_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, Display(several=True), TWO)[0] == "yes\n---\nno\n"


def test_several_answers_stand_side_by_side_on_a_terminal() -> None:
    screen = io.StringIO()
    columns = Columns(
        lambda reply: f"sum {reply.log_prob}",
        lambda piece: piece.probability,
        Console(file=screen, force_terminal=True, width=80, color_system="truecolor"),
    )
    columns.show(
        [Reply("yes", pieces=(Piece("yes", (-0.1,)),), cum_log_prob=-0.1), Reply("no", pieces=(Piece("no", (-3.0,)),))]
    )
    columns.close()
    (line,) = {line for line in screen.getvalue().splitlines() if "yes" in line}
    assert "no" in line
    assert "\x1b[38;2;42;190;60myes" in line  # likely: green
    assert "\x1b[38;2;220;19;60mno" in line  # unlikely: red
    assert "sum -0.1" in re.sub("\x1b[^m]*m", "", screen.getvalue())


def test_speed_and_speculation_are_told_beside_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    chunks = (*SURE[:3], Chunk("", final=True, seconds=0.5, acceptance=Acceptance(0.75, 3, 4)))
    out, err = shown(capsys, Display(perf=True), chunks)
    assert out == "Paris\n"
    assert err == "TTFT 100.0 ms, ITL 200.0 ms, 3 tokens in 0.500 s = 6.0/s, 3 of 4 draft tokens accepted (75%)\n"


def test_speed_says_so_where_tokens_are_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    chunks = (Chunk("Paris", seconds=0.1), Chunk(" it is", seconds=0.2), Chunk("", final=True, seconds=0.2))
    assert "2 pieces (nobody counts tokens)" in shown(capsys, Display(perf=True), chunks)[1]
    assert shown(capsys, Display(perf=True, whole=True), chunks[:1])[1].startswith("came whole")


def test_tokenizer_tokens_give_speed_where_the_model_counts_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay(tmp_path, "byte_level")
    texts = ("hello 🚀 world", " hello")
    lengths = [len(TOKENIZERS["byte_level"].encode(text).ids) for text in texts]
    chunks = [Chunk(texts[0], seconds=1.0), Chunk(texts[1], index=1, seconds=2.0), Chunk("", final=True, seconds=2.0)]
    display = Display(perf=True, several=True)
    found = tell(Output(), ASKED, iter(chunks), display, partial(spans, tmp_path))
    assert (found.perf.tokens, found.perf.longest) == (sum(lengths), max(lengths))
    assert f"{sum(lengths)} tokens (by its tokenizer) in 2.000 s" in capsys.readouterr().err
    assert document(found, display)["perf"]["tokens_counted_by"] == "tokenizer"  # type: ignore[index]


@pytest.mark.parametrize(("threshold", "code"), [(-2.0, 0), (-1.0, ConfidenceError.exit_code)])
def test_an_answer_below_the_threshold_ends_with_its_own_code(
    capsys: pytest.CaptureFixture[str], threshold: float, code: int
) -> None:
    display = Display(threshold=threshold)
    found = tell(Output(), ASKED, iter(SURE), display)
    assert document(found, display)["below_min_logprob"] is bool(code)
    if code:
        with pytest.raises(SystemExit) as ended:
            judge(Output(), found, display)
        assert ended.value.code == code
        assert "-1.750 is below -1" in capsys.readouterr().err
    else:
        judge(Output(), found, display)


def test_a_threshold_cannot_be_judged_where_the_model_says_nothing() -> None:
    hearing = Hearing(ASKED)
    hearing.hear(Chunk("Paris", final=True))
    with pytest.raises(InferenceError, match="reports no log-probabilities"):
        judge(Output(), hearing.answer(), Display(threshold=-1.0))


def test_several_answers_are_judged_each_and_together() -> None:
    hearing = Hearing(ASKED)
    for chunk in TWO:
        hearing.hear(chunk)
    found = document(hearing.answer(), Display(threshold=-2.0))
    assert found["below_min_logprob"] is False
    assert [each["below_min_logprob"] for each in found["sequences"]] == [False, True]  # type: ignore[attr-defined]


Forge = Callable[..., Result]


@pytest.fixture
def forge(tiny: Tiny, home: Path, monkeypatch: pytest.MonkeyPatch) -> Forge:
    """The command line beside the served tiny model."""
    monkeypatch.setenv("FORGE_HOME", str(home))

    def run(*words: str, typed: str = "") -> Result:
        verb, *rest = words
        asked = [verb, "tiny", *rest, "--repository", str(tiny.target.repository)]
        return CliRunner().invoke(main, asked, input=typed)

    return run


@pytest.mark.slow
def test_generate_says_all_there_is_to_say_in_json(forge: Forge) -> None:
    done = forge(
        "generate", "hello", "-n", "2", "--top-k", "0", "--top-p", "1", "--logprobs", "--perf", "--min-logprob", "0", "--json"
    )
    *chunks, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == ConfidenceError.exit_code
    assert last["below_min_logprob"]
    assert {chunk["index"] for chunk in chunks} == {0, 1}
    for sequence in last["sequences"]:
        assert sequence["finish_reason"] in ("stop", "length")
        pieces = [log_prob for piece in sequence["pieces"] for log_prob in piece["log_probs"]]
        assert sequence["log_prob"] == pytest.approx(sum(pieces), abs=1e-3)
        assert sequence["text"] == "".join(piece["text"] for piece in sequence["pieces"])
    assert last["perf"]["tokens"] == last["output_tokens"]
    assert last["perf"]["tokens_counted"]
    assert last["perf"]["tokens_counted_by"] == "model"


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--no-stream"], ["--beam-width", "2"]])
def test_the_likeliest_in_each_place_are_shown_beside_each_token(forge: Forge, how: list[str]) -> None:
    words = ("generate", "hello", *how, "--max-tokens", "4", "--top-logprobs", "3")
    last = json.loads(forge(*words, "--json").stdout.splitlines()[-1])
    for sequence in last["sequences"]:
        pieces = [(piece, at) for piece in sequence["pieces"] for at in range(len(piece["log_probs"]))]
        assert pieces
        for piece, at in pieces:
            likeliest = [each["log_prob"] for each in piece["alternatives"][at]]
            assert likeliest == sorted(likeliest, reverse=True)
            assert len(likeliest) == 3
            assert piece["log_probs"][at] <= likeliest[0]
    shown = forge(*words).stdout
    assert "LIKELIEST HERE" in shown
    assert re.search(r'"[^\n]*" 0\.\d{4}, "[^\n]*" 0\.\d{4}, "', shown)


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--no-stream"], ["--beam-width", "2", "--no-stream"]])
def test_a_cut_answer_says_so_in_json_however_it_comes(forge: Forge, how: list[str]) -> None:
    last = json.loads(forge("generate", "hello", *how, "--max-tokens", "3", "--json").stdout.splitlines()[-1])
    assert {each["finish_reason"] for each in last["sequences"]} == {"length"}


@pytest.mark.slow
def test_generate_draws_only_at_a_temperature(forge: Forge) -> None:
    def said(*words: str) -> tuple[list[str], int | None]:
        last = json.loads(forge("generate", "hello", *words, "--json").stdout.splitlines()[-1])
        return last["answers"], last["seed"]

    drawn = [said("--temperature", "1.5") for _ in range(4)]
    assert len({str(answers) for answers, _ in drawn}) > 1
    assert len({seed for _, seed in drawn}) == 4
    (answers, seed), *_ = drawn
    assert said("--temperature", "1.5", "--seed", str(seed)) == (answers, seed)
    assert said() == said("--temperature", "0")
    assert said()[1] is None
    assert "no seed" in forge("generate", "hello", "--show-seed").stderr


@pytest.mark.slow
def test_a_seed_or_several_answers_without_effect_are_told(forge: Forge) -> None:
    done = forge("generate", "hello", "--seed", "3", "-n", "2")
    first, second = done.stdout.rstrip("\n").split("\n---\n")
    assert first == second
    assert "--seed and -n change nothing" in done.stderr
    assert forge("generate", "hello", "--seed", "3", "-n", "2", "--temperature", "1").stderr == ""
    assert forge("generate", "hello", "-n", "2", "--beam-width", "2").stderr == ""


@pytest.mark.slow
def test_a_conversation_is_told_once_that_its_seed_changes_nothing(forge: Forge) -> None:
    done = forge("chat", "--seed", "3", typed="hello\nworld\n\n")
    assert done.exit_code == 0
    assert done.stderr.count("--seed changes nothing") == 1
    assert forge("chat", "--seed", "3", "--temperature", "1", typed="hello\n\n").stderr == ""


@pytest.mark.slow
def test_generate_refuses_an_unknown_input_with_the_list_of_inputs(forge: Forge) -> None:
    done = forge("generate", "hello", "--input", "top_q=3")
    assert done.exit_code == InferenceError.exit_code
    assert "no input for top_q" in done.stderr
    assert "repetition_penalty" in done.stderr
    assert forge("generate", "hello", "--input", "top_q").exit_code == 2


@pytest.mark.slow
def test_chat_keeps_one_beam_and_judges_at_the_end(forge: Forge) -> None:
    done = forge("chat", "--beam-width", "2", "--min-logprob", "-0.001", "--json", typed="hello\nworld\n\n")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["question"] for line in lines] == ["hello", "world"]
    assert all(len(line["answers"]) == 1 and line["below_min_logprob"] for line in lines)
    assert done.exit_code == ConfidenceError.exit_code
