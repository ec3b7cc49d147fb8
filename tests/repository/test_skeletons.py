"""preprocessing and postprocessing, as an ensemble and tensorrt_llm_bls ask them."""

import json
from pathlib import Path

import numpy as np
import pytest

import fake_triton
from skeleton_kit import ENDS, TOKENIZERS, Array, ask, lay, load, model, prepared, strings, texts, words


@pytest.fixture(params=list(TOKENIZERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_prompts_of_a_batch_are_padded_on_the_right(tmp_path: Path, kind: str) -> None:
    found = prepared(model("preprocessing", lay(tmp_path, kind)), "hello", "hello hello world")
    ids = [TOKENIZERS[kind].encode(text).ids for text in ("hello", "hello hello world")]
    assert found["REQUEST_INPUT_LEN"].tolist() == [[len(ids[0])], [len(ids[1])]]
    assert found["INPUT_ID"][0].tolist() == ids[0] + [found["OUT_PAD_ID"].flat[0]] * (len(ids[1]) - len(ids[0]))
    assert found["INPUT_ID"][1].tolist() == ids[1]
    assert found["REQUEST_OUTPUT_LEN"].tolist() == [[5], [5]]


def test_special_tokens_follow_the_parameter_and_are_never_doubled(tmp_path: Path) -> None:
    folder = lay(tmp_path, "sentence_piece")
    assert prepared(model("preprocessing", folder, add_special_tokens="true"), "hello")["INPUT_ID"][0, 0] == 1
    assert prepared(model("preprocessing", folder, add_special_tokens="false"), "hello")["INPUT_ID"][0, 0] != 1
    templated = prepared(model("preprocessing", folder), "<s>hello")["INPUT_ID"][0].tolist()
    assert templated.count(1) == 1


def test_end_and_pad_come_from_the_tokenizer_unless_given(tmp_path: Path, kind: str) -> None:
    made = model("preprocessing", lay(tmp_path, kind))
    end = TOKENIZERS[kind].token_to_id(ENDS[kind][1])
    found = prepared(made, "a")
    assert (found["OUT_END_ID"].tolist(), found["OUT_PAD_ID"].tolist()) == ([[end]], [[end]])
    found = prepared(made, "a", END_ID=np.array([[7]], np.int32), PAD_ID=np.array([[9]], np.int32))
    assert (found["OUT_END_ID"].tolist(), found["OUT_PAD_ID"].tolist()) == ([[7]], [[9]])


def test_further_end_ids_of_the_checkpoint_travel_as_stop_words(tmp_path: Path) -> None:
    made = model("preprocessing", lay(tmp_path, "byte_level", {"eos_token_id": [1, 107]}))
    assert words(prepared(made, "a")["STOP_WORDS_IDS"][0]) == [[107]]
    assert words(prepared(made, "a", END_ID=np.array([[3]], np.int32))["STOP_WORDS_IDS"][0]) == []


def test_word_lists_are_flat_ids_and_exclusive_ends(tmp_path: Path) -> None:
    module = load("preprocessing", fake_triton)
    lists = module.word_lists([[[5, 6], [7]], [], [[8]]])
    assert lists.dtype == np.int32
    assert lists.tolist() == [[[5, 6, 7], [2, 3, -1]], [[0, 0, 0], [-1, -1, -1]], [[8, 0, 0], [1, -1, -1]]]
    assert module.word_lists([[]]).tolist() == [[[0], [-1]]]


@pytest.mark.parametrize("word", ["END", " END", "\n\n", ", how", "你好"])
def test_a_stop_word_is_the_ids_continuing_a_text(tmp_path: Path, kind: str, word: str) -> None:
    made = model("preprocessing", lay(tmp_path, kind))
    (ids,) = words(prepared(made, "a", STOP_WORDS_DICT=texts([word, ""]))["STOP_WORDS_IDS"][0])
    tokenizer = TOKENIZERS[kind]
    before = tokenizer.encode("0").ids
    assert tokenizer.decode(before + ids) == "0" + word
    assert tokenizer.token_to_id("<s>") not in ids


def test_bad_words_are_lists_of_their_own(tmp_path: Path, kind: str) -> None:
    made = model("preprocessing", lay(tmp_path, kind))
    found = prepared(made, "a", BAD_WORDS_DICT=texts(["END", "h"]))
    assert len(words(found["BAD_WORDS_IDS"][0])) == 2
    assert words(found["STOP_WORDS_IDS"][0]) == []


def test_an_embedding_bias_is_as_wide_as_the_engines_vocabulary(tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "config.json").write_text(json.dumps({"pretrained_config": {"vocab_size": 384}}))
    made = model("preprocessing", lay(tmp_path, "byte_level"), gpt_model_path=str(engine))
    assert prepared(made, "a")["EMBEDDING_BIAS"].shape == (1, 0)
    biased = {"EMBEDDING_BIAS_WORDS": texts(["h"]), "EMBEDDING_BIAS_WEIGHTS": np.array([[-2.5]], np.float32)}
    bias = prepared(made, "a", **biased)["EMBEDDING_BIAS"]
    assert bias.shape == (1, 384)
    assert {int(index): float(bias[0, index]) for index in np.flatnonzero(bias[0])} == {
        TOKENIZERS["byte_level"].token_to_id("h"): -2.5
    }


def test_a_bias_by_token_adds_to_one_by_text(tmp_path: Path) -> None:
    made = model("preprocessing", lay(tmp_path, "byte_level"))
    token = TOKENIZERS["byte_level"].token_to_id("h")
    by_token = {"LOGIT_BIAS_IDS": np.array([[3, token]], np.int32), "LOGIT_BIAS_VALUES": np.array([[-100, 1.5]], np.float32)}
    bias = prepared(made, "a", **by_token)["EMBEDDING_BIAS"]
    assert {int(index): float(bias[0, index]) for index in np.flatnonzero(bias[0])} == {3: -100.0, token: 1.5}
    by_text = {"EMBEDDING_BIAS_WORDS": texts(["h"]), "EMBEDDING_BIAS_WEIGHTS": np.array([[-2.5]], np.float32)}
    both = prepared(made, "a", **by_token, **by_text)["EMBEDDING_BIAS"]
    assert {int(index): float(both[0, index]) for index in np.flatnonzero(both[0])} == {3: -100.0, token: -1.0}


def _biased(tokens: list[int], amounts: list[float]) -> dict[str, Array]:
    given = {"LOGIT_BIAS_IDS": np.array([tokens], np.int32), "LOGIT_BIAS_VALUES": np.array([amounts], np.float32)}
    return {"REQUEST_OUTPUT_LEN": np.array([[4]], np.int32), **given}


@pytest.mark.parametrize(
    ("query", "inputs", "complaint"),
    [
        (b"a", {"REQUEST_OUTPUT_LEN": np.array([[0]], np.int32)}, "max_tokens"),
        (b"a", _biased([99999], [1.0]), "tokens of the vocabulary"),
        (b"a", _biased([-1], [1.0]), "tokens of the vocabulary"),
        (b"a", _biased([1], [1.0, 2.0]), "go together"),
        (b"a", _biased([1], [float("nan")]), "finite"),
        (b"a", {}, "max_tokens"),
        (b"\xff\xfe", {"REQUEST_OUTPUT_LEN": np.array([[4]], np.int32)}, "UTF-8"),
        (b"", {"REQUEST_OUTPUT_LEN": np.array([[4]], np.int32)}, "empty"),
        (b"a", {"REQUEST_OUTPUT_LEN": np.array([[4]], np.int32), "EMBEDDING_BIAS_WORDS": texts(["h"])}, "embedding_bias"),
    ],
)
def test_a_wrong_request_is_refused_by_itself(tmp_path: Path, query: bytes, inputs: dict[str, Array], complaint: str) -> None:
    made = model("preprocessing", lay(tmp_path, "byte_level"))
    good = {"QUERY": texts(["a"]), "REQUEST_OUTPUT_LEN": np.array([[4]], np.int32)}
    asked = [fake_triton.InferenceRequest({"QUERY": texts([query]), **inputs}), fake_triton.InferenceRequest(good)]
    refused, answered = made.execute(asked)
    assert complaint in refused.error.message()
    assert answered.error is None


@pytest.mark.parametrize("role", ["preprocessing", "postprocessing", "tensorrt_llm_bls"])
def test_a_folder_without_a_fast_tokenizer_is_named(tmp_path: Path, role: str) -> None:
    with pytest.raises(fake_triton.TritonModelException, match=r"tokenizer\.json is missing"):
        model(role, tmp_path)


# -- postprocessing


def test_ids_become_text_beam_by_beam(tmp_path: Path, kind: str) -> None:
    ids = [TOKENIZERS[kind].encode(text, add_special_tokens=False).ids for text in ("hello", "hello world")]
    width = max(map(len, ids))
    beams = np.array([[each + [0] * (width - len(each)) for each in ids]], np.int32)
    lengths = np.array([[len(each) for each in ids]], np.int32)
    found, _ = ask(model("postprocessing", lay(tmp_path, kind)), TOKENS_BATCH=beams, SEQUENCE_LENGTH=lengths)
    assert found["OUTPUT"].tolist() == [[b"hello", b"hello world"]]


@pytest.mark.parametrize("token", [-1, 2**31])
def test_an_impossible_token_is_refused_and_others_are_answered(tmp_path: Path, token: int) -> None:
    lengths = np.array([[1]], np.int32)
    asked = [
        fake_triton.InferenceRequest({"TOKENS_BATCH": np.array([[[each]]], np.int64), "SEQUENCE_LENGTH": lengths})
        for each in (token * 3, 5)
    ]
    refused, answered = model("postprocessing", lay(tmp_path, "byte_level")).execute(asked)
    assert "say no tokens" in refused.error.message()
    assert answered.error is None


def test_special_tokens_are_skipped_as_the_parameter_says(tmp_path: Path, kind: str) -> None:
    folder = lay(tmp_path, kind)
    ids = [*TOKENIZERS[kind].encode("hello", add_special_tokens=False).ids, TOKENIZERS[kind].token_to_id(ENDS[kind][1])]
    given = {"TOKENS_BATCH": np.array([[ids]], np.int32), "SEQUENCE_LENGTH": np.array([[len(ids)]], np.int32)}
    assert ask(model("postprocessing", folder), **given)[0]["OUTPUT"].tolist() == [[b"hello"]]
    kept = ask(model("postprocessing", folder, skip_special_tokens="false"), **given)[0]["OUTPUT"]
    assert strings(kept)[0].endswith(ENDS[kind][1])
