"""What asks too much is refused before any work, at the OpenAI port and by the models; others are served meanwhile."""

import asyncio
import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import openai
import pytest
from msgspec.structs import replace

import slow_triton
from forge.api.forge import Forge
from forge.client import Client, Request
from forge.errors import InferenceError
from forge.serve.lookup import Target
from openai_front import front
from patience import PATIENCE, free_ports
from tiny_served import RECIPE, checkpoint

pytestmark = pytest.mark.slow

LONGEST = 4_000_000
LARGE = "ab " * 5_500_000
LIMITS = f"""
[limits]
max_body_bytes = 100_000
max_prompts = 3
max_answers = 4
max_prompt_chars = {LONGEST}
max_words = 2
max_word_chars = 10
max_requests = 4
max_template_seconds = 1.0
"""
LOOPS = (
    "{% if 'loop' in messages[0]['content'] %}"
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
)
"""A chat template that never ends on some conversations."""


@pytest.fixture(scope="module")
def bounded(shop: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The tiny model with limits of its recipe's, served."""
    place = tmp_path_factory.mktemp("bounded")
    recipe = place / "tiny.toml"
    recipe.write_text(RECIPE + LIMITS)
    checkpoint(place / "checkpoint")
    settings = place / "checkpoint" / "tokenizer_config.json"
    stated = json.loads(settings.read_text())
    settings.write_text(json.dumps({**stated, "chat_template": LOOPS + stated["chat_template"]}))
    built = shop.build([recipe], repository=place / "repository")
    running = shop.serve(built.repository, free_ports(), restart=False)
    yield shop.target("tiny", built.repository)
    shop.stop(running)


@pytest.fixture(scope="module")
def address(bounded: Target) -> Iterator[str]:
    with front(bounded.address, bounded.repository) as one:
        yield one


@pytest.fixture(scope="module")
def door(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=PATIENCE) as one:
        yield one


@pytest.mark.parametrize(
    ("words", "param", "complaint"),
    [
        ({"prompt": ["x"] * 4}, "prompt", "4 prompts; at most 3"),
        ({"prompt": ["x"] * 5_000}, "prompt", "5000 prompts; at most 3"),
        ({"prompt": ["x"] * 3, "n": 2}, "n", r"6 answers \(3 x 2\); at most 4"),
        ({"n": 5}, "n", "5 answers"),
        ({"stop": ["a", "b", "c"]}, "stop", "3 texts; at most 2"),
        ({"stop": "x" * 11}, "stop", "11 characters; at most 10"),
        ({"prompt": ""}, None, "empty"),
    ],
)
def test_the_port_refuses_what_the_recipe_does_not_allow(
    door: openai.OpenAI, words: dict[str, object], param: str | None, complaint: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=complaint) as caught:
        door.completions.create(model="tiny", prompt="x", extra_body=words)
    assert caught.value.param == param
    assert door.completions.create(model="tiny", prompt=["x", "y"], n=2, stop=["never", "ever"]).choices[3].text


@pytest.mark.parametrize("chat", [True, False])
def test_a_body_of_sixteen_million_bytes_is_refused_unread(door: openai.OpenAI, chat: bool) -> None:
    place = "/chat/completions" if chat else "/completions"
    words = {"messages": [{"role": "user", "content": LARGE}]} if chat else {"prompt": LARGE}
    with pytest.raises(openai.APIStatusError, match="more than 100000 bytes") as caught:
        door.post(place, body={"model": "tiny", **words}, cast_to=object)
    assert caught.value.status_code == 413
    connection = http.client.HTTPConnection(door.base_url.host, door.base_url.port, timeout=PATIENCE)
    with closing(connection):
        connection.putrequest("POST", f"{door.base_url.path.rstrip('/')}{place}")
        connection.putheader("Content-Length", str(len(LARGE)))
        connection.endheaders(b'{"model": "tiny", "prompt": "ab ab')  # and the rest is never sent
        answer = connection.getresponse()
        assert (answer.status, b"more than 100000 bytes" in answer.read()) == (413, True)
    assert door.completions.create(model="tiny", prompt="x").choices[0].text


def test_a_deeply_nested_body_is_the_clients_fault(address: str) -> None:
    for body in (b"[" * 50_000, b'{"model":"tiny","prompt":"x","user":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}"):
        connection = http.client.HTTPConnection(address.split("/")[2], timeout=PATIENCE)
        try:
            connection.request("POST", "/v1/completions", body)
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())["error"]["type"]) == (400, "invalid_request_error")
        finally:
            connection.close()


def test_others_are_answered_while_a_chat_template_loops(door: openai.OpenAI) -> None:
    def chat(text: str) -> str:
        said = door.chat.completions.create(model="tiny", max_tokens=3, messages=[{"role": "user", "content": text}])
        return said.choices[0].message.content or ""

    def complaint() -> str:
        with pytest.raises(openai.BadRequestError, match=r"not done .* after 1 s.*limits.max_template_seconds") as caught:
            chat("loop")
        return caught.value.param or ""

    assert chat("x")
    with ThreadPoolExecutor(1) as thread:
        looping = thread.submit(complaint)
        answers = 0
        while not looping.done():
            answers += bool(door.completions.create(model="tiny", prompt="x", max_tokens=1).choices)
        assert looping.result() == "messages"
    assert answers > 3
    assert chat("x")


def test_a_looping_chat_template_is_an_error_of_forge_generate(bounded: Target, shop: Forge) -> None:
    with pytest.raises(InferenceError, match="not done"):
        shop.templated(bounded, [("user", "loop")])


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "ensemble"])
@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (Request("", "ab " * 5_500_000, 3), f"16500000 characters; at most {LONGEST}"),
        (Request("", "ab " * 1_000, 3), "max_input_len"),
        (Request("", "x", 3, stop=("a", "b", "c")), "STOP_WORDS_DICT holds 3 words; at most 2"),
        (Request("", "x", 3, bad=("a", "b", "c")), "BAD_WORDS_DICT holds 3 words; at most 2"),
        (Request("", "x", 3, stop=("x" * 11,)), "a word of 11 characters; at most 10"),
        (Request("", "x", 3, n=5), "num_return_sequences is 5; at most 4"),
        (Request("", "x", 3, n=2_000_000_000), "num_return_sequences is 2000000000; at most 4"),
        (Request("", "x", 3, beam_width=1_000_000), "max_beam_width 4"),
        (Request("", "x", 2_000_000_000), "max_seq_len"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_the_models_refuse_it_from_any_client(bounded: Target, model: str, request_: Request, complaint: str) -> None:
    asked = replace(request_, model=model, stream=False)
    with Client(bounded.address, timeout=PATIENCE) as client:
        with pytest.raises(InferenceError, match=complaint):
            client.ask(asked)
        assert client.ask(Request(model, "x", max_tokens=3, stream=False)).text


def test_short_prompts_are_answered_while_a_long_one_is_read(bounded: Target) -> None:
    long = Request("tensorrt_llm_bls", "ab " * (LONGEST // 3), max_tokens=3)
    with Client(bounded.address, timeout=PATIENCE) as client, ThreadPoolExecutor(1) as thread:
        alone = client.ask(Request("tensorrt_llm_bls", "ab", max_tokens=3, top_k=1)).text
        reading = thread.submit(client.ask, long)
        answers = 0
        while not reading.done():
            said = client.ask(Request("tensorrt_llm_bls", "ab", max_tokens=3, top_k=1)).text
            answers += said == alone and not reading.done()
        assert answers, "who had to wait for it would hear of it later than the long one's end"
        with pytest.raises(InferenceError, match="max_input_len"):
            reading.result()


def test_more_answers_at_once_than_allowed_are_put_off(bounded: Target) -> None:
    async def crowd(address: str, slow: slow_triton.Slow) -> None:
        async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0, timeout=PATIENCE) as client:
            held = asyncio.create_task(client.completions.create(model="tiny", prompt=["x", "y"], n=2, max_tokens=100))
            for _ in range(4):
                assert await asyncio.to_thread(slow.begun.acquire, timeout=PATIENCE)
            with pytest.raises(openai.RateLimitError, match="busy: 4 answers"):
                await client.completions.create(model="tiny", prompt="x")
            held.cancel()
            await asyncio.gather(held, return_exceptions=True)
            for _ in range(4):
                assert await asyncio.to_thread(slow.left.acquire, timeout=PATIENCE)
            async with await client.completions.create(model="tiny", prompt="x", stream=True) as stream:
                assert (await anext(aiter(stream))).choices

    with slow_triton.before(bounded.address) as slow, front(slow.address, bounded.repository) as address:
        asyncio.run(crowd(address, slow))
