"""Patches as data, applied to text."""

import ast

import pytest

from forge.errors import StepError
from forge.schema.values import CallPatch, JsonPatch, TextPatch
from forge.trtllm.patches import apply, apply_all

FILE = "/app/examples/models/core/gemma/convert_checkpoint.py"
CALL = CallPatch(FILE, "GemmaConfig.from_hugging_face", 2, ("quant_config",))


def _keywords(text: str) -> list[str | None]:
    return [each.arg for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) for each in node.keywords]


def test_a_positional_argument_becomes_a_keyword_where_it_stands() -> None:
    script = "# Größe\nconfig = models.GemmaConfig.from_hugging_face(\n    args.model_dir,  # the “d”\n    d('ü'), quant)\n"
    result = apply(CALL, script)
    assert result.applied
    assert result.text == script.replace(" quant)", " quant_config=quant)")
    assert "quant_config by name" in result.note


@pytest.mark.parametrize(
    "call",
    [
        "GemmaConfig.from_hugging_face(a, b, quant_config=q)",
        "GemmaConfig.from_hugging_face(a, b, mapping=m, quant_config=q)",
        "GemmaConfig.from_hugging_face(a, b, m, q)",
        "GemmaConfig.from_hugging_face(a, b)",
        "GemmaConfig.from_hugging_face(*everything)",
        "GemmaConfig.from_hugging_face(a, b, q, **rest)",
        "LlamaConfig.from_hugging_face(a, b, q)",
        "from_hugging_face(a, b, q)",
    ],
)
def test_a_call_in_another_form_is_left_and_told(call: str) -> None:
    result = apply(CALL, f"x = {call}\n")
    assert (result.text, result.applied) == (f"x = {call}\n", False)
    assert "not needed" in result.note


@pytest.mark.parametrize("argument", ["(q)", "((q))", "( q )", "(q, r)", "f(q)", "q if r else (s)", "[(q)]", "(\n  q\n)"])
def test_an_argument_in_parentheses_of_its_own_is_rewritten_whole(argument: str) -> None:
    text = apply(CALL, f"GemmaConfig.from_hugging_face((a), b, {argument})").text
    assert "quant_config" in _keywords(text)


def test_every_call_is_rewritten_and_first_arguments_too() -> None:
    patch = CallPatch("f.py", "read", 0, ("path", "mode"))
    text = apply(patch, "read(a, b); read((a), read(c, d))\r\nread(e)\r\n").text
    assert text == "read(path=a, mode=b); read(path=(a), mode=read(path=c, mode=d))\r\nread(e)\r\n"


def test_a_missing_required_call_is_an_error_with_fix() -> None:
    required = CallPatch(FILE, "GemmaConfig.from_hugging_face", 2, ("quant_config",), required=True)
    with pytest.raises(StepError, match="is not called") as error:
        apply(required, "x = 1\n")
    assert error.value.where == FILE
    assert "plugin" in error.value.hint
    with pytest.raises(StepError, match="no Python"):
        apply(required, "x = (\n")


def test_text_is_replaced_once_however_often_the_patch_is_applied() -> None:
    patch = TextPatch("f.py", find="x", put="(x + x)", why="because")
    once = apply(patch, "y = x\n")
    assert once.text == "y = (x + x)\n"
    assert once.note == "f.py: applied: replaced in 1 place(s) (because)"
    again = apply(patch, once.text)
    assert (again.text, again.applied) == (once.text, False)
    assert apply(patch, "y = (x + x); z = x\n").text == "y = (x + x); z = (x + x)\n"


def test_missing_text_is_an_error_only_where_required() -> None:
    with pytest.raises(StepError, match="'gone' is not there"):
        apply(TextPatch("f.py", "gone", "here"), "")
    assert not apply(TextPatch("f.py", "gone", "here", required=False), "").applied


def test_text_can_be_taken_away() -> None:
    patch = TextPatch("f.py", "assert False\n", "", required=False)
    assert apply(patch, "assert False\nx\n").text == "x\n"
    assert not apply(patch, "x\n").applied


def test_json_keys_are_set_and_the_others_stay() -> None:
    patch = JsonPatch("config.json", {"hidden_act": "gelu", "added": [1]})
    once = apply(patch, '{"hidden_act": "silu", "größe": 1}')
    assert once.text == '{\n  "hidden_act": "gelu",\n  "größe": 1,\n  "added": [\n    1\n  ]\n}\n'
    again = apply(patch, once.text)
    assert (again.text, again.applied) == (once.text, False)


@pytest.mark.parametrize("text", ["[]", "{", "", "null"])
def test_json_that_is_no_object_is_named(text: str) -> None:
    with pytest.raises(StepError, match=r"config\.json: this is no JSON object"):
        apply(JsonPatch("config.json", {"a": 1}), text)


def test_several_patches_are_applied_in_order() -> None:
    text, notes = apply_all((TextPatch("f", "a", "b"), TextPatch("f", "b", "c")), "a")
    assert text == "c"
    assert len(notes) == 2


def test_only_calls_with_the_patchs_arguments_are_rewritten() -> None:
    patch = CallPatch("model.py", "generate_async", 2, ("streaming",), given=("streaming",))
    nvidias = "answers = self._llm_engine.generate_async(\n    prompt, SamplingParams(**sampling_params), streaming)\n"
    assert apply(patch, nvidias).text == nvidias.replace(" streaming)", " streaming=streaming)")
    for other in ("generate_async(prompt, sampling, lora_request)", "generate_async(prompt, sampling, streaming=streaming)"):
        assert apply(patch, f"{other}\n").text == f"{other}\n"
