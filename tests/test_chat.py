"""Chat templates are rendered as transformers renders them."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from forge.adapters.chat import ChatTemplate, Message
from forge.errors import InferenceError

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if tools is not none %}{{- tools | tojson(indent=4) }}{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{{- date_string }}
{%- endif %}
"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
ODD = """{% for message in messages %}
    {% if message.role == 'skip' %}{% continue %}{% endif %}
    {% generation %}
    {{ message | tojson }}
    {% endgeneration %}
{% endfor %}
"""
TALK: tuple[Message, ...] = (
    ("user", "  What is <b>2 + 2</b>, 'quoted' & ünïcode? "),
    ("assistant", "Four."),
    ("user", "And 3 + 3?"),
)


def folder_with(place: Path, template: object, *, adds_bos: bool = False, tokens: object = "<s>") -> Path:
    """A tokenizer folder as a checkpoint has it."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[attr-defined,unused-ignore]
    if adds_bos:
        template_processing = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", 1)])
        tokenizer.post_processor = processors.Sequence([template_processing])  # type: ignore[attr-defined,unused-ignore]
    tokenizer.save(str(place / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens,
        "eos_token": "</s>",
        "chat_template": template,
    }
    (place / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return place


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("template", [CHATML, LLAMA2, LLAMA3, GEMMA, ODD], ids=["chatml", "llama2", "llama3", "gemma", "odd"])
def test_a_conversation_is_rendered_as_transformers_does(tmp_path: Path, template: str, opened: bool) -> None:
    folder = folder_with(tmp_path, template)
    reference = PreTrainedTokenizerFast.from_pretrained(folder)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    messages = [{"role": role, "content": text} for role, text in TALK]
    expected = reference.apply_chat_template(  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        messages, tokenize=False, add_generation_prompt=opened
    )
    assert ChatTemplate.of(folder).render(TALK, add_generation_prompt=opened) == expected


def test_a_system_message_is_rendered_where_the_template_knows_one(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, LLAMA2)
    text = ChatTemplate.of(folder).render((("system", "Be brief."), *TALK))
    assert text.startswith("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n")


def test_a_refusal_of_the_template_is_said_in_its_words(tmp_path: Path) -> None:
    template = ChatTemplate.of(folder_with(tmp_path, GEMMA))
    with pytest.raises(InferenceError, match="System role not supported"):
        template.render((("system", "Be brief."), *TALK))


def test_the_default_of_several_templates_is_used(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert ChatTemplate.of(folder_with(tmp_path, named)).render(TALK) == "plain"


def test_several_templates_without_a_default_are_named(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="tool_use, rag"):
        ChatTemplate.of(folder_with(tmp_path, [{"name": "tool_use", "template": ""}, {"name": "rag", "template": ""}]))


def test_a_template_file_comes_before_the_settings(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "from the settings")
    (folder / "chat_template.jinja").write_text("from the file", encoding="utf-8")
    assert ChatTemplate.of(folder).render(TALK) == "from the file"


def test_special_tokens_may_be_dictionaries(tmp_path: Path) -> None:
    token = {"__type": "AddedToken", "content": "<s>", "lstrip": False}
    assert ChatTemplate.of(folder_with(tmp_path, GEMMA, tokens=token)).render(TALK).startswith("<s><start_of_turn>")


def test_a_first_token_that_the_tokenizer_adds_is_not_sent_twice(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, LLAMA2, adds_bos=True)
    template = ChatTemplate.of(folder)
    assert template.opening == "<s>"
    assert template.render(TALK[:1]).startswith("<s>[INST]")
    assert template.prompt(TALK[:1]).startswith("[INST]")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode(template.prompt(TALK[:1])).ids.count(1) == 1


def test_a_first_token_that_the_tokenizer_does_not_add_is_sent(tmp_path: Path) -> None:
    template = ChatTemplate.of(folder_with(tmp_path, LLAMA2))
    assert template.opening == ""
    assert template.prompt(TALK[:1]).startswith("<s>[INST]")


def test_a_model_without_a_template_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="no chat template") as caught:
        ChatTemplate.of(folder_with(tmp_path, None))
    assert "forge generate" in caught.value.hint


def test_a_template_cannot_reach_out(tmp_path: Path) -> None:
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InferenceError, match="unsafe"):
        ChatTemplate.of(folder_with(tmp_path, escape)).render(TALK)


def test_a_broken_template_is_named_with_its_folder(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "{% for %}")
    with pytest.raises(InferenceError, match="cannot be read") as caught:
        ChatTemplate.of(folder).render(TALK)
    assert caught.value.where == str(folder)
