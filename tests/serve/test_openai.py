"""OpenAI's own Python client against forge's front of a real Triton that serves a tiny random model."""

import asyncio
import http.client
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from openai.types import Completion, CompletionChoice
from openai.types.chat import ChatCompletionMessageParam

import goaway
import slow_triton
import tiny_checkpoints
from forge.repository import publish
from forge.schema.manifest import write
from forge.schema.values import LimitsTable
from openai_front import front
from patience import PATIENCE, spare
from skeleton_kit import TOKENIZERS
from tiny_served import Tiny

pytestmark = pytest.mark.slow

PROMPT = "hello world"
ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": PROMPT}]
TEMPLATED = f"<|im_start|>{PROMPT}<|im_end|><|im_start|>"
COUNT = 10
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def nested(depth: int) -> dict[str, object]:
    """A tool whose parameters are so many objects, one in another."""
    found: dict[str, object] = {}
    for _ in range(depth):
        found = {"a": found}
    return {"type": "function", "function": {"name": "deep", "parameters": found}}


def ids(text: str) -> list[int]:
    return list(TOKENIZERS["byte_level"].encode(text).ids)


@pytest.fixture(scope="module")
def address(tiny: Tiny) -> Iterator[str]:
    with front(tiny.address, tiny.target.repository) as one:
        yield one


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=PATIENCE) as one:
        yield one


@pytest.fixture(scope="module")
def greedy(tiny: Tiny) -> str:
    """What transformers says to PROMPT."""
    said = tiny_checkpoints.says(tiny.model, ids(PROMPT), COUNT)
    return str(TOKENIZERS["byte_level"].decode(said))


def test_models_are_listed_and_found_by_their_recipes_names(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    found = client.models.retrieve("tiny")
    assert (found.id, found.object) == ("tiny", "model")
    assert abs(found.created - time.time()) < 3600


def test_a_completion_is_transformers_greedy_text_with_its_counts(client: openai.OpenAI, greedy: str) -> None:
    said = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=COUNT)
    assert said.object == "text_completion"
    assert (said.choices[0].text, said.choices[0].finish_reason) == (greedy, "length")
    assert said.usage is not None
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (len(ids(PROMPT)), COUNT)
    assert said.usage.total_tokens == len(ids(PROMPT)) + COUNT


def test_a_chat_goes_through_the_models_own_template(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(model="tiny", messages=ASKED, max_completion_tokens=COUNT)
    written = client.completions.create(model="tiny", prompt=TEMPLATED, max_tokens=COUNT)
    assert said.choices[0].message.role == "assistant"
    assert said.choices[0].message.content == written.choices[0].text != ""
    assert said.usage is not None
    assert said.usage.prompt_tokens == len(ids(TEMPLATED))
    parts: list[ChatCompletionMessageParam] = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    assert client.chat.completions.create(model="tiny", messages=parts, max_tokens=COUNT).choices == said.choices


def test_a_stream_joins_to_the_answer_and_ends_with_counts(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=ASKED)
    with client.chat.completions.create(
        model="tiny", messages=ASKED, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-2:] == [None, "length"]
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert {c.id for c in chunks} == {chunks[0].id}
    assert len(chunks) > 5
    with client.completions.create(model="tiny", prompt=PROMPT, stream=True) as texts:
        pieces = list(texts)
    assert all(piece.usage is None for piece in pieces)
    assert "".join(p.choices[0].text for p in pieces) == client.completions.create(model="tiny", prompt=PROMPT).choices[0].text


def test_each_event_of_a_stream_has_the_counts_when_wanted(client: openai.OpenAI) -> None:
    wanted = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    with client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=COUNT, n=2, seed=3, stream=True, extra_body=wanted
    ) as stream:
        *chunks, last = list(stream)
    prompt = len(ids(TEMPLATED))
    for index in range(2):
        used = [chunk.usage for chunk in chunks if chunk.choices[0].index == index]
        assert {each and each.prompt_tokens for each in used} == {prompt}
        counts = [each.completion_tokens for each in used if each]
        assert (counts[0], counts[-1], len(counts)) == (0, COUNT, len(used))
        assert counts == sorted(counts)
        assert len(set(counts)) > COUNT / 2
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (prompt, 2 * COUNT)


def test_the_recipes_sampling_holds_where_nothing_is_said(client: openai.OpenAI) -> None:
    said = client.completions.create(model="tiny", prompt=PROMPT)
    assert said.usage is not None
    assert said.usage.completion_tokens == 12  # max_tokens of the recipe
    assert said.choices == client.completions.create(model="tiny", prompt=PROMPT, seed=5).choices  # top_k = 1 of the recipe


def test_a_temperature_alone_draws_where_the_recipe_is_greedy(client: openai.OpenAI, greedy: str) -> None:
    def say(temperature: float, seed: int | None = None) -> str:
        said = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=COUNT, temperature=temperature, seed=seed)
        return said.choices[0].text

    assert len({say(temperature=1.5) for _ in range(4)}) > 1
    assert say(temperature=1.5, seed=3) == say(temperature=1.5, seed=3)
    assert say(temperature=0) == greedy


def test_a_bias_forbids_tokens_and_forces_them(tiny: Tiny, client: openai.OpenAI, greedy: str) -> None:
    def say(bias: dict[str, int], stream: bool = False) -> str:
        if stream:
            parts = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=COUNT, logit_bias=bias, stream=True)
            return "".join(part.choices[0].text for part in parts)
        return client.completions.create(model="tiny", prompt=PROMPT, max_tokens=COUNT, logit_bias=bias).choices[0].text

    token = TOKENIZERS["byte_level"].token_to_id("h")
    assert say({str(token): 100}) == say({str(token): 100}, stream=True) == "h" * COUNT
    torch = tiny_checkpoints.torch
    with torch.no_grad():
        first, second = tiny.model(torch.tensor([ids(PROMPT)])).logits[0, -1].topk(2).indices.tolist()
    said = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=1, logit_bias={str(first): -100})
    assert said.choices[0].text == TOKENIZERS["byte_level"].decode([second]) != TOKENIZERS["byte_level"].decode([first])
    assert say({}) == say({str(token): 0}) == greedy


def test_several_answers_differ_and_a_seed_brings_them_back(client: openai.OpenAI) -> None:
    def ask() -> list[str | None]:
        said = client.chat.completions.create(
            model="tiny", messages=ASKED, n=3, temperature=1.0, seed=7, max_tokens=COUNT, extra_body={"top_k": 0}
        )
        assert [choice.index for choice in said.choices] == [0, 1, 2]
        assert said.usage is not None
        assert said.usage.prompt_tokens == len(ids(TEMPLATED))
        return [choice.message.content for choice in said.choices]

    first = ask()
    assert len(set(first)) == 3
    assert ask() == first
    with client.chat.completions.create(
        model="tiny", messages=ASKED, n=3, temperature=1.0, seed=7, max_tokens=COUNT, extra_body={"top_k": -1}, stream=True
    ) as stream:
        texts = ["", "", ""]
        for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == first


def test_several_prompts_are_answered_in_their_order(client: openai.OpenAI) -> None:
    prompts = [PROMPT, f"{PROMPT} ab", "ab"]
    alone = [client.completions.create(model="tiny", prompt=each).choices[0].text for each in prompts]
    said = client.completions.create(model="tiny", prompt=prompts)
    assert [choice.text for choice in said.choices] == alone
    assert said.usage is not None
    assert said.usage.prompt_tokens == sum(len(ids(each)) for each in prompts)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_stop_text(client: openai.OpenAI, greedy: str, stream: bool) -> None:
    stop = greedy[4:6]
    wanted = greedy[: greedy.index(stop)]
    if stream:
        with client.completions.create(model="tiny", prompt=PROMPT, max_tokens=COUNT, stop=[stop, "never"], stream=True) as s:
            chunks = list(s)
        text, finish = "".join(c.choices[0].text for c in chunks), chunks[-1].choices[0].finish_reason
    else:
        (choice,) = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=COUNT, stop=stop).choices
        text, finish = choice.text, choice.finish_reason
    assert (text, finish) == (wanted, "stop")


def test_log_probabilities_are_those_of_the_tokens(tiny: Tiny, client: openai.OpenAI, greedy: str) -> None:
    torch = tiny_checkpoints.torch
    said = tiny_checkpoints.says(tiny.model, ids(PROMPT), COUNT)
    with torch.no_grad():
        logits = tiny.model(torch.tensor([[*ids(PROMPT), *said]])).logits[0, len(ids(PROMPT)) - 1 : -1]
    expected = [float(row[token]) for row, token in zip(logits.log_softmax(-1), said, strict=True)]
    likely = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=COUNT, logprobs=0).choices[0].logprobs
    assert likely is not None
    assert likely.token_logprobs == pytest.approx(expected, abs=1e-4)
    assert likely.tokens is not None
    assert likely.text_offset is not None
    assert "".join(likely.tokens) == greedy
    for place, token in zip(likely.text_offset, likely.tokens, strict=True):
        assert greedy[place:].startswith(token)
    chat = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=COUNT, logprobs=True).choices[0]
    assert chat.logprobs is not None
    tokens = chat.logprobs.content or []
    assert "".join(token.token for token in tokens) == chat.message.content
    assert bytes(each for token in tokens for each in token.bytes or []).decode() == chat.message.content
    assert all(math.exp(token.logprob) <= 1 for token in tokens)
    assert len(tokens) == COUNT
    with client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=COUNT, logprobs=True, stream=True) as stream:
        streamed = [t for c in stream for t in (c.choices[0].logprobs and c.choices[0].logprobs.content) or []]
    assert streamed == tokens


def tops(choice: CompletionChoice) -> list[dict[str, float]]:
    return [dict(top) for top in (choice.logprobs and choice.logprobs.top_logprobs) or []]


def test_the_likeliest_tokens_are_told_beside_the_picked_one(tiny: Tiny, client: openai.OpenAI) -> None:
    torch = tiny_checkpoints.torch
    how: Any = {"model": "tiny", "prompt": PROMPT, "max_tokens": COUNT, "seed": 5, "temperature": 1.5, "logprobs": 4}
    asked: Any = client.completions.create
    answer: Completion = asked(**how)
    whole = tops(answer.choices[0])
    events: list[Completion] = list(asked(**how, stream=True))
    assert whole == [top for event in events for top in tops(event.choices[0])]
    assert len(whole) == COUNT
    assert {len(top) for top in whole} <= {1, 2, 3, 4}  # by their texts: parts of characters have one for all
    with torch.no_grad():
        logits = tiny.model(torch.tensor([ids(PROMPT)])).logits[0, -1] / 1.5
    likeliest = logits.log_softmax(-1).topk(4).values.tolist()
    assert sorted(whole[0].values(), reverse=True) == pytest.approx(likeliest, abs=1e-3)
    chat = client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=COUNT, logprobs=True, top_logprobs=3
    ).choices[0]
    assert chat.logprobs is not None
    for token in chat.logprobs.content or []:  # greedy: it is the likeliest
        assert [top.logprob for top in token.top_logprobs] == sorted((top.logprob for top in token.top_logprobs), reverse=True)
        assert token.top_logprobs[0].logprob == token.logprob


def test_the_best_beams_of_one_search_are_the_answers(tiny: Tiny, client: openai.OpenAI) -> None:
    how = {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.0, "early_stopping": True}
    said = tiny.model.generate(tiny_checkpoints.torch.tensor([ids(PROMPT)]), max_new_tokens=COUNT, do_sample=False, **how)[
        :, len(ids(PROMPT)) :
    ].tolist()
    found = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=COUNT, n=3, logprobs=2, extra_body={"beam_width": 4}
    )
    assert [choice.text for choice in found.choices] == [str(TOKENIZERS["byte_level"].decode(each)) for each in said]
    sums = [sum(choice.logprobs.token_logprobs or []) for choice in found.choices if choice.logprobs is not None]
    assert sums == sorted(sums, reverse=True)
    for choice in found.choices:
        assert choice.logprobs is not None
        assert "".join(choice.logprobs.tokens or []) == choice.text
        assert len(choice.logprobs.tokens or []) == len(choice.logprobs.top_logprobs or [])
    assert found.usage is not None
    assert found.usage.completion_tokens == sum(len(c.logprobs.tokens or []) for c in found.choices if c.logprobs is not None)


def test_many_ask_at_once_and_are_not_mixed(address: str, client: openai.OpenAI) -> None:
    prompts = [f"{PROMPT} {'ab' * number}" for number in range(12)]
    alone = [client.completions.create(model="tiny", prompt=prompt).choices[0].text for prompt in prompts]

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=address, api_key="none") as several:

            async def ask(prompt: str) -> str:
                stream = await several.completions.create(model="tiny", prompt=prompt, stream=True)
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*map(ask, prompts))

    assert asyncio.run(together()) == alone


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,YWJj"}}


@pytest.mark.parametrize(
    ("words", "param", "complaint"),
    [
        ({"temperature": 3}, "temperature", "<= 2"),
        ({"top_p": 0}, "top_p", "> 0"),
        ({"n": 0}, "n", ">= 1"),
        ({"max_tokens": "many"}, "max_tokens", "Expected `int"),
        ({"stop": [""]}, "stop", "length >= 1"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "<= 100"),
        ({"logit_bias": {str(2**31): 1}}, "logit_bias", "<= 2147483647"),
        ({"logit_bias": {"five": 1}}, "logit_bias", "Expected `int"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias", "length <= 1024"),
        ({"logit_bias": {"99999": 1}}, None, "tokens of the vocabulary"),
        ({"tools": [{"type": "function"}]}, "tools", "has no function"),
        ({"tools": [{"type": "custom"}]}, "tools", "functions are offered, not custom"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", "is no name"),
        ({"tools": [ADD, ADD]}, "tools", "there twice"),
        ({"tools": [ADD] * 129}, "tools", "at most 128"),
        ({"tools": [ADD]}, "tools", "chat template knows no tools"),
        ({"tools": [ADD], "response_format": {"type": "json_object"}}, "response_format", "calls no tools"),
        ({"tools": [ADD], "tool_choice": "any"}, "tool_choice", "not any"),
        (
            {"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
            "tool_choice",
            "none of the tools",
        ),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [nested(120)]}, "tools", "nested more than 100 deep"),
        ({"tools": [nested(900)], "tool_choice": "required"}, "tools", "nested more than 100 deep"),
        ({"functions": [ADD["function"]]}, "functions", "replaced by tools"),
        ({"response_format": {"type": "json_object"}}, "response_format", "cannot hold its answer to JSON"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs json_schema.schema"),
        ({"response_format": {"type": "grammar"}}, "response_format", "are offered, not grammar"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "<= 20"),
        ({"beam_width": 2, "n": 3}, "n", "more than beam_width 2"),
        ({"top_logprobs": 0}, "top_logprobs", "needs logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only for streams"),
        ({"stream": True, "stream_options": {"usage": True}}, "usage", "unknown field"),
        ({"best": 1}, "best", "unknown field"),
        ({"messages": []}, "messages", "length >= 1"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages", "role 'function'"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages", "chat template knows no tools"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "has image_url alone"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages", "not input_audio"),
        ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages", "takes no images; models of the runtime vllm"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_with_its_field(
    client: openai.OpenAI, words: dict[str, object], param: str | None, complaint: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=complaint) as caught:
        client.chat.completions.create(model="tiny", messages=ASKED, extra_body=words)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_the_clients_fault(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="128"):
        client.completions.create(model="tiny", prompt="ab " * 200, stream=stream)


def test_an_unknown_model_and_an_unknown_place_are_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="offered: tiny") as caught:
        client.chat.completions.create(model="nobody", messages=ASKED)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_a_missing_part_of_the_api_says_what_is_instead(client: openai.OpenAI) -> None:
    asks: list[tuple[Any, str]] = [
        (lambda: client.embeddings.create(model="tiny", input="x"), "POST /v1/embeddings: .* no embeddings"),
        (lambda: client.responses.create(model="tiny", input="x"), "/v1/chat/completions takes its conversations"),
        (lambda: client.responses.retrieve("resp_1"), "GET /v1/responses/resp_1: .* /v1/chat/completions"),
        (lambda: client.images.generate(model="tiny", prompt="x"), "make no images"),
        (lambda: client.moderations.create(input="x"), "judge none"),
        (client.batches.list, "/v1/completions takes several prompts"),
        (lambda: client.post("/nosuch", cast_to=object), "Not Found .here are /v1/chat/completions"),
    ]
    for ask, said in asks:
        with pytest.raises(openai.NotFoundError, match=said) as caught:
            ask()
        assert caught.value.type == "invalid_request_error"


def test_the_pages_examples_run(address: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "openai.md").read_text(encoding="utf-8")
    (program,) = re.findall(r'^```python title="[^"]+"\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
    (curl,) = re.findall(r"^curl \S+(/v1/\S+) -d '(.*)'$", page, re.MULTILINE)
    program = program.replace("http://127.0.0.1:9000/v1", address).replace("smollm2-135m-instruct", "tiny")
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert re.search(r"completion_tokens=[1-9]", done.stdout), done.stderr
    connection = http.client.HTTPConnection(address.split("/")[2], timeout=PATIENCE)
    try:
        connection.request("POST", curl[0], curl[1].replace("smollm2-135m-instruct", "tiny"))
        events = connection.getresponse().read().decode().split("\n\n")
    finally:
        connection.close()
    assert events[-2:] == ["data: [DONE]", ""]
    assert json.loads(events[0].removeprefix("data: "))["object"] == "text_completion"


def test_what_is_no_json_is_refused_in_the_apis_form(address: str) -> None:
    host = address.split("/")[2]
    connection = http.client.HTTPConnection(host, timeout=PATIENCE)
    try:
        connection.request("POST", "/v1/completions", b"{]")
        answer = connection.getresponse()
        assert answer.status == 400
        assert "is not JSON" in json.loads(answer.read())["error"]["message"]
        connection.request("GET", "/v1/completions")
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["type"]) == (405, "invalid_request_error")
    finally:
        connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request_at_the_server(tiny: Tiny, stream: bool) -> None:
    several = 4

    async def listen(client: openai.AsyncOpenAI) -> None:
        if not stream:
            await client.completions.create(model="tiny", prompt=PROMPT, max_tokens=240)
            return
        async with await client.completions.create(model="tiny", prompt=PROMPT, max_tokens=240, stream=True) as chunks:
            async for _ in chunks:
                pass

    async def leave(address: str, slow: slow_triton.Slow) -> None:
        async with openai.AsyncOpenAI(base_url=address, api_key="none") as client:
            tasks = [asyncio.create_task(listen(client)) for _ in range(several)]
            for _ in tasks:
                assert await asyncio.to_thread(slow.begun.acquire, timeout=PATIENCE)
            assert not slow.left.acquire(blocking=False)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _ in tasks:
                assert await asyncio.to_thread(slow.left.acquire, timeout=PATIENCE)

    with slow_triton.before(tiny.address) as slow, front(slow.address, tiny.target.repository) as address:
        asyncio.run(leave(address, slow))


def test_a_server_that_goes_away_ends_streams_with_an_error(tiny: Tiny) -> None:
    with ExitStack() as server:
        slow = server.enter_context(slow_triton.before(tiny.address))
        with (
            front(slow.address, tiny.target.repository) as address,
            openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=PATIENCE) as client,
            client.completions.create(model="tiny", prompt=PROMPT, max_tokens=240, stream=True) as stream,
        ):
            assert next(iter(stream)).choices
            server.close()
            with pytest.raises(openai.APIError, match="ask again in some seconds"):
                list(stream)


@pytest.mark.parametrize("mute", [True, False], ids=["before the first", "between two"])
def test_a_model_that_hangs_is_a_timeout(tiny: Tiny, tmp_path: Path, mute: bool) -> None:
    """504 while there is a status to say it with, an event in a stream that has begun; the model is told to end."""
    manifest = publish.inventory(tiny.target.repository)
    limits = LimitsTable(max_first_seconds=2.0, max_silent_seconds=0.0) if mute else LimitsTable(max_silent_seconds=2.0)
    hasty = msgspec.structs.replace(manifest, models=(msgspec.structs.replace(manifest.models[0], limits=limits),))
    (tmp_path / "forge.json").write_text(write(hasty))
    with (
        slow_triton.before(tiny.address, mute=mute) as slow,
        front(slow.address, tmp_path) as address,
        openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=PATIENCE) as client,
    ):
        with pytest.raises(openai.InternalServerError, match="for 2 s") as caught:
            client.completions.create(model="tiny", prompt=PROMPT, max_tokens=240)
        assert caught.value.status_code == 504
        with (
            pytest.raises(openai.APIError, match="for 2 s"),
            client.completions.create(model="tiny", prompt=PROMPT, max_tokens=240, stream=True) as stream,
        ):
            list(stream)
        for _ in range(2):
            assert slow.left.acquire(timeout=PATIENCE)


def test_a_model_that_is_published_anew_is_seen(tiny: Tiny, tmp_path: Path) -> None:
    """The manifest of a repository is what is offered, read again when it changes."""
    manifest = tmp_path / "repository" / "forge.json"
    manifest.parent.mkdir()
    shutil.copy(tiny.target.repository / "forge.json", manifest)
    with front(tiny.address, manifest.parent) as address, openai.OpenAI(base_url=address, api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        renamed = manifest.with_suffix(".new")
        renamed.write_text(manifest.read_text().replace('"name": "tiny"', '"name": "small"'))
        renamed.replace(manifest)
        assert [model.name for model in publish.inventory(manifest.parent).models] == ["small"]
        assert [model.id for model in client.models.list()] == ["small"]
        assert client.completions.create(model="small", prompt=PROMPT).choices[0].text


def test_a_server_that_is_away_is_unavailable(tiny: Tiny) -> None:
    (port,) = spare(1)
    with (
        front(f"127.0.0.1:{port}", tiny.target.repository) as address,
        openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError, match="no server answers") as caught:
            client.chat.completions.create(model="tiny", messages=ASKED)
        assert caught.value.status_code == 503
        with pytest.raises(openai.InternalServerError) as caught:
            client.models.list()
        assert caught.value.status_code == 503


def test_a_connection_that_breaks_is_told_in_forges_words_alone(tiny: Tiny) -> None:
    """gRPC's own log tells it on standard error as well, unless it is told not to; `front` looks at that."""
    with goaway.server() as broken, front(broken, tiny.target.repository) as address:
        with (
            openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=PATIENCE) as client,
            pytest.raises(openai.InternalServerError, match="ask again in some seconds") as caught,
        ):
            client.completions.create(model="tiny", prompt=PROMPT)
        assert caught.value.status_code == 503
