"""Verdicts, from transcripts and answers that are written down here: which stage is named, and what counts as a near tie."""

import re
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from forge.errors import ForgeError
from forge.recipe import verify_prompts
from forge.recipe.reader import read
from forge.verify import transcripts
from forge.verify.judge import (
    ENSEMBLE,
    STREAM,
    UNARY,
    Heard,
    Outcome,
    Stage,
    Verdict,
    ids_differ,
    judge,
    judge_ends,
    texts_differ,
)
from forge.verify.tolerances import KV_CACHE, table as allowances, tolerance
from forge.verify.verdicts import Report
from verify_kit import EXACT, FOUR_BITS, HALF, REFERENCE, SAID

TEXTS = {UNARY: SAID.text, STREAM: SAID.text, ENSEMBLE: SAID.text}
GOOD = Heard("short", SAID.ids, SAID.tokens, SAID.log_probs, SAID.tokens, SAID.text, SAID.text, TEXTS)


def found(heard: Heard, allowed=EXACT) -> dict[Stage, Outcome]:  # type: ignore[no-untyped-def]
    """The worst outcome of each stage."""
    order = list(Outcome)
    verdicts = judge(SAID, heard, REFERENCE, allowed)
    return {each.stage: max((v.outcome for v in verdicts if v.stage is each.stage), key=order.index) for each in verdicts}


def failing(heard: Heard, allowed=EXACT) -> tuple[Stage, ...]:  # type: ignore[no-untyped-def]
    return Report("m", "r", allowed, judge(SAID, heard, REFERENCE, allowed)).failing


def test_what_agrees_is_the_same_in_every_stage() -> None:
    assert found(GOOD) == dict.fromkeys((Stage.TOKENIZER, Stage.ENGINE, Stage.DETOKENIZER, Stage.TRANSPORT), Outcome.SAME)


def test_other_ids_and_their_results_are_the_tokenizers_alone() -> None:
    other = replace(GOOD, ids=(1, 9, 21), own_tokens=(60, 61), own_decoded="no", texts=dict.fromkeys(TEXTS, "no"))
    assert failing(other) == (Stage.TOKENIZER,)


@pytest.mark.parametrize(
    ("expected", "ids", "told"),
    [
        ((1, 5), (1, 1, 5), "twice: the chat template writes it"),
        ((5, 6), (1, 5, 6), "the checkpoint adds none"),
        ((1, 5, 6), (5, 6), "is missing: add_special_tokens is off"),
        ((1, 5, 6), (1, 7), "from token 1 on"),
        ((1, 5, 6), (1, 5, 6), ""),
    ],
)
def test_ids_that_differ_by_the_beginning_token_are_told_so(expected: tuple[int, ...], ids: tuple[int, ...], told: str) -> None:
    assert told in ids_differ(expected, ids, begin=1)
    assert bool(told) == bool(ids_differ(expected, ids, begin=1))


def test_log_probabilities_tell_a_near_tie_from_a_fault() -> None:
    tied = replace(
        GOOD,
        tokens=(30, 41),
        log_probs=(-0.5, -0.66),
        own_tokens=(30, 41),
        own_decoded=" is",
        texts=dict.fromkeys(TEXTS, " is"),
    )
    assert found(tied, HALF)[Stage.ENGINE] is Outcome.TIE
    assert found(tied, EXACT)[Stage.ENGINE] is Outcome.DIFFERS
    (verdict,) = (each for each in judge(SAID, tied, REFERENCE, HALF) if each.stage is Stage.ENGINE)
    assert verdict.difference is not None
    assert (verdict.difference.position, verdict.difference.expected, verdict.difference.found) == (1, 31, 41)
    assert verdict.difference.gap == pytest.approx(0.1)
    assert verdict.difference.served_log_prob == -0.66
    far = replace(tied, tokens=(40,), log_probs=(-0.5,), own_tokens=(40,))
    assert found(far, HALF)[Stage.ENGINE] is Outcome.DIFFERS
    unheard_of = replace(tied, tokens=(77,), own_tokens=(77,))
    assert found(unheard_of, FOUR_BITS)[Stage.ENGINE] is Outcome.DIFFERS


def test_an_early_end_is_judged_by_end_token_likelihood() -> None:
    early = replace(GOOD, tokens=(30, 31), own_tokens=(30, 31), own_decoded=" is very", texts=dict.fromkeys(TEXTS, " is very"))
    assert found(early, HALF)[Stage.ENGINE] is Outcome.DIFFERS
    late = replace(GOOD, tokens=(*SAID.tokens, 50), own_tokens=(*SAID.tokens, 50), own_decoded=SAID.text + "!")
    assert found(replace(late, texts=dict.fromkeys(TEXTS, SAID.text + "!")), HALF)[Stage.ENGINE] is Outcome.TIE


def test_an_engines_words_after_its_end_token_count_nothing() -> None:
    assert found(replace(GOOD, tokens=(*SAID.tokens, 2, 2, 99)))[Stage.ENGINE] is Outcome.SAME


def test_drifting_log_probabilities_under_agreeing_tokens_are_the_engines() -> None:
    assert failing(replace(GOOD, log_probs=(-0.6, -0.5, -0.9))) == (Stage.ENGINE,)
    assert failing(replace(GOOD, log_probs=(-0.6, -0.5, -0.8)), HALF) == ()


def test_log_probabilities_that_are_normalized_away_say_nothing() -> None:
    assert failing(replace(GOOD, log_probs=(0.0, 0.0, 0.0))) == ()


def test_an_engines_fault_is_not_the_pipelines_behind_it() -> None:
    faulty = replace(GOOD, tokens=(77, 78), own_tokens=(77, 78), own_decoded=" was red", texts=dict.fromkeys(TEXTS, " was red"))
    assert failing(faulty) == (Stage.ENGINE,)


def test_postprocessing_and_the_front_model_are_named_apart() -> None:
    post = replace(GOOD, decoded="isveryblue", own_decoded="isveryblue", texts=TEXTS | {ENSEMBLE: "isveryblue"})
    front = replace(GOOD, texts={UNARY: "isveryblue", STREAM: "isveryblue", ENSEMBLE: SAID.text})
    assert failing(post) == failing(front) == (Stage.DETOKENIZER,)
    told = [next(v.what for v in judge(SAID, each, REFERENCE, EXACT) if v.outcome is Outcome.DIFFERS) for each in (post, front)]
    assert told[0].startswith("postprocessing: the same but for blanks")
    assert told[1].startswith("the front model: the same but for blanks")


@pytest.mark.parametrize("way", [STREAM, ENSEMBLE, UNARY])
def test_one_differing_way_under_agreeing_stages_is_the_transports(way: str) -> None:
    faulty = replace(GOOD, texts=TEXTS | {way: " is very"})
    assert failing(faulty) == (Stage.TRANSPORT,)
    assert way in next(v.what for v in judge(SAID, faulty, REFERENCE, EXACT) if v.outcome is Outcome.DIFFERS)


@pytest.mark.parametrize("text", ["isveryblue", " is\ufffd blue", " \ufffd\ufffd very\ufffdblue"])
def test_decoding_piece_by_piece_is_the_detokenizers_with_cure(text: str) -> None:
    verdicts = judge(SAID, replace(GOOD, texts=TEXTS | {STREAM: text}), REFERENCE, EXACT)
    (fault,) = [each for each in verdicts if each.outcome is Outcome.DIFFERS]
    assert fault.stage is Stage.DETOKENIZER
    assert "accumulate_tokens = true" in fault.what


@pytest.mark.parametrize("text", [" is very", "isvery", " is very blue blue", "\ufffd was red"])
def test_a_stream_lacking_or_changing_words_is_the_transports(text: str) -> None:
    assert found(replace(GOOD, texts=TEXTS | {STREAM: text}))[Stage.TRANSPORT] is Outcome.DIFFERS


def test_another_answer_altogether_is_no_matter_of_decoding() -> None:
    stranger = replace(GOOD, texts={UNARY: "QQQQ 0000", STREAM: "QQQQ 0000", ENSEMBLE: SAID.text})
    assert failing(stranger) == (Stage.TRANSPORT,)


def test_the_pipeline_is_not_judged_after_two_faults() -> None:
    both = replace(GOOD, tokens=(77,), own_tokens=(77,), decoded="x", own_decoded="y")
    assert found(both)[Stage.TRANSPORT] is Outcome.SKIPPED
    assert failing(both) == (Stage.ENGINE, Stage.DETOKENIZER)


def test_blanks_at_the_start_of_an_answer_do_not_count() -> None:
    assert texts_differ(" is", "is") == ""
    assert texts_differ("a  b", "a b")


def test_an_all_in_one_model_is_judged_by_text() -> None:
    whole = Heard("short", texts={UNARY: SAID.text, STREAM: SAID.text})
    assert found(whole) == {Stage.PIPELINE: Outcome.SAME}
    assert found(replace(whole, texts={UNARY: " is quite blue"}), HALF) == {Stage.PIPELINE: Outcome.TIE}
    assert found(replace(whole, texts={UNARY: " was blue"}), HALF) == {Stage.PIPELINE: Outcome.DIFFERS}
    assert found(replace(whole, texts={UNARY: " is quite blue"}), EXACT) == {Stage.PIPELINE: Outcome.DIFFERS}


def test_a_quantized_model_may_differ_an_exact_one_never() -> None:
    def report(bad: int, allowed=FOUR_BITS) -> Report:  # type: ignore[no-untyped-def]
        outcomes = [Outcome.DIFFERS] * bad + [Outcome.SAME] * (10 - bad)
        return Report("m", "r", allowed, tuple(Verdict(Stage.ENGINE, str(n), each) for n, each in enumerate(outcomes)))

    assert report(4).passed
    assert not report(5).passed
    assert not report(1, EXACT).passed
    many = Report("m", "r", FOUR_BITS, tuple(Verdict(Stage.TOKENIZER, str(n), Outcome.DIFFERS) for n in range(2)))
    assert many.failing == (Stage.TOKENIZER,)


@pytest.mark.parametrize(
    ("config", "name", "tie"),
    [
        ({"pretrained_config": {"dtype": "float16", "quantization": {"quant_algo": None}}}, "float16", 0.05),
        ({"pretrained_config": {"dtype": "float16", "quantization": {"quant_algo": "FP8"}}}, "fp8", 0.8),
        ({"pretrained_config": {"dtype": "bfloat16", "quantization": {"quant_algo": "W4A16_AWQ"}}}, "int4 weights", 1.5),
        ({"pretrained_config": {"quantization": {"quant_algo": "W8A8_SQ_PER_CHANNEL"}}}, "int8 activations", 1.0),
        (
            {"pretrained_config": {"dtype": "float16", "quantization": {"kv_cache_quant_algo": "INT8"}}},
            "float16, 8-bit kv cache",
            0.3,
        ),
        ({"torch_dtype": "float32"}, "float32", 0.002),
        ({}, "bfloat16", 0.25),
    ],
)
def test_what_is_allowed_follows_the_engines_stated_type(config: dict[str, object], name: str, tie: float) -> None:
    assert tolerance(config).name == name
    assert abs(tolerance(config).tie - tie) < 1e-9


def test_the_shipped_prompts_are_of_every_kind() -> None:
    names = {prompt.name for prompt in verify_prompts.shipped()}
    assert names >= {"short", "long", "multilingual", "emoji", "code", "chat"}
    assert verify_prompts.parse(verify_prompts.written(verify_prompts.shipped()), "p.jsonl") == verify_prompts.shipped()


def test_a_plain_file_is_a_prompt_on_each_line() -> None:
    assert [prompt.text for prompt in verify_prompts.parse("one\n\n two\n", "p.txt")] == ["one", " two"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"name": "a"}', "either text or messages"),
        ('{"name": "a", "txt": "b"}', "unknown field"),
        ("hello", "p.jsonl:1: this prompt cannot be read"),
        ('{"name": "a", "text": "b"}\n{"name": "a", "text": "c"}', "two prompts are called 'a'"),
        ("\n", "no prompts"),
    ],
)
def test_a_file_of_prompts_that_cannot_be_read_says_where(text: str, complaint: str) -> None:
    with pytest.raises(ForgeError, match=complaint):
        verify_prompts.parse(text, "p.jsonl")


def test_transcripts_are_read_as_written_and_damage_is_told() -> None:
    assert transcripts.read(transcripts.written(REFERENCE), "g") == REFERENCE
    with pytest.raises(ForgeError, match="cannot be read"):
        transcripts.read("{", "g")
    with pytest.raises(ForgeError, match="format 9"):
        transcripts.read(transcripts.written(REFERENCE).replace('"format": 1', '"format": 9'), "g")


def test_the_documented_table_of_tolerances_is_the_one_that_judges() -> None:
    page = (Path(__file__).parents[2] / "docs" / "verify.md").read_text(encoding="utf-8")
    rows = {
        row[0]: row[1:]
        for row in re.findall(r"^\| ([\w ]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| (.+) \|$", page, re.MULTILINE)
    }
    table = {**allowances().dtypes, **allowances().quantizations}
    assert {name: (float(a), float(b), float(c), why) for name, (a, b, c, why) in rows.items()} == {
        name: (each.tie, each.drift, each.diverging, each.why) for name, each in table.items()
    }
    assert f"adds {KV_CACHE} nats" in page


def test_the_documented_table_in_a_recipe_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "verify.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert read(f'name = "m"\n[source]\nhub = "a/b"\n{example}', "docs/verify.md").verify.on_build


def test_another_end_token_is_no_fault_of_the_detokenizer() -> None:
    late = dict.fromkeys(TEXTS, f"{SAID.text}</s> and so on, and so on")
    (verdict,) = judge_ends((7,), REFERENCE)
    assert (verdict.stage, verdict.outcome) == (Stage.TOKENIZER, Outcome.DIFFERS)
    assert "the checkpoint ends at 2; preprocessing ends at 7" in verdict.what
    assert failing(replace(GOOD, texts=late, ends=(7,))) == ()
    assert failing(replace(GOOD, texts=late, ends=(2,))) != ()
    assert failing(replace(GOOD, texts=dict.fromkeys(TEXTS, "another answer altogether"), ends=(7,))) != ()


def test_the_same_end_tokens_in_any_order_are_the_same() -> None:
    both = msgspec.structs.replace(REFERENCE, ends=(2, 7))
    assert [each.outcome for each in judge_ends((7, 2), both)] == [Outcome.SAME]
    assert [each.what for each in judge_ends((2,), both)] == [
        "the checkpoint ends at 7, and the other does not: answers go on too long or end too early"
    ]
    assert judge_ends(None, REFERENCE) == ()


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        ("so \ufffd\ufffd\ufffd\ufffd\ufffd", "so 好\ufffd\ufffd", True),
        ("so \ufffd\ufffd\ufffd\ufffd\ufffd", "so 好", True),
        ("so \ufffd\ufffd\ufffd\ufffd\ufffd", "so ", False),
        ("a\ufffd\ufffd\ufffdb", "a\ufffdb", True),
        ("\ufffd" * 9, "\ufffd" * 5, True),
        ("so é", "so \ufffd\ufffd", False),
        ("so", "so 好", False),
        ("so \ufffd", "so, other words", False),
    ],
)
def test_how_broken_bytes_are_shown_is_no_difference(expected: str, found: str, *, same: bool) -> None:
    assert (texts_differ(expected, found) == "") is same


def test_an_answer_of_broken_characters_accuses_no_piecewise_decoding() -> None:
    broken = "\ufffd" * 12
    verdicts = judge(SAID, replace(GOOD, texts={UNARY: SAID.text, STREAM: broken}), REFERENCE, EXACT)
    assert not [each for each in verdicts if "accumulate_tokens" in each.what]
