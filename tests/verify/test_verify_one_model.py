"""Verdicts on a model that holds all stages and tells its tokens, from transcripts and answers that are written down here."""

import pytest
from msgspec import structs
from msgspec.structs import replace

from forge.verify.judge import STREAM, UNARY, Heard, Outcome, Stage, judge_ends
from forge.verify.one_model import WHOSE, judge_one
from forge.verify.tolerances import KV_CACHE, Tolerance, table as allowances, vllm_tolerance
from forge.verify.verdicts import Report
from verify_kit import EXACT, HALF, REFERENCE, SAID

TEXTS = {UNARY: SAID.text, STREAM: SAID.text}
ENDED = (*SAID.tokens, 2)
GOOD = Heard("short", None, ENDED, SAID.log_probs, texts=TEXTS, ends=(2,), prompt_tokens=3, stream_tokens=ENDED)


def found(heard: Heard, allowed: Tolerance = EXACT) -> dict[Stage, Outcome]:
    return {each.stage: each.outcome for each in judge_one(SAID, heard, REFERENCE, allowed)}


def failing(heard: Heard, allowed: Tolerance = EXACT) -> tuple[Stage, ...]:
    return Report("m", "r", allowed, judge_one(SAID, heard, REFERENCE, allowed)).failing


def test_what_agrees_is_the_same_in_every_stage() -> None:
    stages = (Stage.TOKENIZER, Stage.ENGINE, Stage.DETOKENIZER, Stage.TRANSPORT)
    assert found(GOOD) == dict.fromkeys(stages, Outcome.SAME)


@pytest.mark.parametrize(("count", "told"), [(4, "stand there twice"), (2, "may be missing"), (7, "and the served model 7")])
def test_other_prompt_tokens_are_the_tokenizers_and_blame_nobody_else(count: int, told: str) -> None:
    other = replace(GOOD, prompt_tokens=count, tokens=(60,), stream_tokens=(60,), texts=dict.fromkeys(TEXTS, "no"))
    (tokenizer, engine) = judge_one(SAID, other, REFERENCE, EXACT)
    assert (tokenizer.outcome, engine.outcome) == (Outcome.DIFFERS, Outcome.SKIPPED)
    assert told in tokenizer.what


def test_other_tokens_without_a_near_tie_are_the_engines() -> None:
    tied = replace(GOOD, tokens=(30, 41), stream_tokens=(30, 41), log_probs=(-0.5, -0.66), texts=dict.fromkeys(TEXTS, " is so"))
    assert found(tied, HALF)[Stage.ENGINE] is Outcome.TIE
    assert failing(tied, HALF) == ()
    assert failing(tied) == (Stage.ENGINE,)
    drifts = replace(GOOD, log_probs=(-0.9, -0.9, -0.9))
    assert failing(drifts) == (Stage.ENGINE,)


def test_another_text_of_the_same_tokens_is_the_detokenizers() -> None:
    assert failing(replace(GOOD, texts=dict.fromkeys(TEXTS, "isveryblue"))) == (Stage.DETOKENIZER,)
    tied = replace(GOOD, tokens=(30, 41), stream_tokens=(30, 41), texts=dict.fromkeys(TEXTS, "IS so"))
    assert failing(tied, HALF) == (Stage.DETOKENIZER,), "as far as the tokens are shared"


def test_blanks_that_transformers_cleans_up_are_no_fault() -> None:
    said = structs.replace(SAID, text="I don't, he said.", lengths=(5, 10, 17))
    heard = replace(GOOD, texts=dict.fromkeys(TEXTS, "I do n't , he said ."))
    assert {each.outcome for each in judge_one(said, heard, REFERENCE, EXACT)} == {Outcome.SAME}


def test_a_stream_differing_from_its_whole_is_the_transports() -> None:
    assert failing(replace(GOOD, texts={**TEXTS, STREAM: " is very red"})) == (Stage.TRANSPORT,)
    assert failing(replace(GOOD, texts={**TEXTS, STREAM: "isveryblue"})) == (Stage.DETOKENIZER,)


def test_a_stream_of_other_tokens_is_held_to_the_checkpoint() -> None:
    tied = replace(GOOD, stream_tokens=(30, 41), texts={**TEXTS, STREAM: " is so"})
    assert failing(tied, HALF) == ()
    (fault,) = Report("m", "r", EXACT, judge_one(SAID, tied, REFERENCE, EXACT)).faults
    assert (fault.stage, fault.what.startswith("streamed: token 1")) == (Stage.ENGINE, True)


def test_an_answer_ending_elsewhere_is_the_end_tokens_fault() -> None:
    early = replace(GOOD, tokens=(30, 31), stream_tokens=(30, 31), texts=dict.fromkeys(TEXTS, " is"), ends=(2, 31))
    late = replace(GOOD, tokens=(*ENDED, 50), stream_tokens=(*ENDED, 50), texts=dict.fromkeys(TEXTS, " is very blue!"), ends=())
    for heard in (early, late):
        assert failing(heard) == ()
        assert found(heard)[Stage.ENGINE] is Outcome.SAME
        (ends,) = judge_ends(heard.ends, REFERENCE, WHOSE)
        assert ends.outcome is Outcome.DIFFERS
    assert "the served model ends at 31" in judge_ends(early.ends, REFERENCE, WHOSE)[0].what


def test_without_tokens_only_the_text_is_compared() -> None:
    silent = replace(GOOD, tokens=None, stream_tokens=None, log_probs=(), ends=None)
    assert found(silent) == {Stage.TOKENIZER: Outcome.SAME, Stage.PIPELINE: Outcome.SAME}
    assert failing(replace(silent, texts=dict.fromkeys(TEXTS, "no"))) == (Stage.PIPELINE,)


@pytest.mark.parametrize(
    ("dtype", "own", "name"),
    [
        ("auto", "float16", "float16"),
        ("auto", "float32", "bfloat16"),
        ("auto", None, "bfloat16"),
        ("half", "float32", "float16"),
        ("float", "bfloat16", "float32"),
        ("bfloat16", "float16", "bfloat16"),
    ],
)
def test_what_is_allowed_goes_by_what_vllm_computes_in(dtype: str, own: str | None, name: str) -> None:
    assert vllm_tolerance({"dtype": own} if own else {}, {"dtype": dtype}) == allowances().dtypes[name]


def test_what_is_allowed_knows_quantized_weights_and_caches() -> None:
    assert vllm_tolerance({"torch_dtype": "float16", "quantization_config": {"quant_method": "awq"}}, {}).name == "int4 weights"
    found = vllm_tolerance({"dtype": "bfloat16"}, {"quantization": "fp8", "kv_cache_dtype": "fp8_e4m3"})
    assert found.name == "fp8, 8-bit kv cache"
    assert found.tie == pytest.approx(0.8 + KV_CACHE)
