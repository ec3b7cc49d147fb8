"""End tokens: all that a checkpoint states end an answer, wherever it states them; TensorRT-LLM itself knows one."""

import json
from pathlib import Path

import numpy as np
import pytest

from counting import Counting
from forge.client.tensors import inputs_of
from forge.client.types import ModelMetadata, TensorMetadata
from forge.schema.manifest import PublishedModel
from forge.schema.values import Role, RuntimeKind
from forge.serve.lookup import Target
from forge.twin.asks import Ask
from forge.twin.sampling import Sampling
from skeleton_kit import lay, model, prepared, words
from twin_loop import Heard, run

TOKENS = {"<eos>": 1, "<end_of_turn>": 107, "<pad>": 0}


def engine(folder: Path, config: dict[str, object]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("generation", "config", "more"),
    [
        (None, {"eos_token_id": [1, 7, 9]}, [7, 9]),
        (None, {"eos_token_id": 7}, [7]),
        (None, {"text_config": {"eos_token_id": [7, 9]}}, [7, 9]),
        ({"pad_token_id": 0}, {"eos_token_id": [7]}, [7]),
        ({"eos_token_id": [5, 6]}, {"eos_token_id": [7, 9]}, [5, 6]),
        (None, {}, []),
    ],
    ids=["config alone", "one", "its text's", "generation states none", "generation first", "none"],
)
def test_every_end_token_that_a_checkpoint_states_is_sent(
    tmp_path: Path, generation: dict[str, object] | None, config: dict[str, object], more: list[int]
) -> None:
    """The tokenizer's own is end_id; the others are stop words, each a token."""
    laid = engine(tmp_path / "engine", config)
    made = model("preprocessing", lay(tmp_path, "byte_level", generation), gpt_model_path=str(laid))
    found = prepared(made, "a")
    assert found["OUT_END_ID"].tolist() == [[1]]
    assert words(found["STOP_WORDS_IDS"][0]) == [[each] for each in more]


@pytest.mark.parametrize("stop", [(), ((3,),)], ids=["one end", "two ends"])
def test_before_min_tokens_no_end_token_is_said(stop: tuple[tuple[int, ...], ...]) -> None:
    """The decoder in miniature says the next number; 6, and 3 where it is told, end an answer."""
    ask = Ask(np.array([1]), 20, end_id=6, stop_words=stop, sampling=Sampling(min_tokens=9))
    exchange = Heard((ask,))
    run(Counting(), exchange)
    assert len(exchange.tokens[0]) >= 9
    assert not {6, *(word[0] for word in stop)} & set(exchange.tokens[0][:9])


TWO: dict[str, object] = {"eos_token_id": [1, 107]}


def target(place: Path, runtime: RuntimeKind, generation: object = TWO, config: object = None, *, old: bool = False) -> Target:
    """A Gemma's tokenizer folder: <eos> to the tokenizer, and <end_of_turn> ends an answer too; ``old`` settings leave it to
    tokenizer.json which tokens were added."""
    assets = place / "_assets" / "gemma"
    marks = {str(number): {"content": text, "special": True} for text, number in TOKENS.items()}
    added = [{"id": int(number), **mark} for number, mark in marks.items()]
    settings = {"eos_token": {"content": "<eos>"}} if old else {"eos_token": "<eos>", "added_tokens_decoder": marks}
    written = {"tokenizer/generation_config.json": generation, "checkpoint/config.json": config}
    written |= {"tokenizer/tokenizer_config.json": settings, "tokenizer/tokenizer.json": {"added_tokens": added, "model": {}}}
    for name, content in written.items():
        if content is not None:
            (assets / name).parent.mkdir(parents=True, exist_ok=True)
            (assets / name).write_text(json.dumps(content))
    roles = {role: f"gemma-{role}" for role in (Role.BLS, Role.PREPROCESSING, Role.TENSORRT_LLM, Role.POSTPROCESSING)}
    return Target("localhost:1", PublishedModel(name="gemma", entry="k", runtime=runtime, roles=roles), place)


def test_nvidias_preprocessing_is_told_end_tokens_it_does_not_know(tmp_path: Path) -> None:
    request = target(tmp_path, RuntimeKind.ENGINE).request("a")
    assert request.ends == ("<end_of_turn>",)
    kinds = {"text_input": "BYTES", "max_tokens": "INT32", "stop_words": "BYTES", "stream": "BOOL"}
    taken = {name: TensorMetadata(name, kind, (-1, -1)) for name, kind in kinds.items()}
    (stops,) = [each for each in inputs_of(request, ModelMetadata(request.model, taken, {})) if each.name == "stop_words"]
    assert stops.raw.endswith(b"<end_of_turn>")
    assert stops.shape[-1] == 1


@pytest.mark.parametrize(
    ("generation", "config", "found"),
    [
        (None, TWO, ("<end_of_turn>",)),
        ({"pad_token_id": 0}, TWO, ("<end_of_turn>",)),
        (None, {"text_config": TWO}, ("<end_of_turn>",)),
        (None, {"eos_token_id": 107}, ("<end_of_turn>",)),
        ({"eos_token_id": 1}, TWO, ()),
        (None, {"eos_token_id": [1, 4711]}, ()),
        (None, None, ()),
    ],
    ids=["config alone", "generation states none", "its text's", "one", "generation first", "no added token", "nobody"],
)
@pytest.mark.parametrize("old", [False, True], ids=["settings of today", "older settings"])
def test_an_engine_is_told_end_tokens_only_config_json_states(
    tmp_path: Path, generation: object, config: object, found: tuple[str, ...], old: bool
) -> None:
    assert target(tmp_path, RuntimeKind.ENGINE, generation, config, old=old).request("a").ends == found


def test_forges_own_preprocessing_reads_them_itself(tmp_path: Path) -> None:
    assert target(tmp_path, RuntimeKind.TWIN).request("a").ends == ()
