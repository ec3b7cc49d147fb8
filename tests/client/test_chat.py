"""Chat templates are rendered as transformers renders them."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from forge.client.chat_template import ChatTemplate, ChatTemplates, Message
from forge.client.openings import opening
from forge.errors import InferenceError
from forge.machine.processes import offspring, started
from forge.schema.values import LimitsTable
from patience import soon

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


def test_of_a_long_refusal_the_beginning_is_said(tmp_path: Path) -> None:
    template = ChatTemplate.of(folder_with(tmp_path, "{{ raise_exception('no' * 1_000_000) }}"))
    with pytest.raises(InferenceError, match="nono") as error:
        template.render(TALK)
    assert len(error.value.what) < 2_000


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


def test_a_first_token_the_tokenizer_adds_is_not_sent_twice(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, LLAMA2, adds_bos=True)
    template = ChatTemplate.of(folder)
    assert template.opening == "<s>"
    assert template.render(TALK[:1]).startswith("<s>[INST]")
    assert template.prompt(TALK[:1]).startswith("[INST]")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode(template.prompt(TALK[:1])).ids.count(1) == 1


def test_a_first_token_the_tokenizer_does_not_add_is_sent(tmp_path: Path) -> None:
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


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
GROWING = "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        (LOOP, "not done"),
        ("{{ ('a' * 30000000)|wordwrap(1) }}", "not done"),
        ("{{ 'x' * 10**10 }}", "MiB of memory"),
        ("{{ 'x'|center(10**9) }}", "MiB of memory"),
        ("{{ '%1000000000d' % 3 }}", "MiB of memory"),
        ("{{ '{:1000000000}'.format(3) }}", "MiB of memory"),
        ("{{ ('a'*100000)|replace('a', 'b'*100000) }}", "MiB of memory"),
        (GROWING, "MiB of memory|not done"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "more than 8388608 characters"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion"),
        ("{% if 1 %}" * 200 + "{% endif %}" * 200, "indentation"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages.nothing.at_all }}", "undefined|no attribute"),
    ],
    ids=lambda value: value[:24],
)
def test_a_template_that_never_ends_or_grows_is_an_error(template: str, complaint: str) -> None:
    made = ChatTemplate(template, {}, where="its folder", limits=LimitsTable(max_template_seconds=0.5))
    for _ in range(2):  # it is no better afterwards, and neither does it stand in the next one's way
        with pytest.raises(InferenceError, match=complaint) as caught:
            made.render(TALK)
        assert caught.value.where == "its folder"
        assert caught.value.hint


def test_after_one_that_was_ended_the_next_conversation_is_rendered() -> None:
    made = ChatTemplate(
        "{% if messages|length > 2 %}" + LOOP + "{% endif %}ok", {}, limits=LimitsTable(max_template_seconds=0.2)
    )
    assert made.render(TALK[:1]) == "ok"
    with pytest.raises(InferenceError, match="not done"):
        made.render(TALK)
    assert made.render(TALK[:1]) == "ok"


def test_a_renderer_that_stands_still_is_given_up_and_replaced() -> None:
    made = ChatTemplate("ok", {}, limits=LimitsTable(max_template_seconds=0.1))
    others = renderers()
    assert made.render(TALK) == "ok"
    (renderer,) = renderers() - others
    os.kill(renderer, signal.SIGSTOP)
    with pytest.raises(InferenceError, match="not done"):
        made.render(TALK)
    assert made.render(TALK) == "ok"
    assert soon(lambda: started(renderer) is None)


def renderers() -> set[int]:
    found: set[int] = set()
    for pid in offspring((os.getpid(),)):
        with suppress(OSError):
            if b"renderer.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def test_threads_take_turns_at_one_template() -> None:
    made = ChatTemplate("{{ messages[0].content }}", {})
    texts = [f"{number} " * 20_000 for number in range(16)]

    def render(text: str) -> str:
        return made.render([("user", text)])

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(render, texts)) == texts


def test_a_template_can_not_write_start_know_nor_outlive_forge() -> None:
    """forge is killed while a template loops: its process has gone a moment later."""
    code = (
        "import sys\n"
        "from forge.client.chat_template import ChatTemplate\n"
        "from forge.schema.values import LimitsTable\n"
        "made = ChatTemplate(sys.argv[1], {}, limits=LimitsTable(max_template_seconds=1))\n"
        "made.render([('user', 'quick')])\n"
        "print(made._process._process.pid, flush=True)\n"
        "made.render([('user', 'x'), ('user', 'loop')])\n"
    )
    template = "{% if messages|length > 1 %}" + LOOP + "{% endif %}"
    environ = {**os.environ, "HF_TOKEN": "a-token-of-the-callers"}
    with subprocess.Popen((sys.executable, "-c", code, template), stdout=subprocess.PIPE, text=True, env=environ) as forge:
        assert forge.stdout is not None
        child = Path("/proc") / forge.stdout.readline().strip()
        allowed, known = (child / "limits").read_text(), (child / "environ").read_text()
        forge.kill()
    assert "Max file size             0                    0" in allowed
    assert "Max processes             0                    0" in allowed
    assert "a-token-of-the-callers" not in known
    assert soon(lambda: not child.exists() or "State:\tZ" in (child / "status").read_text())


def test_a_folders_template_is_read_again_when_it_changes(tmp_path: Path) -> None:
    templates = ChatTemplates()
    folder = folder_with(tmp_path, "one")
    assert [templates.prompt(folder, TALK, LimitsTable()) for _ in range(2)] == ["one", "one"]
    folder_with(tmp_path, "another")
    assert templates.prompt(folder, TALK, LimitsTable()) == "another"


def piece(name: str) -> dict[str, object]:
    return {"SpecialToken": {"id": name, "type_id": 0}}


def template_of(*pieces: dict[str, object], **special: list[str]) -> dict[str, object]:
    """A TemplateProcessing, with the tokens that each special token stands for."""
    known = {name: {"id": name, "ids": list(range(len(tokens))), "tokens": tokens} for name, tokens in special.items()}
    return {"type": "TemplateProcessing", "single": list(pieces), "pair": [], "special_tokens": known}


TEXT: dict[str, object] = {"Sequence": {"id": "A", "type_id": 0}}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
ROBERTA = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True, "add_prefix_space": False}
BOS = template_of(piece("B"), TEXT, B=["<s>"])


@pytest.mark.parametrize(
    "processor",
    [
        None,
        BYTES,
        ROBERTA,
        {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 0]},
        BOS,
        template_of(TEXT, piece("B"), B=["<s>"]),
        template_of(piece("E"), piece("B"), TEXT, E=[], B=["<s>"]),
        template_of(piece("B"), TEXT, B=["<s>", "<t>"]),
        template_of(TEXT),
        {"type": "Sequence", "processors": []},
        {"type": "Sequence", "processors": [BYTES, BOS]},
        {"type": "Sequence", "processors": [BOS, BYTES]},
        {"type": "Sequence", "processors": [ROBERTA, BYTES]},
        {"type": "Sequence", "processors": [{"type": "Sequence", "processors": [BOS]}]},
    ],
    ids=str,
)
def test_the_opening_token_is_the_one_that_the_tokenizer_writes(processor: object) -> None:
    document = {"model": {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "x"}, "post_processor": processor}
    written = Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], **document})).encode("x").tokens
    assert opening(processor) == ("" if written[0] == "x" else written[0])


@pytest.mark.parametrize(
    "processor",
    [
        "garbage",
        7,
        [1],
        {},
        {"type": "Nope", "single": [piece("B")]},
        {"type": ["Sequence"]},
        {"type": "Sequence"},
        {"type": "Sequence", "processors": [1, None, "x"]},
        {"type": "TemplateProcessing", "single": [piece("B"), TEXT], "pair": []},
        {"type": "TemplateProcessing", "single": ["x"]},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": 3}]},
        {"type": "TemplateProcessing", "single": [piece("B")], "special_tokens": {"B": 1}},
        {"type": "RobertaProcessing", "cls": []},
        {"type": "RobertaProcessing", "cls": [None]},
        {"type": "RobertaProcessing", "cls": "<s>"},
    ],
    ids=str,
)
def test_a_post_processor_that_nobody_can_load_opens_nothing(tmp_path: Path, processor: object) -> None:
    folder = folder_with(tmp_path, LLAMA2)
    document = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**document, "post_processor": processor}))
    assert ChatTemplate.of(folder).prompt(TALK[:1]).startswith("<s>[INST]")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", b"[" * 100_000),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b'{"a": "\xff"}'),
        ("chat_template.jinja", b"\xff\xfe"),
        ("tokenizer.json", b"nonsense"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    folder = folder_with(tmp_path, LLAMA2)
    (folder / name).write_bytes(content)
    with pytest.raises(InferenceError) as caught:
        ChatTemplate.of(folder)
    assert caught.value.where == str(folder / name)
    assert caught.value.hint
