"""A crowd at the models of a twin: everybody gets an answer or an error that says what to do, and nobody's place is kept by
somebody who does not read.
"""

import asyncio
import json
import socket
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
from forge.serve.openai.patience import Patience
from openai_front import front
from patience import PATIENCE, free_ports, soon
from raw_http import Web
from tiny_served import RECIPE, Tiny, checkpoint

pytestmark = pytest.mark.slow

CROWD = 300
AT_THE_PORT = 500
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
    running = shop.serve(built.repository, free_ports(), restart=False)
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


def test_five_hundred_connections_at_the_openai_port_are_answered(tiny: Tiny) -> None:
    """All of them are open before the first asks; every other one streams."""

    async def crowd(port: int) -> Counter[str]:
        begun = asyncio.Barrier(AT_THE_PORT)

        async def one(stream: bool) -> str:
            with closing(Web(port)) as web:
                await web.open()
                await begun.wait()
                asked = {"model": "tiny", "prompt": "hello", "max_tokens": 3, "stream": stream}
                heard = b"".join([part async for part in web.ask(json.dumps(asked).encode(), "/v1/completions")]).decode()
            events = [each for each in heard.split("data: ") if each.startswith("{")] if stream else [heard]
            return "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])

        return Counter(await asyncio.gather(*(one(bool(each % 2)) for each in range(AT_THE_PORT))))

    with Client(tiny.address, timeout=PATIENCE) as client, front(tiny.address, tiny.target.repository) as address:
        alone = said(client.ask(asking(BLS, 3)))
        assert asyncio.run(crowd(int(address.split(":")[2].partition("/")[0]))) == {alone: AT_THE_PORT}


def test_a_connection_beyond_the_last_is_503_others_stay(tiny: Tiny) -> None:
    with front(tiny.address, tiny.target.repository) as address, ExitStack() as held:
        where = ("127.0.0.1", int(address.split(":")[2].partition("/")[0]))
        most = [held.enter_context(socket.create_connection(where, PATIENCE)) for _ in range(Patience().connections)]
        with socket.create_connection(where, PATIENCE) as late:
            assert late.recv(12) == b"HTTP/1.1 503"
        most[0].sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert most[0].recv(12) == b"HTTP/1.1 200"


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
