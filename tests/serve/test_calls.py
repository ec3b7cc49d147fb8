"""Calls of tools, read out of what models say: whole, and cut at every place where a token may end."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st

from forge.serve.openai.calls import Call, Form, Reader, Said, form_of

NAMES = frozenset({"add", "now"})


def read(form: Form, parts: Sequence[str], *, parallel: bool = True, named: str = "") -> Said:
    numbers = iter(range(100))
    reader = Reader(form, NAMES, lambda: f"id{next(numbers)}", parallel=parallel, named=named)
    said = Said()
    for part in parts:
        said = said.joined(reader.hear(part))
    said = said.joined(reader.end())
    assert reader.called == bool(said.calls)
    return said


def cuts(text: str) -> Iterator[Sequence[str]]:
    yield [text]
    yield list(text)
    yield from ([text[:place], text[place:]] for place in range(1, len(text)))


def calls(*given: tuple[str, str]) -> tuple[Call, ...]:
    return tuple(Call(index, arguments, f"id{index}", name) for index, (name, arguments) in enumerate(given))


ADD = '{"name": "add", "arguments": {"a": 1, "b": [2, "}"]}}'
GIVEN = ("add", '{"a": 1, "b": [2, "}"]}')
NOW = '{"arguments": {}, "name": "now"}'
QUOTED = r'{"name": "add", "parameters": {"a": "say \"}{\" \\"}, "id": 3}'

TEXTS: dict[str, tuple[Form, str, Said]] = {
    "hermes": (Form.HERMES, f"<tool_call>\n{ADD}\n</tool_call>", Said("", calls(GIVEN))),
    "hermes, two": (
        Form.HERMES,
        f"Let me see.\n<tool_call>{ADD}</tool_call>\n<tool_call>{NOW}</tool_call>\n",
        Said("Let me see.\n", calls(GIVEN, ("now", "{}"))),
    ),
    "hermes, text behind": (Form.HERMES, f"<tool_call>{ADD}</tool_call> Done.", Said("Done.", calls(GIVEN))),
    "hermes, no end": (Form.HERMES, f"<tool_call>{ADD}<tool_call>{NOW}", Said("", calls(GIVEN, ("now", "{}")))),
    "hermes, a tool that nobody has": (
        Form.HERMES,
        '<tool_call>{"name": "nosuch", "arguments": {}}</tool_call>',
        Said("", calls(("nosuch", "{}"))),
    ),
    "hermes, cut": (
        Form.HERMES,
        '<tool_call>{"name": "add", "arguments": {"a": [1',
        Said('<tool_call>{"name": "add", "arguments": {"a": [1'),
    ),
    "hermes, text between and a mark in an argument": (
        Form.HERMES,
        f'<tool_call>{ADD}</tool_call>so <tool_call>{{"name": "now", "arguments": {{"a": "</tool_call>"}}}}</tool_call>',
        Said("so ", calls(GIVEN, ("now", '{"a": "</tool_call>"}'))),
    ),
    "hermes, cut before the name": (Form.HERMES, 'Hm. <tool_call>{"na', Said('Hm. <tool_call>{"na')),
    "hermes, no call": (Form.HERMES, "<tool_call>add(1)</tool_call>", Said("<tool_call>add(1)</tool_call>")),
    "hermes, no name": (Form.HERMES, '<tool_call>{"a": 1}</tool_call>', Said('<tool_call>{"a": 1}</tool_call>')),
    "hermes, text": (Form.HERMES, " a < b <tool", Said(" a < b <tool")),
    "hermes, blanks": (Form.HERMES, " \n", Said(" \n")),
    "hermes, JSON": (Form.HERMES, ADD, Said(ADD)),
    "llama": (Form.LLAMA, '{"name": "add", "parameters": {"a": 1}}', Said("", calls(("add", '{"a": 1}')))),
    "llama, marked, two": (Form.LLAMA, f"<|python_tag|>{ADD}; {NOW}", Said("", calls(GIVEN, ("now", "{}")))),
    "llama, quoted": (Form.LLAMA, QUOTED, Said("", calls(("add", r'{"a": "say \"}{\" \\"}')))),
    "llama, JSON that names no tool": (Form.LLAMA, '{"name": "Ann", "age": 3}', Said('{"name": "Ann", "age": 3}')),
    "llama, JSON without a name": (Form.LLAMA, '{"a": 1} {', Said('{"a": 1} {')),
    "llama, text": (Form.LLAMA, f"As JSON: {ADD}", Said(f"As JSON: {ADD}")),
    "llama, arguments as a text": (
        Form.LLAMA,
        r'{"name": "add", "parameters": "{\"a\": 1}"}',
        Said("", calls(("add", '{"a": 1}'))),
    ),
    "llama, no arguments": (Form.LLAMA, '{"name": "now"}', Said("", calls(("now", "{}")))),
    "mistral": (Form.MISTRAL, f"[TOOL_CALLS] [{ADD}, {NOW}]", Said("", calls(GIVEN, ("now", "{}")))),
    "mistral, mark left out": (Form.MISTRAL, f" [{ADD}]", Said("", calls(GIVEN))),
    "mistral, by name": (
        Form.MISTRAL,
        '[TOOL_CALLS]add{"a": 1}[TOOL_CALLS]now[ARGS]{}',
        Said("", calls(("add", '{"a": 1}'), ("now", "{}"))),
    ),
    "mistral, a list that is no call": (Form.MISTRAL, '[{"a": 1}]', Said('[{"a": 1}]')),
    "mistral, text": (Form.MISTRAL, "[1] says so", Said("[1] says so")),
    "list": (Form.LIST, f"[{ADD},{NOW}]", Said("", calls(GIVEN, ("now", "{}")))),
    "hermes, half a character": (
        Form.HERMES,
        r'<tool_call>{"name": "add", "arguments": {"a": "\ud83d"}}</tool_call>',
        Said("", calls(("add", '{"a": "?"}'))),
    ),
    "list, cut": (Form.LIST, '[{"name": "add", "parameters": {"a"', Said('[{"name": "add", "parameters": {"a"')),
    "list, of nothing": (Form.LIST, "none", Said("none")),
}


@pytest.mark.parametrize(("form", "text", "said"), TEXTS.values(), ids=TEXTS)
def test_however_an_answer_is_cut_the_same_calls_are_read(form: Form, text: str, said: Said) -> None:
    for parts in cuts(text):
        assert read(form, parts) == said, parts


BITS = (
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "now{}", ADD, NOW, '"name": "add"', "null"),
    *('"arguments": {"a": 1}', '"parameters"', "arguments", *'{}[]":,;<a\\ \n'),
)


@settings(max_examples=2000, deadline=None)
@given(
    st.sampled_from([Form.HERMES, Form.LLAMA, Form.MISTRAL, Form.LIST]),
    st.lists(st.sampled_from(BITS), min_size=1, max_size=14).map("".join),
    st.lists(st.integers(0, 300), max_size=6),
    st.booleans(),
)
def test_what_a_model_says_reads_alike_however_it_is_cut(form: Form, text: str, at: list[int], parallel: bool) -> None:
    ends = sorted({min(place, len(text)) for place in at} | {len(text)})
    parts = [text[begin:end] for begin, end in pairwise([0, *ends])]
    assert read(form, parts, parallel=parallel) == read(form, [text], parallel=parallel)


def test_the_arguments_of_one_tool_alone_are_its_call() -> None:
    for parts in cuts(' {"a": {"b": 1}} '):
        assert read(Form.ARGUMENTS, parts, named="add") == Said("", calls(("add", '{"a": {"b": 1}}')))


def test_of_several_calls_the_first_counts_where_one_is_wanted() -> None:
    for form, text in (
        (Form.HERMES, f"<tool_call>{ADD}</tool_call><tool_call>{NOW}"),
        (Form.MISTRAL, f"[TOOL_CALLS][{ADD},{NOW}]"),
    ):
        for parts in cuts(text):
            assert read(form, parts, parallel=False) == Said("", calls(GIVEN))


def test_calls_are_told_whole_at_the_end() -> None:
    reader = Reader(Form.HERMES, NAMES, lambda: "id")
    parts = ["So: <tool", '_call>{"name": "add", ', '"arguments": {"a": ', "1", "}}", "</tool_call>"]
    assert [reader.hear(part) for part in parts] == [Said("So: "), *[Said()] * 5]
    assert reader.end() == Said("", (Call(0, '{"a": 1}', "id", "add"),))


def test_text_that_begins_no_call_is_told_at_once() -> None:
    reader = Reader(Form.HERMES, NAMES, lambda: "id")
    assert [reader.hear(part).content for part in ("Hello", " <", "b> ", "there")] == ["Hello", " ", "<b> ", "there"]


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ('{% if tools %}... <tool_call>\n{"name": <function-name>, ...}\n</tool_call>', Form.HERMES),
        ("[AVAILABLE_TOOLS]{{ tools }} ... [TOOL_CALLS]", Form.MISTRAL),
        ('Respond in the format {"name": function name, "parameters": dictionary}', Form.LLAMA),
        ("{{ '<|python_tag|>' }}", Form.LLAMA),
        ("<tool_call>\n<function=example>\n<parameter=a>", None),
        ("<tool_call>{name}\n<arg_key>", None),
        ("{{ messages }}", None),
    ],
)
def test_the_form_is_known_by_the_chat_templates_marks(template: str, form: Form | None) -> None:
    assert form_of(template) is form
