"""forge.client against a real Triton that serves a tiny random model: what it says is what transformers says."""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import aclosing, closing

import pytest
from msgspec.structs import replace

import slow_triton
import tiny_checkpoints
from forge.client import AsyncClient, Client, InferenceError, Request
from forge.errors import Trouble
from forge.schema.values import Role
from patience import PATIENCE
from skeleton_kit import TOKENIZERS
from tiny_served import Tiny

pytestmark = pytest.mark.slow

PROMPT = "hello world"
IDS = tuple(TOKENIZERS["byte_level"].encode(PROMPT).ids)
COUNT = 10


@pytest.fixture(scope="module")
def client(tiny: Tiny) -> Iterator[Client]:
    with Client(tiny.address, timeout=PATIENCE) as one:
        yield one


@pytest.fixture(scope="module")
def asked(tiny: Tiny) -> Request:
    return replace(tiny.target.request(PROMPT), max_tokens=COUNT, return_log_probs=True)


def transformers_log_probs(tiny: Tiny, said: tuple[int, ...]) -> list[float]:
    """The log-probability of each token of ``said`` after the prompt, as the checkpoint has it."""
    torch = tiny_checkpoints.torch
    with torch.no_grad():
        logits = tiny.model(torch.tensor([[*IDS, *said]])).logits[0, len(IDS) - 1 : -1]
    return [float(row[token]) for row, token in zip(logits.log_softmax(-1), said, strict=True)]


def greedy(tiny: Tiny) -> tuple[int, ...]:
    return tuple(tiny_checkpoints.says(tiny.model, list(IDS), COUNT))


@pytest.mark.parametrize("stream", [True, False])
def test_ids_and_log_probabilities_are_transformers(tiny: Tiny, client: Client, asked: Request, stream: bool) -> None:
    model = tiny.target.model.roles[Role.TENSORRT_LLM]
    (reply,) = client.ask(replace(asked, model=model, prompt="", tokens=IDS, stream=stream)).replies
    assert reply.tokens == greedy(tiny)
    assert reply.log_probs == pytest.approx(transformers_log_probs(tiny, reply.tokens), abs=1e-4)
    assert reply.log_prob == pytest.approx(sum(reply.log_probs), abs=1e-4)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("role", [Role.BLS, Role.ENSEMBLE])
def test_the_pipeline_hands_log_probabilities_on(tiny: Tiny, client: Client, asked: Request, role: Role, stream: bool) -> None:
    (reply,) = client.ask(replace(asked, model=tiny.target.model.roles[role], stream=stream)).replies
    expected = transformers_log_probs(tiny, greedy(tiny))
    assert reply.log_probs == pytest.approx(expected, abs=1e-4)
    assert reply.log_prob == pytest.approx(math.fsum(expected), abs=1e-3)
    assert reply.geometric_mean == pytest.approx(math.exp(math.fsum(expected) / COUNT), abs=1e-4)


def test_nothing_is_said_of_log_probabilities_that_nobody_asked_for(client: Client, asked: Request) -> None:
    (reply,) = client.ask(replace(asked, return_log_probs=False)).replies
    assert (reply.log_probs, reply.log_prob, reply.geometric_mean) == ((), None, None)


@pytest.mark.parametrize("stream", [True, False])
def test_beams_are_transformers_beams_with_the_best_first(tiny: Tiny, client: Client, asked: Request, stream: bool) -> None:
    model = tiny.target.model.roles[Role.TENSORRT_LLM]
    end = tiny.model.config.eos_token_id
    beams = replace(asked, model=model, prompt="", tokens=IDS, beam_width=3, top_k=None, end_id=end, stream=stream)
    answer = client.ask(beams)
    said = tiny_checkpoints.says(tiny.model, list(IDS), COUNT, num_beams=3, early_stopping=True, length_penalty=0.0)
    assert answer.replies[0].tokens == tuple(token for token in said if token != end)
    sums = [reply.log_prob for reply in answer.replies if reply.log_prob is not None]
    assert len(sums) == 3
    assert sums == sorted(sums, reverse=True)
    for reply in answer.replies:
        assert reply.log_probs == pytest.approx(transformers_log_probs(tiny, reply.tokens), abs=1e-4)
    assert client.ask(replace(beams, n=2)).replies == answer.replies[:2]


@pytest.mark.parametrize("role", [Role.BLS, Role.ENSEMBLE])
def test_samples_come_under_their_own_numbers_streamed_or_not(tiny: Tiny, client: Client, asked: Request, role: Role) -> None:
    several = replace(asked, model=tiny.target.model.roles[role], n=3, top_k=0, top_p=1.0, temperature=1.0, seed=3)
    streamed, whole = client.ask(several), client.ask(replace(several, stream=False))
    assert len({reply.log_probs for reply in streamed.replies}) == 3
    assert [reply.log_probs for reply in streamed.replies] == [reply.log_probs for reply in whole.replies]


def test_a_temperature_draws_anew_each_time_unless_seeded(tiny: Tiny, client: Client) -> None:
    warm = Request(tiny.target.model.front, PROMPT, COUNT, temperature=1.5)
    assert len({client.ask(warm).text for _ in range(4)}) > 1
    assert client.ask(replace(warm, seed=7)).text == client.ask(replace(warm, seed=7)).text
    likeliest = client.ask(replace(warm, temperature=0.0)).text
    assert likeliest == client.ask(replace(warm, temperature=None)).text == TOKENIZERS["byte_level"].decode(greedy(tiny))

    async def ask() -> set[str]:
        async with AsyncClient(tiny.address) as one:
            return {(await one.ask(warm)).text for _ in range(4)}

    assert len(asyncio.run(ask())) > 1


@pytest.mark.parametrize("role", [Role.BLS, Role.ENSEMBLE])
@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_text_ends_an_answer_wherever_its_tokens_part(tiny: Tiny, client: Client, role: Role, stream: bool) -> None:
    plain = Request(tiny.target.model.roles[role], PROMPT, COUNT, stream=stream)
    whole = client.ask(plain).text
    for stop in (whole[4:6], whole[3:8], whole[1:3]):
        (reply,) = client.ask(replace(plain, stop=("never", stop))).replies
        assert (reply.text, reply.stopped) == (whole[: whole.index(stop)], True)
    (reply,) = client.ask(replace(plain, stop=("never", "nie 🚀"))).replies
    assert (reply.text, reply.stopped) == (whole, False)


@pytest.mark.parametrize("door", ["threads", "asyncio"])
def test_the_server_is_left_when_a_stop_text_is_reached(tiny: Tiny, client: Client, door: str) -> None:
    plain = Request(tiny.target.model.front, PROMPT, 240)
    first = next(iter(client.generate(plain))).text
    asked = replace(plain, stop=(first[-1],))

    async def ask(address: str) -> str:
        async with AsyncClient(address) as one:
            return (await one.ask(asked)).text

    with slow_triton.before(tiny.address) as slow:
        if door == "asyncio":
            text = asyncio.run(ask(slow.address))
        else:
            with Client(slow.address) as one:
                text = one.ask(asked).text
        assert slow.left.acquire(timeout=PATIENCE)
    assert text == first[: first.index(first[-1])]


def test_tokens_are_counted_and_not_pieces(client: Client, asked: Request) -> None:
    counted = replace(asked, return_log_probs=False)
    for stream in (True, False):
        answer = client.ask(replace(counted, stream=stream))
        assert (answer.input_tokens, answer.output_tokens) == (len(IDS), COUNT)
        assert answer.perf.counted
    assert {chunk.output_tokens for chunk in client.generate(counted)} == {None}, "a stream's reader asks for it"


def test_a_stream_is_timed_piece_by_piece(client: Client, asked: Request) -> None:
    seconds = [chunk.seconds for chunk in client.generate(asked)]
    assert seconds == sorted(seconds)
    perf = client.ask(asked).perf
    assert 0 < perf.first < perf.total
    assert perf.inter_token == pytest.approx((perf.total - perf.first) / (COUNT - 1))
    assert client.ask(replace(asked, stream=False)).perf.inter_token is None


def test_any_input_of_the_metadata_is_given_by_name(client: Client, asked: Request) -> None:
    assert client.ask(replace(asked, inputs={"min_tokens": "3"})).text == client.ask(asked).text
    banned = client.ask(replace(asked, inputs={"bad_words": client.ask(replace(asked, max_tokens=1)).text}))
    assert banned.text != client.ask(asked).text


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"inputs": {"top_q": 1}}, "no input for top_q"),
        ({"inputs": {"top_p": "much"}}, "does not fit FP32"),
        ({"inputs": {"top_k": "1.5"}}, "does not fit INT32"),
        ({"inputs": {"stream": "maybe"}}, "does not fit BOOL"),
        ({"early_stopping": True}, "no input for early_stopping"),
        ({"tokens": (1, 2), "prompt": ""}, "takes text and no token ids"),
        ({"model": "tensorrt_llm"}, "takes no text"),
        ({"model": "tensorrt_llm", "tokens": (1,), "prompt": "x"}, "cannot go with prompt"),
        ({"beam_width": 99}, "max_beam_width 4"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(
    client: Client, asked: Request, changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InferenceError, match=complaint):
        client.ask(replace(asked, **changes))


@pytest.mark.parametrize(
    ("changes", "said", "hint"),
    [
        ({"max_tokens": 10**6}, "exceeds the model's max_seq_len", "ask for fewer tokens"),
        ({"prompt": "ab" * 300}, "max_input_len", "a shorter prompt"),
        ({"prompt": ""}, "is empty", "say something"),
    ],
)
def test_a_refusal_says_what_to_ask_instead(
    client: Client, asked: Request, changes: dict[str, object], said: str, hint: str
) -> None:
    with pytest.raises(InferenceError, match=said) as caught:
        client.ask(replace(asked, **changes))
    assert hint in caught.value.hint


def test_metadata_says_what_a_model_takes_and_whether_it_streams(tiny: Tiny, client: Client) -> None:
    held = client.metadata(tiny.target.model.front)
    assert held.decoupled
    assert held.inputs["seed"].datatype == "UINT64"
    assert held.outputs["output_log_probs"].shape == (-1, -1, -1)
    assert client.metadata(tiny.target.model.front) is held
    assert tiny.target.model.front in client.models()


def test_many_answers_over_one_channel_are_not_mixed(tiny: Tiny, client: Client, asked: Request) -> None:
    requests = [replace(asked, prompt=f"{PROMPT} {'ab' * number}") for number in range(12)]
    alone = [client.ask(request).replies for request in requests]

    async def together() -> list[object]:
        async with AsyncClient(tiny.address, timeout=PATIENCE) as several:
            return [answer.replies for answer in await asyncio.gather(*map(several.ask, requests))]

    assert asyncio.run(together()) == alone


def test_asyncio_and_threads_hear_the_same_chunks(tiny: Tiny, client: Client, asked: Request) -> None:
    async def listen() -> list[object]:
        async with AsyncClient(tiny.address) as one:
            return [chunk async for chunk in one.generate(asked)]

    heard = asyncio.run(listen())
    with closing(client.generate(asked)) as chunks:
        assert list(chunks) == heard
    assert len(heard) > 3


@pytest.mark.parametrize("how", ["aclose", "cancel"])
def test_who_leaves_is_seen_to_by_the_server(tiny: Tiny, asked: Request, how: str) -> None:
    endless = replace(asked, max_tokens=240, return_log_probs=False)

    async def first(several: AsyncClient) -> None:
        async with aclosing(several.generate(endless)) as chunks:
            await anext(chunks)

    async def run(slow: slow_triton.Slow) -> None:
        async with AsyncClient(slow.address) as several:
            if how == "aclose":
                await asyncio.gather(*(first(several) for _ in range(4)))
            else:
                tasks = [asyncio.create_task(several.ask(endless)) for _ in range(4)]
                for _ in tasks:
                    assert await asyncio.to_thread(slow.begun.acquire, timeout=PATIENCE)
                for task in tasks:
                    task.cancel()
                told = await asyncio.gather(*tasks, return_exceptions=True)
                assert {type(each) for each in told} == {asyncio.CancelledError}
            for _ in range(4):
                assert await asyncio.to_thread(slow.left.acquire, timeout=PATIENCE)

    with slow_triton.before(tiny.address) as slow:
        asyncio.run(run(slow))


@pytest.mark.parametrize(
    ("mute", "limits", "complaint"),
    [
        (True, {"first_seconds": 1.0, "silent_seconds": 0.0}, "the model said nothing for 1 s"),
        (False, {"silent_seconds": 1.0}, "no more came for 1 s"),
    ],
    ids=["before the first", "between two"],
)
@pytest.mark.parametrize("how", ["threads", "asyncio"])
def test_a_model_that_hangs_is_given_up_and_told_so(
    tiny: Tiny, asked: Request, how: str, mute: bool, limits: dict[str, float], complaint: str
) -> None:
    with slow_triton.before(tiny.address, mute=mute) as slow:

        async def awaited() -> None:
            async with AsyncClient(slow.address) as several:
                await several.ask(request)

        def waited() -> None:
            with Client(slow.address) as client:
                client.ask(request)

        request = replace(asked, max_tokens=240, **limits)
        with pytest.raises(InferenceError, match=complaint) as caught:
            asyncio.run(awaited()) if how == "asyncio" else waited()
        assert slow.left.acquire(timeout=PATIENCE)
    assert (caught.value.trouble, caught.value.where) == (Trouble.LATE, f"{request.model} at {slow.address}")
    assert "forge status" in caught.value.hint


def test_the_time_that_a_reader_takes_is_not_the_models(tiny: Tiny, asked: Request) -> None:
    """It reads on after longer than the model may be silent, twice: as the watch looks, and when it has looked long ago."""
    limit = 3.0
    request = replace(asked, silent_seconds=limit)

    async def slowly() -> int:
        async with AsyncClient(tiny.address) as several, aclosing(several.generate(request)) as chunks:
            await anext(chunks)
            await asyncio.sleep(limit + 0.5)
            return len([chunk async for chunk in chunks])

    with Client(tiny.address) as client, closing(client.generate(request)) as chunks:
        for _ in range(2):
            next(chunks)
            time.sleep(limit + 0.5)
        assert len(list(chunks)) + 1 == asyncio.run(slowly())


def test_asyncio_is_told_of_failures_in_the_same_words(tiny: Tiny, asked: Request) -> None:
    async def fail(address: str, request: Request) -> None:
        async with AsyncClient(address, timeout=PATIENCE) as one:
            await one.ask(request)

    with pytest.raises(InferenceError, match="no model 'nobody'") as caught:
        asyncio.run(fail(tiny.address, replace(asked, model="nobody")))
    assert tiny.target.model.front in caught.value.hint
    with pytest.raises(InferenceError, match="max_beam_width 4"):
        asyncio.run(fail(tiny.address, replace(asked, beam_width=99)))
    with pytest.raises(InferenceError, match="no server answers"):
        asyncio.run(fail("127.0.0.1:9", asked))


def test_a_closed_client_says_that_it_is_closed(tiny: Tiny, asked: Request) -> None:
    with Client(tiny.address) as client:
        assert client.ask(asked).text
    for again in (lambda: client.ask(asked), client.models, lambda: client.metadata("other")):
        with pytest.raises(InferenceError, match="this client was closed") as caught:
            again()
        assert caught.value.where == tiny.address

    async def use(after: AsyncClient) -> None:
        async with after:
            assert await after.models()
        with pytest.raises(InferenceError, match="this client was closed"):
            await after.ask(asked)
        unused = AsyncClient(tiny.address)
        await unused.close()
        with pytest.raises(InferenceError, match="this client was closed"):
            await unused.models()

    asyncio.run(use(AsyncClient(tiny.address)))
