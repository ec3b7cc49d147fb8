"""Tools at the OpenAI port, by OpenAI's own Python client: a real Triton whose model says what a test has it say."""

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamEvent

import paced_triton
from openai_front import front, templated
from paced_triton import Paced
from patience import PATIENCE
from skeleton_kit import TOKENIZERS
from tiny_served import Tiny

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{# calls: <tool_call>...</tool_call> #}{% for tool in tools or [] %}"
    "{{ tool.function.name + tool.function.description }},{% endfor %}"
    "{% for m in messages %}{{ m.role[0] }}:{{ m.name ~ '=' if m.name }}{{ m.content }}"
    "{% for c in m.tool_calls or () %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %};{% endfor %}"
)
MARKS = "calls: <tool_call>...</tool_call>"
END = "##"
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
    for name in ("weather", "clock")
]
ASKED: list[Any] = [{"role": "user", "content": "hi"}]
CALL = '{"name": "weather", "arguments": {"city": "Zürich"}}'
PIECES = ["I look.", "\n<tool", '_call>{"name": "weather", ', '"arguments": {"city"', ': "Zür', 'ich"}}</tool_call>', END]


@contextmanager
def asked(tiny: Tiny, paced: Paced, place: Path, template: str) -> Generator[openai.OpenAI]:
    """OpenAI's client of a port that knows the model by another chat template."""
    with (
        front(paced.address, templated(tiny.target, place, template)) as address,
        openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=PATIENCE) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def paced(tiny: Tiny) -> Iterator[Paced]:
    with paced_triton.before(tiny.address) as one:
        yield one


@pytest.fixture(scope="module")
def hermes(tiny: Tiny, paced: Paced, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with asked(tiny, paced, tmp_path_factory.mktemp("hermes"), TEMPLATE) as client:
        yield client


def say(client: openai.OpenAI, paced: Paced, pieces: list[str], **words: Any) -> Any:
    """What comes where the model says ``pieces``, the last of which ends it."""
    paced.settle()
    paced.says = list(pieces)
    given: dict[str, Any] = {"messages": ASKED, "tools": TOOLS, "max_tokens": 60, "stop": [END], **words}
    create: Any = client.chat.completions.create
    return create(model="tiny", **given)


def told(answer: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in answer.message.tool_calls or ()]


def test_calls_in_a_models_own_form_are_calls_of_tools(hermes: openai.OpenAI, paced: Paced) -> None:
    (answer,) = say(hermes, paced, PIECES).choices
    assert told(answer) == [("weather", {"city": "Zürich"})]
    assert (answer.finish_reason, answer.message.content, answer.message.role) == ("tool_calls", "I look.\n", "assistant")
    (call,) = answer.message.tool_calls
    assert call.type == "function"
    assert call.id.startswith("call_")


def test_a_stream_brings_a_call_whole(hermes: openai.OpenAI, paced: Paced) -> None:
    chunks = list(say(hermes, paced, PIECES, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "I look.\n"
    parts = [call for delta in deltas for call in delta.tool_calls or ()]
    assert [(part.index, part.function.name, part.id is not None) for part in parts] == [(0, "weather", True)]
    assert json.loads(parts[0].function.arguments) == {"city": "Zürich"}
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["tool_calls"]
    assert all(delta.content or delta.tool_calls or delta.role for delta in deltas[:-1])
    assert chunks[-1].usage is not None


def test_openais_own_helper_puts_a_streamed_call_together(hermes: openai.OpenAI, paced: Paced) -> None:
    paced.settle()
    paced.says = list(PIECES)
    strict: Any = [{**each, "function": {**each["function"], "strict": True}} for each in TOOLS]
    with hermes.chat.completions.stream(model="tiny", messages=ASKED, tools=strict, max_tokens=60, stop=[END]) as stream:
        events: list[ChatCompletionStreamEvent[None]] = list(stream)
        whole = stream.get_final_completion().choices[0]
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [(event.name, event.parsed_arguments) for event in done] == [("weather", {"city": "Zürich"})]
    assert told(whole) == [("weather", {"city": "Zürich"})]
    assert whole.finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_two_calls_are_two_unless_one_is_wanted(hermes: openai.OpenAI, paced: Paced, stream: bool) -> None:
    second = CALL.replace("weather", "clock")
    pieces = [f"<tool_call>{CALL}</tool_call>\n", f"<tool_call>{second}</tool_call>", END]
    for parallel, names in ((True, ["weather", "clock"]), (False, ["weather"])):
        found = say(hermes, paced, pieces, stream=stream, parallel_tool_calls=parallel)
        if stream:
            parts = [call for chunk in found for call in chunk.choices[0].delta.tool_calls or () if call.id]
            assert [(part.index, part.function.name) for part in parts] == list(enumerate(names))
            assert len({part.id for part in parts}) == len(names)
        else:
            assert [name for name, _ in told(found.choices[0])] == names
            assert found.choices[0].message.content is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_may_answer_without_a_call(hermes: openai.OpenAI, paced: Paced, stream: bool) -> None:
    for words in ({}, {"tool_choice": "none"}):
        found = say(hermes, paced, ["No", " <b>tools", END], stream=stream, **words)
        if stream:
            chunks = list(found)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "No <b>tools"
            assert chunks[-1].choices[0].finish_reason == "stop"
        else:
            (answer,) = found.choices
            assert (answer.message.content, answer.message.tool_calls, answer.finish_reason) == ("No <b>tools", None, "stop")


def test_tool_choice_none_shows_no_tools_and_words_are_text(hermes: openai.OpenAI, paced: Paced) -> None:
    pieces = [f"<tool_call>{CALL}</tool_call>", END]
    shown, hidden = say(hermes, paced, pieces), say(hermes, paced, pieces, tool_choice="none")
    assert told(shown.choices[0])
    assert hidden.choices[0].message.content == pieces[0]
    count = len(TOKENIZERS["byte_level"].encode("u:hi;").ids)
    assert hidden.usage.prompt_tokens == count
    assert shown.usage.prompt_tokens == len(TOKENIZERS["byte_level"].encode("weather,clock,u:hi;").ids) > count


def test_calls_and_their_outcomes_go_back_through_the_template(hermes: openai.OpenAI, paced: Paced) -> None:
    (answer,) = say(hermes, paced, PIECES).choices
    back = [*ASKED, answer.message, {"role": "tool", "tool_call_id": answer.message.tool_calls[0].id, "content": "sunny"}]
    for words in ({}, {"tools": openai.NOT_GIVEN}):  # the outcome may be told without offering tools again
        said = say(hermes, paced, ["Sunny.", END], messages=back, **words)
        assert said.choices[0].message.content == "Sunny."
        written = ("" if words else "weather,clock,") + 'u:hi;a:I look.\nweather{"city": "Zürich"};t:weather=sunny;'
        assert said.usage.prompt_tokens == len(TOKENIZERS["byte_level"].encode(written).ids)


def test_log_probabilities_of_a_call_are_told_with_it(hermes: openai.OpenAI, paced: Paced) -> None:
    whole = say(hermes, paced, PIECES, logprobs=True).choices[0]
    parts = list(say(hermes, paced, PIECES, logprobs=True, stream=True))
    streamed = [each for chunk in parts for each in (chunk.choices[0].logprobs or whole.logprobs.__class__(content=[])).content]
    assert "".join(each.token for each in whole.logprobs.content) == "".join(PIECES[:-1])
    assert [each.logprob for each in streamed] == [each.logprob for each in whole.logprobs.content]


def test_an_answer_that_has_no_room_left_is_cut(hermes: openai.OpenAI, paced: Paced) -> None:
    (answer,) = say(hermes, paced, PIECES[2:5], max_tokens=3, messages=ASKED).choices
    assert answer.finish_reason == "length"
    (answer,) = say(hermes, paced, ["<tool_call>", *PIECES[2:4]], max_tokens=3).choices
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "clock"}}])
def test_a_model_that_cannot_be_held_to_calls_says_so(hermes: openai.OpenAI, paced: Paced, choice: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=r"cannot be held to a call.*auto leaves it to the model") as caught:
        say(hermes, paced, [], tool_choice=choice)
    assert (caught.value.param, caught.value.code) == ("tool_choice", "unsupported_value")


@pytest.mark.parametrize("arguments", ["[1]", "{", "3"])
def test_a_call_that_is_repeated_has_an_object_of_arguments(hermes: openai.OpenAI, paced: Paced, arguments: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": arguments}}
    with pytest.raises(openai.BadRequestError, match=r"messages.1.tool_calls.0: the arguments are no JSON object"):
        say(hermes, paced, [], messages=[*ASKED, {"role": "assistant", "tool_calls": [call]}])
    with pytest.raises(openai.BadRequestError, match=r"messages.1: a message of role tool says its tool_call_id"):
        say(hermes, paced, [], messages=[*ASKED, {"role": "tool", "content": "x"}])


@pytest.mark.parametrize(
    ("template", "pieces"),
    [
        ("<|python_tag|>", ['{"name": "wea', 'ther", "parameters": {"city": "Zürich"}}', END]),
        ("[TOOL_CALLS]", ["[TOOL_", f"CALLS] [{CALL}]", END]),
        ("[TOOL_CALLS]", [f" [{CALL}", "]", END]),  # the mark is a special token, which is left out of texts
    ],
)
def test_each_models_own_form_is_known_by_its_template(
    tiny: Tiny, paced: Paced, tmp_path: Path, template: str, pieces: list[str]
) -> None:
    with asked(tiny, paced, tmp_path, TEMPLATE.replace(MARKS, template)) as client:
        (answer,) = say(client, paced, pieces).choices
        assert told(answer) == [("weather", {"city": "Zürich"})]
        assert answer.finish_reason == "tool_calls"
        assert (len(answer.message.tool_calls[0].id) == 9) == (template == "[TOOL_CALLS]")  # as Mistral's templates want it


def test_a_form_that_cannot_be_read_is_said(tiny: Tiny, paced: Paced, tmp_path: Path) -> None:
    with asked(tiny, paced, tmp_path, TEMPLATE.replace(MARKS, "<|tool_call|>")) as client:
        with pytest.raises(openai.BadRequestError, match="asks for calls in no form that is read here") as caught:
            say(client, paced, [])
        assert caught.value.param == "tools"
        assert say(client, paced, ["So.", END], tool_choice="none").choices[0].message.content == "So."
