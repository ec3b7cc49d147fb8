"""LoRA adapters of an engine, from PEFT's files to a real Triton on the stand-in: they change what is said as they ought to."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from openai import OpenAI

import lora_kit
from forge.client import AsyncClient, Client
from forge.client.lora import LoraTask
from forge.client.types import Request
from forge.errors import InferenceError, RepositoryError
from forge.schema.adapters import ARRAYS
from forge.serve.lookup import Target, adapted
from forge.verify.judge import Stage
from forge.verify.verify import VerifyOptions
from openai_front import front
from patience import free_ports
from standin import checkpoints
from standin.inside import Insider, insider
from triton_fixture import Serving

pytestmark = pytest.mark.slow
RECIPE = """
name = "{name}"
family = "llama"
[source]
path = "checkpoint"
[runtime]
kind = "engine"
gpus = "none"
[convert]
dtype = "float16"
[build]
max_batch_size = 4
max_input_len = 64
max_seq_len = 96
[serve]
instances = 2
[sampling]
max_tokens = 12
top_k = 1
{more}
"""
LORA = """
[[lora]]
name = "loud"
path = "loud"
[[lora]]
name = "other"
path = "other"
"""
PROMPT = "The recipe says what the build needs"


@dataclass(frozen=True)
class Bench:
    """An engine with two adapters, and one without."""

    insider: Insider
    folder: Path

    def target(self, name: str, lora: str = "") -> Target:
        return adapted(self.insider.shop.target(name, self.folder / "models"), lora)

    def request(self, name: str, lora: str = "", **words: object) -> Request:
        return replace(self.target(name, lora).request(PROMPT), top_k=1, **words)

    def said(self, request: Request) -> str:
        with Client(self.target("tiny").address) as client:
            return client.ask(request).text

    def transformers(self, adapter: str, scale: float) -> str:
        return lora_kit.says(self.folder / "checkpoint", self.folder / adapter, scale, PROMPT, half=True)


@pytest.fixture(scope="module")
def bench(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("adapters")
    checkpoints.llama(folder / "checkpoint")
    lora_kit.adapter(folder / "loud", 4, 1)
    lora_kit.adapter(folder / "other", 8, 2, use_rslora=True)
    for name, more in (("tiny", LORA), ("bare", "")):
        (folder / f"{name}.toml").write_text(RECIPE.format(name=name, more=more))
    inside = insider(folder / "inside", serving)
    built = inside.shop.build([folder / "tiny.toml", folder / "bare.toml"], repository=folder / "models")
    running = inside.shop.serve(built.repository, free_ports(), restart=False)
    yield Bench(inside, folder)
    inside.shop.stop(running)


@pytest.mark.parametrize(("lora", "scale"), [("", 0.0), ("loud", 2.0), ("other", 16 / 8**0.5)])
def test_each_adapter_says_what_its_merged_checkpoint_says(bench: Bench, lora: str, scale: float) -> None:
    wanted = bench.transformers(lora or "loud", scale)
    assert wanted.strip()
    assert [bench.said(bench.request("tiny", lora, stream=stream)) for stream in (True, False)] == [wanted, wanted]


def test_what_a_server_lacks_comes_with_the_request_and_stays(bench: Bench) -> None:
    """The server has read its own adapters when it started; a task of another number it has never seen."""
    known = bench.target("tiny", "loud").lora_task
    assert known is not None
    wanted = bench.said(bench.request("tiny", "loud"))
    strange = replace(bench.request("tiny", "loud"), lora_task=LoraTask(77, known.folder))
    assert bench.said(strange) == wanted
    nowhere = replace(strange, lora_task=LoraTask(77, bench.folder / "nowhere"))
    assert bench.said(nowhere) == wanted, "it is held now, so its arrays are not read again"


async def _asked(request: Request, address: str) -> str:
    async with AsyncClient(address) as client:
        return (await client.ask(request)).text


def test_the_client_for_asyncio_sends_it_too(bench: Bench) -> None:
    import asyncio

    known = bench.target("tiny", "other").lora_task
    assert known is not None
    strange = replace(bench.request("tiny", "other"), lora_task=LoraTask(78, known.folder))
    assert asyncio.run(_asked(strange, bench.target("tiny").address)) == bench.said(bench.request("tiny", "other"))


def test_an_array_that_is_gone_is_said_by_its_path(bench: Bench) -> None:
    lost = replace(bench.request("tiny", "loud"), lora_task=LoraTask(79, bench.folder / "nowhere"))
    with pytest.raises(InferenceError, match="cannot be read: there is no such file"):
        bench.said(lost)


def test_openais_client_has_each_adapter_as_a_model(bench: Bench) -> None:
    target = bench.target("tiny")
    with front(target.address, target.repository) as url, OpenAI(base_url=url, api_key="none", timeout=600) as client:
        assert [model.id for model in client.models.list()] == ["bare", "tiny", "tiny:loud", "tiny:other"]
        said = client.completions.create(model="tiny:loud", prompt=PROMPT, max_tokens=12, temperature=0)
        assert said.choices[0].text == bench.said(bench.request("tiny", "loud"))


def test_a_missing_adapter_is_refused_with_the_names_there_are(bench: Bench) -> None:
    with pytest.raises(InferenceError) as caught:
        bench.target("tiny", "quiet")
    assert "loud, other" in str(caught.value)
    with pytest.raises(InferenceError, match="no adapter"):
        bench.target("bare", "loud")


def spoiled(how: str, weights: Any, table: Any) -> tuple[Any, Any]:
    """An adapter's two arrays, one of them changed."""
    match how:
        case "layer":
            return weights, table + [0, 7, 0]  # noqa: RUF005
        case "rank":
            return weights, table + [0, 0, 60]  # noqa: RUF005
        case "module":
            return weights, table + [20, 0, 0]  # noqa: RUF005
        case "short":
            return weights[:, :, :40], table
        case "fewer":
            return weights[:, :3], table
        case _:
            return weights.astype(np.float32), table


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("layer", "layerId to be in the range"),
        ("rank", "Invalid low_rank|has to few values"),
        ("module", "not enabled for this model"),
        ("short", "has to few values"),
        ("fewer", "dim1 lora_weights and lora_keys to have the same size"),
        ("type", "FP32"),
    ],
)
def test_the_stand_in_refuses_arrays_of_another_model(bench: Bench, tmp_path: Path, how: str, said: str) -> None:
    known = bench.target("tiny", "loud").lora_task
    assert known is not None
    weights, table = spoiled(how, *(np.load(known.folder / name) for name in ARRAYS))
    np.save(tmp_path / ARRAYS[0], weights)
    np.save(tmp_path / ARRAYS[1], np.asarray(table, np.int32))
    with pytest.raises(InferenceError, match=said):
        bench.said(replace(bench.request("tiny", "loud"), lora_task=LoraTask(80, tmp_path)))


def test_an_engine_that_was_built_for_no_adapters_refuses_them(bench: Bench) -> None:
    known = bench.target("tiny", "loud").lora_task
    with pytest.raises(InferenceError, match="without lora_plugin"):
        bench.said(replace(bench.request("bare"), lora_task=known))


def test_another_adapter_of_the_same_kind_builds_no_engine_anew(bench: Bench) -> None:
    before = {step.name: step.key for step in bench.insider.shop.plan([bench.folder / "tiny.toml"]).steps}
    elsewhere = shutil.copytree(bench.folder / "checkpoint", bench.folder / "again" / "checkpoint").parent
    lora_kit.adapter(elsewhere / "loud", 4, 3)
    lora_kit.adapter(elsewhere / "other", 8, 4)
    (elsewhere / "tiny.toml").write_text(RECIPE.format(name="tiny", more=LORA))
    after = {step.name: step.key for step in bench.insider.shop.plan([elsewhere / "tiny.toml"]).steps}
    assert after["tiny: engine"] == before["tiny: engine"]
    assert after["tiny: lora loud for TensorRT-LLM"] != before["tiny: lora loud for TensorRT-LLM"]


def test_verify_holds_it_to_its_checkpoint_with_the_adapter_merged(bench: Bench, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\nWhat is in the store?\n")
    shop, place = bench.insider.shop, bench.folder / "models"
    reports = [
        shop.verify(name, place, replace(options, prompts=prompts, max_tokens=12))
        for options, name in ((VerifyOptions(lora="loud"), "tiny"), (VerifyOptions(streaming=False), "tiny:other"))
    ]
    for report in reports:
        assert report.faults == (), report.faults
        assert {each.stage for each in report.verdicts} == {*Stage} - {Stage.PIPELINE}
    assert [report.model for report in reports] == ["tiny:loud", "tiny:other"]
    assert reports[1].reference.endswith("with the adapter other merged")


def test_verify_finds_an_adapter_that_is_another(bench: Bench, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n")
    file = bench.folder / "models/_assets/tiny/loras.json"
    before = file.read_bytes()
    file.unlink()  # its blocks are the store's
    file.write_text('{"loud": 2, "other": 1}')
    try:
        options = VerifyOptions(lora="loud", prompts=prompts, max_tokens=12, streaming=False)
        report = bench.insider.shop.verify("tiny", bench.folder / "models", options)
    finally:
        file.write_bytes(before)
    assert report.failing == (Stage.ENGINE,)


def test_verify_says_what_it_cannot_do_with_an_adapter(bench: Bench) -> None:
    shop, place = bench.insider.shop, bench.folder / "models"
    with pytest.raises(InferenceError, match="no adapter 'quiet'"):
        shop.verify("tiny:quiet", place)
    with pytest.raises(RepositoryError, match="golden transcripts are of a checkpoint alone"):
        shop.verify("tiny", place, VerifyOptions(lora="loud", update=True))


def test_a_repository_with_adapters_is_sound(bench: Bench) -> None:
    found = bench.insider.shop.check(bench.folder / "models").findings
    assert {each.rule for each in found} <= {"kv-memory"}, "two engines in one place, of which none states its part"
