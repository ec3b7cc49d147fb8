"""The runtime vllm through every verb: real store, real Triton, forge's own backend, and the stand-in where vLLM would be."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from openai import NotFoundError, OpenAI

from forge.bench import compare, results
from forge.bench.options import BenchOptions
from forge.client.guide import Guide
from forge.client.types import Request
from forge.errors import ForgeError, InferenceError
from forge.machine import processes
from forge.plan.preview import provenance
from openai_front import front, templated
from patience import free_ports, soon
from tiny_served import adapter, checkpoint
from triton_fixture import Opened
from vllm_kit import Recipes, Served, environment, standin_digest

pytestmark = [pytest.mark.slow, pytest.mark.network]

Place = Recipes


@pytest.fixture(scope="module")
def place(home: Path, opened: Opened, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    shop, folder = opened(home / f"vllm-{standin_digest()}"), tmp_path_factory.mktemp("served")
    found = Place(shop, folder)
    checkpoint(folder / "checkpoint")
    adapter(folder / "adapter")
    recipe = found.recipe("counts")
    # In the place of 3.4 GB of vLLM under the same key.
    (step,) = [step for step in shop.plan([recipe]).steps if step.name == "vllm environment"]
    shop.store.make(step.key, provenance(step), environment)
    shop.build([recipe], repository=found.repository)
    running = shop.serve(found.repository, free_ports())
    yield found
    shop.stop(running)


def test_generate_chat_and_whole_answers(place: Place) -> None:
    where = ("--repository", str(place.repository))
    assert place.invoke("generate", "counts", "a b", "--quiet", *where) == " 0 1 2 3\n"
    assert place.invoke("generate", "counts", "a b", "--quiet", "--no-stream", "--max-tokens", "2", *where) == " 0 1\n"
    told = [json.loads(line) for line in place.invoke("generate", "counts", "a b", "--json", *where).splitlines()]
    assert (told[-1]["answers"], told[-1]["input_tokens"], told[-1]["output_tokens"]) == ([" 0 1 2 3"], 2, 4)
    assert told[-1]["sequences"][0]["finish_reason"] == "length"


def test_openais_api_in_front_of_it(place: Place) -> None:
    target = place.shop.target("counts", place.repository)
    with front(target.address, place.repository) as url, OpenAI(base_url=url, api_key="none", timeout=300) as client:
        assert [model.id for model in client.models.list()] == ["counts", "counts:sql"]
        said = client.chat.completions.create(
            model="counts", messages=[{"role": "user", "content": "hello"}], max_tokens=3, logprobs=True, top_logprobs=2
        )
        choice = said.choices[0]
        assert (choice.message.content, choice.finish_reason) == (" 0 1 2", "length")
        assert choice.logprobs is not None
        assert [each.logprob for each in choice.logprobs.content or ()] == [-0.5] * 3
        tops = [[(top.token, top.logprob) for top in each.top_logprobs] for each in choice.logprobs.content or ()]
        assert tops == [[(f" {at}", -0.5), (" x", -9.0)] for at in range(3)]
        assert said.usage is not None
        assert said.usage.completion_tokens == 3
        stream = client.completions.create(model="counts", prompt="a", max_tokens=3, stream=True)
        assert "".join(part.choices[0].text for part in stream) == " 0 1 2"


def test_an_adapter_is_asked_with_by_every_client(place: Place) -> None:
    where = ("--repository", str(place.repository))
    assert place.invoke("generate", "counts", "a b", "--lora", "sql", "--quiet", *where) == " 100 101 102 103\n"
    target = place.shop.target("counts:sql", place.repository)
    with front(target.address, place.repository) as url, OpenAI(base_url=url, api_key="none", timeout=300) as client:
        said = client.completions.create(model="counts:sql", prompt="a", max_tokens=2)
        assert (said.model, said.choices[0].text) == ("counts:sql", " 100 101")
        with pytest.raises(NotFoundError, match="counts:sql"):
            client.completions.create(model="counts:other", prompt="a", max_tokens=2)
    with pytest.raises(ForgeError) as caught:
        place.shop.target("counts:other", place.repository)
    assert (caught.value.what, caught.value.hint) == ("counts has no adapter 'other'", "its adapters: sql")


def test_an_adapter_the_model_lacks_is_refused_by_its_backend(place: Place) -> None:
    target = place.shop.target("counts", place.repository)
    request = replace(target.request("a"), lora="other")
    with pytest.raises(ForgeError, match="lora_name is 'other', and this model's LoRA adapters are sql"):
        list(place.shop.generate(target.address, request))


def test_a_persons_adapter_shares_no_inode_with_the_repository(place: Place) -> None:
    laid = place.repository / "_assets/counts/loras/sql"
    assert sorted(file.name for file in laid.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    for file in laid.iterdir():
        assert file.stat().st_ino != (place.folder / "adapter" / file.name).stat().st_ino


def test_an_answer_is_held_to_schema_or_regular_expression(place: Place) -> None:
    schema = place.folder / "schema.json"
    schema.write_text('{"type": "object"}')
    asked = ("generate", "counts", "a b", "--quiet", "--repository", str(place.repository))
    assert json.loads(place.invoke(*asked, "--json-schema", str(schema))) == {"json": {"type": "object"}}
    assert json.loads(place.invoke(*asked, "--regex", "[0-9]+", "--min-p", "0.1")) == {"regex": "[0-9]+"}
    target = place.shop.target("counts", place.repository)
    with pytest.raises(InferenceError, match="Failed to transform regex into a grammar"):
        list(place.shop.generate(target.address, replace(target.request("a"), guide=Guide.regex("["))))
    with front(target.address, place.repository) as url, OpenAI(base_url=url, api_key="none", timeout=300) as client:
        told = [{"role": "user", "content": "hello"}]
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}
        for wanted, said in (({"type": "json_object"}, {"json_object": True}), (form, {"json": {"type": "array"}})):
            answer = client.chat.completions.create(model="counts", messages=told, response_format=wanted)  # type: ignore[call-overload]
            assert json.loads(answer.choices[0].message.content or "") == said


def test_a_bias_goes_to_vllm_with_its_tokens_as_numbers(place: Place) -> None:
    target = place.shop.target("counts", place.repository)
    with front(target.address, place.repository) as url, OpenAI(base_url=url, api_key="none", timeout=300) as client:
        said = client.completions.create(model="counts", prompt="a", logit_bias={"5": -100})
        assert said.choices[0].text == " 0 1 2 3"


def test_an_answer_is_held_to_calls_of_tools(place: Place, tmp_path: Path) -> None:
    target = place.shop.target("counts", place.repository)
    tools: Any = [
        {
            "type": "function",
            "function": {"name": "add", "parameters": {"type": "object", "$defs": {"n": {"type": "integer"}}}},
        },
        {"type": "function", "function": {"name": "now"}},
    ]
    asked: Any = {"model": "counts", "messages": [{"role": "user", "content": "hello"}], "tools": tools}
    told = templated(target, tmp_path, "{# [TOOL_CALLS] #}{{ tools }}{{ messages[0].content }}")
    with front(target.address, told) as url, OpenAI(base_url=url, api_key="none", timeout=300) as client:
        create: Any = client.chat.completions.create
        (answer,) = create(**asked, tool_choice={"type": "function", "function": {"name": "add"}}).choices
        (call,) = answer.message.tool_calls
        # The stand-in's answer is what it was told to hold it to.
        assert (call.function.name, json.loads(call.function.arguments)) == (
            "add",
            {"json": tools[0]["function"]["parameters"]},
        )
        assert answer.finish_reason == "tool_calls"
        answer = create(**asked, tool_choice="required", parallel_tool_calls=False).choices[0]
        schema = json.loads(answer.message.content)["json"]
        assert (schema["type"], schema["minItems"], schema["maxItems"], list(schema["$defs"])) == ("array", 1, 1, ["n"])
        names = [each["properties"]["name"]["enum"] for each in schema["items"]["anyOf"]]
        assert names == [["add"], ["now"]]
        # Mistral's mark is a special token: it is asked for, and what counts says so.
        assert create(**asked).choices[0].message.content == " 0 1 2 3"


def test_a_model_is_added_asked_and_removed_while_another_answers(place: Place) -> None:
    place.shop.add([place.recipe("second")], repository=place.repository)
    target = place.shop.target("second", place.repository)
    assert "".join(chunk.text for chunk in place.shop.generate(target.address, target.request("a"))) == " 0 1 2 3"
    # A server that starts with both takes them in one after the other: vLLM counts what another loads meanwhile as its own.
    assert place.shop.launch(place.repository, free_ports()).turns == (("second",),)
    place.shop.remove("second", place.repository)
    assert [model.name for model in place.shop.models(place.repository)] == ["counts"]
    with pytest.raises(ForgeError):
        list(place.shop.generate(target.address, Request("second", "a", 1)))


def test_a_recipe_that_changed_is_taken_in_by_its_server(place: Place) -> None:
    place.shop.build([place.recipe("counts", "[serve.vllm]\nenable_log_requests = true\n")], repository=place.repository)
    place.shop.reload(place.repository)
    stated = json.loads((place.repository / "counts" / "1" / "model.json").read_text())
    assert stated["enable_log_requests"] is True
    assert place.invoke("generate", "counts", "a", "--quiet", "--repository", str(place.repository)) == " 0 1 2 3\n"


def test_a_model_whose_engine_died_is_loaded_again(place: Place) -> None:
    served = Served(place.shop.server(place.repository))

    def one_of_each() -> bool:
        return len(served.engines()) == len(processes.stubs(served.running.shared_memory)["counts"]) == 1

    assert soon(one_of_each), "those that were replaced go"
    (engine,) = served.engines()
    (stub,) = processes.stubs(served.running.shared_memory)["counts"]
    assert engine in stub.cpu, "while it computes the model is at work"
    os.kill(engine, signal.SIGKILL)
    assert soon(lambda: served.engines() not in ([], [engine]) and _answers(place))


def test_bench_counts_vllms_tokens_and_forbids_the_end(place: Place) -> None:
    data = place.folder / "prompts.jsonl"
    data.write_text('{"prompt": "a b c"}\n{"prompt": "yes or no"}\n')
    options = BenchOptions(requests=4, repeats=1, output_tokens=6, dataset=data, sweep={"concurrency": (1, 4)})
    found, file = place.shop.bench("counts", place.repository, options)
    assert results.read(file.read_bytes(), str(file)) == found
    assert (found.settings.counted, found.settings.ignore_end, found.subjects[0].runtime) == ("server", True, "vllm")
    for point in found.points:
        (repeat,) = point.repeats
        assert [(each.input_tokens, each.output_tokens, each.error) for each in repeat.records] == [(3, 6, "")] * 4
        assert repeat.triton["counts"].requests == 4
        assert {"ttft_p50", "itl_p50", "output_tokens_per_s"} <= set(point.figures)
    assert compare.compare(found, found).unlike == ()


def test_an_answer_that_may_end_has_its_own_tokens(place: Place) -> None:
    """Whoever is behind hears several tokens in one response: what is counted is tokens, and not responses."""
    data = place.folder / "brief.jsonl"
    data.write_text('{"prompt": "yes or no"}\n')
    options = BenchOptions(requests=2, repeats=1, output_tokens=6, dataset=data, ignore_end=False, stream=False, concurrency=1)
    found, _ = place.shop.bench("counts", place.repository, options)
    assert [each.output_tokens for each in found.points[0].repeats[0].records] == [1, 1]
    assert not found.settings.ignore_end


def test_nothing_is_wrong_in_the_repository(place: Place) -> None:
    assert place.shop.check(place.repository).findings == ()


def _answers(place: Place) -> bool:
    target = place.shop.target("counts", place.repository)
    try:
        return "".join(chunk.text for chunk in place.shop.generate(target.address, target.request("a"))) == " 0 1 2 3"
    except ForgeError:
        return False
