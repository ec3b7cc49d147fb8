"""A crowd at the models of a twin: everybody gets an answer or an error that says what to do, and nobody's place is kept by
somebody who does not read.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import openai
import pytest

from forge.api.forge import Forge
from forge.client import AsyncClient, Client, Request
from forge.client.answer import Answer
from forge.errors import InferenceError, Trouble
from forge.repository.config import STREAMS_PER_INSTANCE
from forge.serve.lookup import Target
from openai_front import front
from patience import PATIENCE, free_ports, soon
from tiny_served import RECIPE, Tiny, checkpoint

pytestmark = pytest.mark.slow

CROWD = 300
WAITING = 5
LIMITS = f"""
[limits]
max_queued = {WAITING}
max_prompts = {CROWD}
max_answers = {CROWD}
"""
BLS, ENGINE = "tensorrt_llm_bls", "tensorrt_llm"


@pytest.fixture(scope="module")
def narrow(shop: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The tiny model, served, at which few may wait."""
    place = tmp_path_factory.mktemp("narrow")
    (place / "tiny.toml").write_text(RECIPE + LIMITS)
    checkpoint(place / "checkpoint")
    built = shop.build([place / "tiny.toml"], repository=place / "repository")
    running = shop.serve(built.repository, free_ports())
    try:
        yield shop.target("tiny", built.repository)
    finally:
        shop.stop(running)


def asking(model: str, most: int) -> Request:
    """The same of each model: one takes ids and gives ids."""
    ids, text = ((5, 6, 7), "") if model == ENGINE else ((), "hello")
    return Request(model, text, max_tokens=most, top_k=1, stream=False, tokens=ids)


def said(answer: Answer) -> str:
    return answer.text or str(answer.replies[0].tokens)


async def crowd(address: str, request: Request, count: int) -> Counter[str]:
    """What so many who ask at once get: texts, or the troubles that there are."""

    async def one(client: AsyncClient) -> str:
        try:
            return said(await client.ask(request))
        except InferenceError as error:
            return f"{error.trouble}: {error.what}"

    async with AsyncClient(address, timeout=PATIENCE) as client:
        return Counter(await asyncio.gather(*(one(client) for _ in range(count))))


@pytest.mark.parametrize("model", [BLS, "ensemble", ENGINE])
def test_everybody_in_a_crowd_is_answered(tiny: Tiny, model: str) -> None:
    request = asking(model, 3)
    with Client(tiny.address, timeout=PATIENCE) as client:
        alone = said(client.ask(request))
    assert asyncio.run(crowd(tiny.address, request, CROWD)) == {alone: CROWD}


@pytest.mark.parametrize("model", [BLS, "ensemble", ENGINE])
def test_who_finds_the_queue_full_is_told_others_are_answered(narrow: Target, model: str) -> None:
    """Requests of the ensemble and of the engine wait in two queues. Triton speaks for the first; who meets the second is the
    machine's affair."""
    request = asking(model, 100)
    with Client(narrow.address, timeout=PATIENCE) as client:
        alone = said(client.ask(request))
        got = asyncio.run(crowd(narrow.address, request, CROWD))
        assert got.pop(alone) >= STREAMS_PER_INSTANCE + WAITING
        assert got
        assert all(told.startswith(Trouble.BUSY) for told in got)
        assert model != BLS or any("limits.max_queued" in told for told in got), got
        assert said(client.ask(request)) == alone


def test_a_full_queue_is_429_at_the_openai_port(narrow: Target) -> None:
    with (
        front(narrow.address, narrow.repository) as address,
        openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=PATIENCE) as client,
    ):
        with pytest.raises(openai.RateLimitError, match=r"limits\.max_queued"):
            client.completions.create(model="tiny", prompt=["x"] * CROWD, max_tokens=100)
        patient = client.with_options(max_retries=50)  # those who were refused together are being cancelled
        assert patient.completions.create(model="tiny", prompt="x", max_tokens=3).choices


def test_a_full_queue_is_busy_and_not_dead(shop: Forge, narrow: Target) -> None:
    running, enough, full = shop.server(narrow.repository), threading.Event(), threading.Event()

    def keep_asking() -> None:
        while not enough.is_set():
            if any(told.startswith(Trouble.BUSY) for told in asyncio.run(crowd(narrow.address, asking(BLS, 200), CROWD))):
                full.set()

    def busy() -> bool:
        states = shop.care.states((running,), 5.0)
        assert [state.why for state in states if not state.answers] == []
        return any(state.model == BLS and state.busy for state in states)

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(keep_asking)
        try:
            assert full.wait(PATIENCE)
            assert soon(busy)
        finally:
            enough.set()
        asked.result(PATIENCE)
    assert shop.care.server.health(running) == {}


def test_streams_that_nobody_reads_keep_no_place(tiny: Tiny) -> None:
    with (
        Client(tiny.address, timeout=PATIENCE) as idle,
        Client(tiny.address, timeout=PATIENCE) as client,
        ExitStack() as unread,
    ):
        for _ in range(2 * STREAMS_PER_INSTANCE):
            stream = unread.enter_context(closing(idle.generate(Request(BLS, "hello", max_tokens=200))))
            next(stream)
        assert client.ask(Request(BLS, "hello", max_tokens=3)).text
