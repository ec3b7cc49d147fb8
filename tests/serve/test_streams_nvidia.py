"""Streams of a SentencePiece model through NVIDIA's way of decoding, on a real Triton: no blank and no character is lost.

NVIDIA's own models are taken from where `make originals` lays them; a stand-in that decodes as they do is always here.
"""

import asyncio
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from msgspec.structs import replace

import chained
import originals
from forge.api.forge import Forge
from forge.client import AsyncClient
from forge.client.grpc import TritonClient
from forge.client.types import Request
from forge.repository import config as repository
from forge.schema.values import (
    BuildTable,
    ConfigOverrides,
    Names,
    Ports,
    Recipe,
    Role,
    RuntimeKind,
    RuntimeTable,
    Source,
    TextFile,
)
from forge.serve.lookup import Target
from forge.serve.openai.sidecar import answers
from forge.verify.judge import Stage
from forge.verify.verify import VerifyOptions
from nvidias_bls import bls
from patience import free_ports
from triton_fixture import Serving

pytestmark = pytest.mark.slow
RECIPE = """
name = "chain"
[source]
path = "checkpoint"
[runtime]
kind = "twin"
[build]
max_batch_size = 4
max_input_len = 60
max_seq_len = 100
[verify]
prompts = "prompts.txt"
max_tokens = 16
"""
ASKED = Request("tensorrt_llm_bls", "the", chained.COUNT)


@dataclass(frozen=True)
class Shop:
    """A published twin whose bls decodes as NVIDIA's does: by postprocessing, which is given tokens and nothing else."""

    shop: Forge
    repository: Path

    def accumulate(self, stated: str) -> None:
        """Say it in bls's config, as a recipe would for an engine."""
        file = self.repository / "tensorrt_llm_bls" / "config.pbtxt"
        text = file.read_text()
        key = text.index('key: "accumulate_tokens"')
        start = text.index('string_value: "', key) + len('string_value: "')
        file.unlink()  # the store's has the same blocks
        file.write_text(text[:start] + stated + text[text.index('"', start) :])

    def target(self) -> Target:
        return self.shop.target("chain", self.repository)


@pytest.fixture(scope="module")
def published(shop: Forge, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return _publish(shop, tmp_path_factory.mktemp("chain"))


def _publish(shop: Forge, place: Path) -> Shop:
    chained.lay(place / "checkpoint")
    (place / "chain.toml").write_text(RECIPE)
    (place / "prompts.txt").write_text("the\nthe capital of\n")
    built = shop.build([place / "chain.toml"], repository=place / "models")
    folder = built.repository / "tensorrt_llm_bls" / "1"
    shutil.rmtree(folder)
    for file in bls():
        laid = folder.parent / file.path
        laid.parent.mkdir(parents=True, exist_ok=True)
        laid.write_text(file.content)
    return Shop(shop, built.repository)


@pytest.mark.parametrize("stated", ["true", "false"])
def test_every_door_says_the_answer_and_verify_names_the_cure(shop: Forge, tmp_path: Path, stated: str) -> None:
    published = _publish(shop, tmp_path)  # the other tests' may be served just now
    published.accumulate(stated)
    ports = replace(free_ports(), openai=free_ports().http)
    running = published.shop.serve(published.repository, ports, verify="never")  # its bls is another one
    try:
        told = {
            "client": "".join(chunk.text for chunk in TritonClient(60.0).generate(published.target().address, ASKED)),
            "asyncio": asyncio.run(_asked(published.target().address)),
            **{door: text for door, (text, _) in _through_openai(ports).items()},
        }
        report = published.shop.verify("chain", published.repository, VerifyOptions(streaming=False))
    finally:
        published.shop.stop(running)
    if stated == "true":
        assert told == dict.fromkeys(told, chained.SAID)
        assert report.passed, report.faults
    else:
        assert all(text.startswith("capitalofFranceisParis") for text in told.values()), "what is lost without it"
        assert report.failing == (Stage.DETOKENIZER,)
        assert all("accumulate_tokens = true" in fault.what for fault in report.faults)


@pytest.fixture(scope="module")
def ports(published: Shop) -> Iterator[Ports]:
    """Where it is served, decoding as it should."""
    published.accumulate("true")
    ports = replace(free_ports(), openai=free_ports().http)
    running = published.shop.serve(published.repository, ports, verify="never")  # its bls is another one
    yield ports
    published.shop.stop(running)


@pytest.mark.parametrize("stop", ["Paris", "is Par", "\N{CJK UNIFIED IDEOGRAPH-732B}", "\N{GRINNING FACE}", "s", " more"])
def test_a_stop_text_ends_the_answer_everywhere_in_any_script(published: Shop, ports: Ports, stop: str) -> None:
    """The bls hands stop words to nobody: what is cut is text."""
    asked = replace(ASKED, stop=("never", stop))
    client, address = TritonClient(60.0), published.target().address
    told = {
        "client": list(client.generate(address, asked)),
        "whole": list(client.generate(address, replace(asked, stream=False))),
        "ensemble": list(client.generate(address, replace(asked, model="ensemble", stream=False))),
    }
    expected = chained.SAID[: chained.SAID.index(stop)]
    assert {door: "".join(chunk.text for chunk in chunks) for door, chunks in told.items()} == dict.fromkeys(told, expected)
    assert all(chunks[-1].stopped and chunks[-1].final for chunks in told.values())
    assert asyncio.run(_asked(address, asked)) == expected
    assert _through_openai(ports, stop) == {"OpenAI": (expected, "stop"), "OpenAI streams": (expected, "stop")}


def test_each_answer_the_bls_does_not_give_is_asked_for(published: Shop, ports: Ports) -> None:
    address = published.target().address
    for stream in (True, False):
        several = replace(ASKED, n=3, stream=stream)
        chunks = list(TritonClient(60.0).generate(address, several))
        texts = ["".join(chunk.text for chunk in chunks if chunk.index == index) for index in range(3)]
        assert texts == [chained.SAID] * 3
        assert [chunk.final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert asyncio.run(_asked(address, replace(ASKED, n=2), 1)) == chained.SAID


def test_a_bad_word_is_barred_after_a_blank_too(published: Shop, ports: Ports) -> None:
    plain = replace(ASKED, model="ensemble", stream=False)
    (answer,) = TritonClient(60.0).generate(published.target().address, replace(plain, bad=("Paris",)))
    assert answer.text.startswith("capital of France is")
    assert "Paris" not in answer.text


@pytest.mark.parametrize("version", ["0.17.0", "0.18.2", "0.19.0"])
def test_nvidias_own_models_stream_what_they_say_whole(serving: Serving, tmp_path: Path, version: str) -> None:
    models = _originals(version)
    place = tmp_path / "models"
    recipe = Recipe(
        name="chain",
        source=Source(hub="a/b"),
        runtime=RuntimeTable(kind=RuntimeKind.ENGINE),
        build=BuildTable(max_batch_size=4, max_input_len=60, max_seq_len=100),
    )
    for file in repository.render(Names(), models, repository.settings(recipe, ConfigOverrides())):
        laid = place / file.path
        laid.parent.mkdir(parents=True, exist_ok=True)
        laid.write_text(repository.relocate(file.content, str(place)) if laid.suffix == ".pbtxt" else file.content)
    for name in ("tokenizer", "engines"):
        chained.lay(place / "_assets" / "chain" / name)
    limits = {"max_input_len": 60, "max_seq_len": 100, "max_batch_size": 4, "max_beam_width": 1}
    (place / "_assets" / "chain" / "engines" / "build_config.json").write_text(json.dumps(limits))
    with serving.with_own_packages(tmp_path / "environment").server(place) as running:
        client, address = TritonClient(60.0), f"127.0.0.1:{running.ports.grpc}"
        pieces = [chunk.text for chunk in client.generate(address, ASKED)]
        whole = "".join(chunk.text for chunk in client.generate(address, replace(ASKED, stream=False)))
    assert whole == chained.SAID
    assert "".join(pieces) == chained.SAID
    assert len([piece for piece in pieces if piece]) > 1


def _originals(version: str) -> tuple[TextFile, ...]:
    """NVIDIA's models around the engine, and the engine's config, which the twin's backend serves in its place."""
    place = originals.skeletons(version)
    roles = (Role.PREPROCESSING, Role.POSTPROCESSING, Role.BLS)
    # beside some checkouts lie the configs of a version without its programs
    if place is None or not all((place / role / "1" / "model.py").is_file() for role in roles):
        pytest.skip(originals.MISSING)
    files = [file for role in roles for file in sorted((place / role).rglob("*")) if file.is_file()]
    files.append(place / Role.TENSORRT_LLM / repository.CONFIG)
    found = [TextFile(file.relative_to(place).as_posix(), file.read_text(encoding="utf-8")) for file in files]
    return (*found, TextFile(f"{Role.TENSORRT_LLM}/1/.gitkeep", ""))


async def _asked(address: str, request: Request = ASKED, index: int = 0) -> str:
    async with AsyncClient(address) as client:
        return (await client.ask(request)).replies[index].text


def _through_openai(ports: Ports, stop: str = "never") -> dict[str, tuple[str, str]]:
    """What is said, and why it ended."""
    assert answers(ports)
    with openai.OpenAI(base_url=f"http://127.0.0.1:{ports.openai}/v1", api_key="none") as client:
        api = client.completions
        (whole,) = api.create(model="chain", prompt="the", max_tokens=chained.COUNT, temperature=0.0, stop=stop).choices
        events = api.create(model="chain", prompt="the", max_tokens=chained.COUNT, temperature=0.0, stop=stop, stream=True)
        pieces = [event.choices[0] for event in events]
        streamed = "".join(piece.text for piece in pieces)
        return {"OpenAI": (whole.text, whole.finish_reason), "OpenAI streams": (streamed, pieces[-1].finish_reason)}
