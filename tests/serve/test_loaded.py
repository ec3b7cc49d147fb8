"""What the OpenAI port knows of loaded models: asked once, and again where it may have changed; no request waits for more."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

import instant_triton
from forge.client.grpc_aio import AsyncClient
from forge.client.types import Request
from forge.errors import InferenceError
from forge.schema import manifest
from forge.schema.values import RuntimeKind
from forge.serve.openai import loaded
from forge.serve.openai.loaded import Loaded
from forge.serve.openai.models import Models, Offer
from instant_triton import FRONT, INPUTS
from patience import spare

ONE = {"ModelMetadata": 1, "ModelConfig": 1}
ASKED = Request(FRONT, "hello", 2, temperature=0.0)


@dataclass
class Held:
    """A port's knowledge of one model behind a Triton of which all is counted. ``now`` is the clock."""

    client: AsyncClient
    offer: Offer
    calls: Counter[str]
    inputs: dict[str, str]
    now: float = 100.0
    known: Loaded = field(init=False)

    def __post_init__(self) -> None:
        self.known = Loaded(self.client, lambda: self.now)

    async def names(self) -> set[str]:
        return set((await self.known.known(self.offer)).inputs)

    def reads(self) -> Counter[str]:
        return Counter({name: count for name, count in self.calls.items() if name != "ModelStreamInfer"})


def held(place: Path, test: Callable[[Held], Awaitable[None]]) -> None:
    async def run() -> None:
        calls, inputs = Counter[str](), dict(INPUTS)
        async with instant_triton.serving(0, calls, inputs) as address, AsyncClient(address) as client:
            offer = Models(address, [instant_triton.repository(place)]).find("instant")
            await test(Held(client, offer, calls, inputs))

    asyncio.run(run())


def test_many_requests_together_or_in_turn_ask_once(tmp_path: Path) -> None:
    async def check(one: Held) -> None:
        assert len(await asyncio.gather(*(one.names() for _ in range(20)))) == 20
        for _ in range(20):
            await one.names()
            assert [chunk.text async for chunk in one.client.generate(ASKED) if chunk.text]
        assert one.reads() == ONE

    held(tmp_path, check)


def test_a_model_built_anew_is_asked_before_the_request(tmp_path: Path) -> None:
    async def check(one: Held) -> None:
        assert "min_p" not in await one.names()
        one.inputs["min_p"] = "FP32"
        built = msgspec.structs.replace(one.offer.target.model, entry="f" * 64)
        one.offer = replace(one.offer, target=replace(one.offer.target, model=built))
        assert "min_p" in await one.names()
        assert one.reads() == Counter(ONE) + Counter(ONE)

    held(tmp_path, check)


def test_a_model_loaded_anew_unseen_is_noticed_beside_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded, "_AFTER", 0.0)

    async def check(one: Held) -> None:
        await one.names()
        one.inputs["min_p"] = "FP32"
        assert "min_p" not in await one.names()
        one.now += 6
        assert "min_p" not in await one.names()  # it does not wait
        while one.reads() == ONE or "min_p" not in await one.names():
            await asyncio.sleep(0.01)
        assert one.reads() == Counter(ONE) + Counter(ONE)

    held(tmp_path, check)


def test_another_server_at_the_same_port_is_asked_anew(tmp_path: Path) -> None:
    async def run() -> None:
        calls, others = Counter[str](), {**INPUTS, "min_p": "FP32"}
        (port,) = spare(1)
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            offer = Models("", [instant_triton.repository(tmp_path)]).find("instant")
            known = Loaded(client, lambda: 100.0)
            async with instant_triton.serving(port):
                assert "min_p" not in (await known.known(offer)).inputs
            async with instant_triton.serving(port, calls, others):
                found = None
                while found is None:
                    with suppress(InferenceError):  # gRPC waits before it connects again
                        found = await known.known(offer)
                assert "min_p" in found.inputs
        assert calls == ONE

    asyncio.run(run())


def test_a_request_that_fails_has_the_model_asked_anew(tmp_path: Path) -> None:
    async def check(one: Held) -> None:
        await one.names()
        with pytest.raises(InferenceError):
            [chunk async for chunk in one.client.generate(replace(ASKED, max_tokens=-1))]
        await one.names()
        assert one.reads() == Counter(ONE) + Counter(ONE)

    held(tmp_path, check)


def test_end_tokens_of_an_engine_are_read_once(tmp_path: Path) -> None:
    known = manifest.read((instant_triton.repository(tmp_path) / manifest.NAME).read_bytes())
    engine = msgspec.structs.replace(known.models[0], runtime=RuntimeKind.ENGINE)
    (tmp_path / manifest.NAME).write_text(manifest.write(manifest.Manifest(models=(engine,))))
    models, folder = Models("", [tmp_path]), tmp_path / engine.asset("tokenizer")
    (folder / "generation_config.json").write_text('{"eos_token_id": [7]}')
    (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"7": {"content": "<end>"}}}')
    assert models.find("instant").usual.ends == ("<end>",)
    (folder / "generation_config.json").unlink()
    assert models.find("instant").usual.ends == ("<end>",)
