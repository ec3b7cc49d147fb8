"""What an answer is held to: by the words of each vLLM, by TensorRT-LLM's tensors, and where it cannot be."""

import json

import pytest

from forge.client import Guide, InferenceError
from forge.client.guide import GuideType
from forge.client.tensors import body, inputs_of
from forge.client.types import ModelMetadata, Request, TensorMetadata
from forge.client.vllm import sampling

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}
REQUEST = Request("m", "a", 5, guide=Guide.json_schema(SCHEMA))


def model(*inputs: str, version: str = "") -> ModelMetadata:
    return ModelMetadata("m", {name: TensorMetadata(name, "BYTES", (1,)) for name in inputs}, {}, vllm=version)


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        (Guide.any_json(), {"json_object": True}),
        (Guide.json_schema(json.dumps(SCHEMA)), {"json": SCHEMA}),
        (Guide.regex("[0-9]+"), {"regex": "[0-9]+"}),
    ],
)
@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("", "structured_outputs"),
        ("0.6.3.post1", "guided_decoding"),
        ("0.10.2", "guided_decoding"),
        ("0.11.0", "structured_outputs"),
        ("0.27.1", "structured_outputs"),
    ],
)
def test_each_vllm_is_told_in_its_own_words(guide: Guide, words: dict[str, object], version: str, name: str) -> None:
    told = json.loads(sampling(Request("m", "a", 5, guide=guide), image=True, version=version))
    assert json.loads(told[name]) == words, "a text of JSON, as Triton's backend reads it"
    assert {"guided_decoding", "structured_outputs"} & set(told) == {name}


def test_the_version_is_what_the_models_config_says() -> None:
    asked = model("text_input", "sampling_parameters", "embedding_request", version="0.9.2")
    assert "guided_decoding" in json.loads(str(body(REQUEST, asked)["sampling_parameters"]))


def test_a_vllm_that_has_no_such_thing_is_said() -> None:
    with pytest.raises(InferenceError, match=r"vLLM 0\.5\.5 cannot hold its answer") as caught:
        sampling(REQUEST, image=True, version="0.5.5")
    assert "25.01" in caught.value.hint


def test_an_engine_is_told_by_tensorrt_llms_tensors() -> None:
    engine = model("text_input", "max_tokens", "guided_decoding_guide_type", "guided_decoding_guide")
    sent = {each.name: each.raw[4:].decode() for each in inputs_of(REQUEST, engine)}
    assert sent["guided_decoding_guide_type"] == "json_schema"
    assert json.loads(sent["guided_decoding_guide"]) == SCHEMA
    any_json = {each.name for each in inputs_of(Request("m", "a", 5, guide=Guide.any_json()), engine)}
    assert "guided_decoding_guide" not in any_json


def test_a_model_without_such_an_input_is_refused_in_words() -> None:
    with pytest.raises(InferenceError, match="cannot hold its answer to JSON, a schema or a regular expression"):
        inputs_of(REQUEST, model("text_input", "max_tokens"))


def test_min_p_is_refused_where_no_input_takes_it() -> None:
    with pytest.raises(InferenceError, match=r"no input for .*min_p"):
        inputs_of(Request("m", "a", 5, min_p=0.1), model("text_input", "max_tokens", "top_k", "top_p", "seed"))


@pytest.mark.parametrize(
    ("text", "said"), [("{", "is no JSON"), ("[" * 100_000, "is no JSON"), ("[1]", "not an object"), ("true", "not an object")]
)
def test_a_schema_that_is_no_object_is_refused_first(text: str, said: str) -> None:
    with pytest.raises(InferenceError, match=said) as caught:
        Guide.json_schema(text, "schema.json")
    assert caught.value.where == "schema.json"


def test_an_empty_expression_is_refused() -> None:
    with pytest.raises(InferenceError, match="is empty"):
        Guide.regex("")
    assert Guide.regex("a").type is GuideType.REGEX
