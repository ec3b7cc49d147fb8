"""vLLM itself on the CPU behind the real Triton: SmolLM2, a Qwen2 and a Gemma through the verbs. `make test-vllm`; it installs
3.4 GB. With FORGE_TEST_VLLM=few, as in CI, those that ask one server of SmolLM2."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from openai import BadRequestError, OpenAI
from safetensors import numpy as arrays
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]

import tiny_checkpoints
from forge.api.forge import Forge
from forge.client import Client, Guide
from forge.errors import ForgeError, InferenceError
from forge.machine import processes
from forge.schema import vllm_known
from forge.schema.values import BuildOptions, RuntimeKind
from forge.schema.vllm_known import VllmKnown
from forge.serve.lookup import Target
from forge.serve.server_types import Running
from forge.verify.judge import ENDS, TEMPLATE, Stage
from forge.verify.verify import VerifyOptions
from openai_front import front, templated
from patience import free_ports, soon
from shipped import SMOLLM2
from skeleton_kit import TOKENIZERS, lay
from vllm_kit import Served

CHOSEN = os.environ.get("FORGE_TEST_VLLM", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.network,
    pytest.mark.skipif(CHOSEN not in ("1", "few"), reason="vLLM itself takes 3.4 GB: `make test-vllm` runs it"),
]
ALL = pytest.mark.skipif(CHOSEN != "1", reason="it starts servers of its own, or takes minutes: `make test-vllm` runs it")
NAME = "smollm2-135m-instruct"
PROMPT = "The capital of France is"


@dataclass(frozen=True)
class Real:
    """SmolLM2 on vLLM, as `forge build --runtime vllm` and `forge serve` have it."""

    shop: Forge
    repository: Path
    running: Running

    @property
    def target(self) -> Target:
        return self.shop.target(NAME, self.repository)

    def say(self, prompt: str, **words: object) -> str:
        request = replace(self.target.request(prompt), **{"temperature": 0.0, "max_tokens": 12, **words})
        return "".join(chunk.text for chunk in self.shop.generate(self.target.address, request))


def small(recipe: str, name: str = NAME) -> str:
    """The recipe under another name, with little room for its cache."""
    room = "[serve.vllm]\nkv_cache_memory_bytes = 1073741824\n[serve]"
    return recipe.replace(f'name = "{NAME}"', f'name = "{name}"', 1).replace("[serve]", room, 1)


def noise(folder: Path) -> None:
    """A LoRA adapter for SmolLM2 as PEFT saves it, random and loud: over the values of each layer's attention, of which one has
    a rank of its own and some an alpha."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    made = {
        f"base_model.model.model.layers.{layer}.self_attn.v_proj.lora_{side}.weight": generator.normal(0, 0.3, shape)
        for layer in range(30)
        for rank in (2 if layer == 5 else 4,)
        for side, shape in (("A", (rank, 576)), ("B", (192, rank)))
    }
    arrays.save_file(  # pyright: ignore[reportUnknownMemberType]
        {name: value.astype(np.float32) for name, value in made.items()}, folder / "adapter_model.safetensors"
    )
    stated = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["v_proj"]}
    stated |= {"rank_pattern": {"layers.5.self_attn.v_proj": 2}, "alpha_pattern": {r".*\.layers\.1\d\..*v_proj": 3}}
    (folder / "adapter_config.json").write_text(json.dumps(stated))


RANDOM = """
name = "{family}"

[source]
path = "checkpoint"

[runtime]
kind = "vllm"

[convert]
dtype = "float32"

[build]
max_batch_size = 4
max_input_len = 128
max_seq_len = 256

[serve.vllm]
kv_cache_memory_bytes = 268435456
"""
SHAPE = {"hidden_size": 128, "head_dim": 32}
"""vLLM's attention on a CPU has no smaller heads."""


def random_checkpoint(family: str, folder: Path) -> Any:
    """A small random model of the family, with a tokenizer; transformers' own model comes back."""
    tokenizer = TOKENIZERS["byte_level"]
    begin, end = (tokenizer.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>"))
    marks = {"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": begin, "eos_token_id": end, "pad_token_id": end}
    more = {"use_sliding_window": False} if family == "qwen2" else {}
    folder.mkdir()
    model = tiny_checkpoints.make(family, folder, **SHAPE, **marks, **more)
    lay(folder, "byte_level")
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return model


@ALL
@pytest.mark.parametrize("family", ["qwen2", "gemma"])
def test_a_random_model_of_another_family_agrees_with_transformers(shop: Forge, tmp_path: Path, family: str) -> None:
    model = random_checkpoint(family, tmp_path / "checkpoint")
    recipe = tmp_path / f"{family}.toml"
    recipe.write_text(RANDOM.format(family=family))
    built = shop.build([recipe], repository=tmp_path / "repository")
    running = shop.serve(built.repository, free_ports())
    try:
        target = shop.target(family, built.repository)
        ids = TOKENIZERS["byte_level"].encode("Hello world").ids
        expected = tiny_checkpoints.says(model, ids, 8)
        request = replace(target.request("Hello world"), temperature=0.0, max_tokens=8, return_log_probs=True)
        for stream in (True, False):
            with Client(target.address) as client:
                said = [token for chunk in client.generate(replace(request, stream=stream)) for token in chunk.tokens]
            assert said == expected
        asked = tmp_path / "prompts.jsonl"
        asked.write_text("".join(json.dumps({"name": word, "text": word}) + "\n" for word in ("Hello world", "One, two")))
        report = shop.verify(family, built.repository, VerifyOptions(prompts=asked, max_tokens=8))
        assert report.faults == (), report.faults
        assert Stage.ENGINE in {each.stage for each in report.verdicts}
    finally:
        shop.stop(running)


@pytest.fixture(scope="module")
def real(shop: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    place = tmp_path_factory.mktemp("vllm") / "repository"
    recipe = place.parent / "smollm2.toml"
    recipe.write_text(f"{small(SMOLLM2.read_text())}\n[[lora]]\nname = 'noise'\npath = 'noise'\n")
    noise(place.parent / "noise")
    shop.build([recipe], BuildOptions(RuntimeKind.VLLM), repository=place)
    running = shop.serve(place, free_ports())
    yield Real(shop, place, running)
    shop.stop(running)
    assert processes.marked(running.shared_memory) == ()
    assert Served(running).left() == []


def test_it_says_what_the_model_says_streamed_or_whole(real: Real) -> None:
    whole = real.say(PROMPT, stream=False)
    assert whole.startswith(" Paris")
    assert real.say(PROMPT, stream=True) == whole


def test_tokens_come_one_by_one(real: Real) -> None:
    request = replace(real.target.request(PROMPT), temperature=0.0, max_tokens=12)
    chunks = [chunk for chunk in real.shop.generate(real.target.address, request) if chunk.text]
    assert len(chunks) > 3


def shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (here, there) in enumerate(pairs) if here != there), min(len(one), len(other)))


def test_eight_at_once_say_what_each_says_alone(real: Real) -> None:
    prompts = [f"One, two, three, {word}" for word in ("four", "five", "six", "seven", "eight", "nine", "ten", "eleven")]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(real.say, prompts))
    # vLLM does not promise the same sums in another batch: a near tie may end otherwise, and what follows it with it.
    alone = [real.say(prompt) for prompt in prompts]
    same = [shared(*pair) / len(pair[0]) for pair in zip(together, alone, strict=True)]
    assert all(said.strip() for said in together)
    assert sum(same) / len(same) > 0.5, same


def test_whoever_leaves_is_not_worked_for(real: Real) -> None:
    request = replace(real.target.request("Count to ten thousand: 1, 2, 3,"), max_tokens=3000, inputs={})
    with Client(real.target.address) as client:
        chunks = client.generate(request)
        next(chunks)
        chunks.close()
    assert real.say(PROMPT, max_tokens=2).strip()


def test_openais_client_chats_with_it(real: Real) -> None:
    with front(real.target.address, real.repository) as url, OpenAI(base_url=url, api_key="none", timeout=600) as client:
        asked = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
        said = client.chat.completions.create(model=NAME, messages=asked, max_tokens=16, temperature=0)  # type: ignore[arg-type]
        assert "Paris" in (said.choices[0].message.content or "")
        assert said.usage is not None
        assert said.usage.completion_tokens > 0


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Paris", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "clock")
]
TOOL_TEMPLATE = (
    "<|im_start|>system\nTools: {{ tools | tojson }}. Call one: "
    '<tool_call>{"name": ..., "arguments": {...}}</tool_call><|im_end|>\n'
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_held_to_calls_of_tools(real: Real, tmp_path: Path, stream: bool) -> None:
    asked = [{"role": "user", "content": "How is the weather in Rome?"}]
    named = {"type": "function", "function": {"name": "clock"}}
    with (
        front(real.target.address, templated(real.target, tmp_path, TOOL_TEMPLATE)) as url,
        OpenAI(base_url=url, api_key="none", timeout=600) as client,
    ):
        create: Any = client.chat.completions.create
        for choice, names in (("required", {"weather", "clock"}), (named, {"clock"})):
            said = create(
                model=NAME,
                messages=asked,
                tools=TOOLS,
                tool_choice=choice,
                parallel_tool_calls=False,
                max_tokens=64,
                temperature=0,
                stream=stream,
            )
            if stream:
                chunks = list(said)
                (call,) = [part.function for chunk in chunks for part in chunk.choices[0].delta.tool_calls or ()]
                name, arguments = call.name, call.arguments
                assert chunks[-1].choices[0].finish_reason == "tool_calls"
            else:
                (call,) = said.choices[0].message.tool_calls
                name, arguments = call.function.name, call.function.arguments
                assert said.choices[0].finish_reason == "tool_calls"
            assert name in names
            assert json.loads(arguments)["city"] in {"Paris", "Rome"}


def test_a_bias_forces_tokens_an_unknown_one_is_refused(real: Real) -> None:
    """It is the client's fault."""
    assert real.say(PROMPT, logit_bias={28: 100.0}, max_tokens=4) == real.say(PROMPT, logit_bias={28: 100.0}, max_tokens=2) * 2
    with front(real.target.address, real.repository) as url, OpenAI(base_url=url, api_key="none", timeout=600) as client:
        with pytest.raises(BadRequestError, match="999999"):
            client.completions.create(model=NAME, prompt=PROMPT, max_tokens=2, logit_bias={"999999": 5})
        said = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=2, temperature=0, logit_bias={"28": 100})
        assert said.choices[0].text == real.say(PROMPT, logit_bias={28: 100.0}, max_tokens=2)


def test_an_answer_is_held_to_schema_and_regular_expression(real: Real) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}}, "required": ["age"]}
    said = json.loads(real.say("Some JSON:", guide=Guide.json_schema(schema), max_tokens=64))
    assert isinstance(said["age"], int)
    assert re.fullmatch("(yes|no), [0-9]{2}", real.say("Is water wet?", guide=Guide.regex("(yes|no), [0-9]{2}")))
    assert real.say(PROMPT, min_p=0.5, temperature=1.0, seed=1)
    for guide in (Guide.regex("(["), Guide.json_schema({"type": 5})):
        with pytest.raises(InferenceError) as caught:
            real.say(PROMPT, guide=guide)
        assert re.search("regex|schema|grammar", str(caught.value), re.IGNORECASE), caught.value
    assert real.say(PROMPT).startswith(" Paris")


@ALL
def test_it_is_verified_by_tokens_other_weights_are_found(real: Real, tmp_path: Path) -> None:
    asked = tmp_path / "prompts.jsonl"
    told = ({"name": "text", "text": PROMPT}, {"name": "chat", "messages": [{"role": "user", "content": "Name a fruit."}]})
    asked.write_text("".join(json.dumps(each) + "\n" for each in told))
    good = real.shop.verify(NAME, real.repository, VerifyOptions(prompts=asked, max_tokens=12))
    assert good.faults == (), good.faults
    assert {each.stage for each in good.verdicts} == {Stage.TOKENIZER, Stage.ENGINE, Stage.DETOKENIZER, Stage.TRANSPORT}
    assert {each.prompt for each in good.verdicts} == {"text", "chat", ENDS, TEMPLATE}
    other = shutil.copytree(real.target.tokenizer, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.5.mlp.down_proj.weight"] *= 1.5
    (other / "model.safetensors").unlink()  # its blocks are the store's
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    wrong = real.shop.verify(
        NAME, real.repository, VerifyOptions(prompts=asked, max_tokens=12, streaming=False, checkpoint=other)
    )
    assert wrong.failing == (Stage.ENGINE,)


def test_an_adapter_says_something_else_beside_requests_without_one(real: Real) -> None:
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(real.say, PROMPT, lora=lora) for lora in ("", "noise")]
        plain, adapted = (each.result() for each in both)
    assert plain.startswith(" Paris")
    assert adapted != plain
    assert real.say(PROMPT, lora="noise") == adapted
    with front(real.target.address, real.repository) as url, OpenAI(base_url=url, api_key="none", timeout=600) as client:
        assert [model.id for model in client.models.list()] == [NAME, f"{NAME}:noise"]
        said = client.completions.create(model=f"{NAME}:noise", prompt=PROMPT, max_tokens=12, temperature=0)
        assert said.choices[0].text == adapted
    with pytest.raises(InferenceError, match="adapters are noise"):
        real.say(PROMPT, lora="silence")


@ALL
def test_an_adapter_is_verified_against_the_checkpoint_with_it_merged(real: Real, tmp_path: Path) -> None:
    asked = tmp_path / "prompts.jsonl"
    asked.write_text(json.dumps({"name": "text", "text": PROMPT}) + "\n")
    report = real.shop.verify(NAME, real.repository, VerifyOptions(prompts=asked, max_tokens=12, streaming=False, lora="noise"))
    assert report.faults == (), report.faults
    assert report.model == f"{NAME}:noise"


@ALL
def test_a_second_model_answers_beside_the_first(real: Real) -> None:
    recipe = real.repository.parent / "second.toml"
    text = (
        small(SMOLLM2.read_text(), "second").replace("max_beam_width = 4", "max_beam_width = 1").replace('"twin"', '"vllm"', 1)
    )
    recipe.write_text(text.replace("[source]", 'variant = "ngram"\n[source]', 1))
    real.shop.add([recipe], repository=real.repository)
    second = real.shop.target("second", real.repository)
    request = replace(second.request(PROMPT), temperature=0.0, max_tokens=12)
    with ThreadPoolExecutor(2) as threads:
        said = threads.submit(lambda: "".join(chunk.text for chunk in real.shop.generate(second.address, request)))
        assert real.say(PROMPT).startswith(" Paris")
        assert said.result().startswith(" Paris")
    real.shop.remove("second", real.repository)


@ALL
def test_a_killed_engine_fails_its_request_and_comes_back(real: Real) -> None:
    served = Served(real.running)
    (engine,) = served.engines()
    request = replace(real.target.request(PROMPT), max_tokens=3000)
    chunks = real.shop.generate(real.target.address, request)
    next(chunks)
    os.kill(engine, signal.SIGKILL)
    with pytest.raises(InferenceError, match="was not finished"):
        list(chunks)

    def back() -> bool:
        try:
            return served.engines() not in ([], [engine]) and bool(real.say(PROMPT))
        except ForgeError:
            return False

    assert soon(back)


def test_what_is_packaged_of_this_vllm_stands_in_it(real: Real) -> None:
    """Else a new pin would go on with the old one's arguments and architectures."""
    python = real.shop.launch(real.repository, real.running.ports).vllm
    assert python is not None
    file = real.repository.parent / "facts.json"
    asked = (str(python / "bin" / "python3"), "-", str(file))
    subprocess.run(asked, input=vllm_known.script(), text=True, check=True)
    assert msgspec.json.decode(file.read_bytes(), type=VllmKnown) == vllm_known.packaged(gpu=False)
