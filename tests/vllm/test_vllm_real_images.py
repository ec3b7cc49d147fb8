"""A small random LLaVA on vLLM itself, on the CPU behind the real Triton: what it is shown reaches it. `make test-vllm`."""

import base64
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from openai import OpenAI
from PIL import Image

from forge.api.forge import Forge
from forge.cli import main
from forge.errors import InferenceError
from forge.serve.lookup import Target
from openai_front import front
from patience import free_ports
from tiny_llava import Llava, llava

pytestmark = [
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.skipif(os.environ.get("FORGE_TEST_VLLM") != "1", reason="vLLM itself takes 3.4 GB: `make test-vllm` runs it"),
]
RECIPE = """
name = "llava"
[source]
path = "checkpoint"
[runtime]
kind = "vllm"
gpus = "none"
[convert]
dtype = "float32"
[build]
max_batch_size = 4
max_input_len = 128
max_seq_len = 256
[serve.vllm]
model_impl = "transformers"
kv_cache_memory_bytes = 268435456
"""
QUESTION, COUNT, CLOSE = "Hello world", 8, 0.002


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (80, 70, 3), dtype=np.uint8))


def encoded(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


IMAGES = [noise(0), noise(1)]


@dataclass(frozen=True)
class Seeing:
    shop: Forge
    target: Target
    model: Llava

    def says(self, prompt: str, images: Sequence[Image.Image], *, stream: bool) -> tuple[list[int], list[float]]:
        request = replace(
            self.target.request(prompt),
            images=tuple(map(encoded, images)),
            temperature=0.0,
            max_tokens=COUNT,
            return_log_probs=True,
            stream=stream,
        )
        chunks = list(self.shop.generate(self.target.address, request))
        return [token for each in chunks for token in each.tokens], [value for each in chunks for value in each.log_probs]


@pytest.fixture(scope="module")
def seeing(shop: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeing]:
    folder = tmp_path_factory.mktemp("llava")
    (folder / "checkpoint").mkdir()
    model = llava(folder / "checkpoint")
    (folder / "llava.toml").write_text(RECIPE)
    built = shop.build([folder / "llava.toml"], repository=folder / "repository")
    running = shop.serve(built.repository, free_ports())
    yield Seeing(shop, shop.target("llava", built.repository), model)
    shop.stop(running)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("shown", [[], IMAGES[:1], IMAGES[1:], IMAGES], ids=["none", "one", "another", "both"])
def test_of_images_it_says_what_transformers_says(seeing: Seeing, shown: list[Image.Image], stream: bool) -> None:
    prompt = "<image>" * len(shown) + QUESTION
    tokens, likely = seeing.says(prompt, shown, stream=stream)
    expected, values = seeing.model.says(prompt, shown, COUNT)
    assert tokens == expected
    assert likely == pytest.approx(values, abs=CLOSE)


def test_another_image_has_other_log_probabilities(seeing: Seeing) -> None:
    one, other = (seeing.says(f"<image>{QUESTION}", [image], stream=False)[1][0] for image in IMAGES)
    assert abs(one - other) > 10 * CLOSE


def templated(images: int) -> str:
    return f"<|im_start|>{'<image>' * images}{QUESTION}<|im_end|><|im_start|>"


def test_an_image_goes_from_the_command_line_to_the_model(seeing: Seeing, tmp_path: Path) -> None:
    runner = CliRunner(env={"FORGE_HOME": str(seeing.shop.home)})
    asked = ("generate", "llava", QUESTION, "--chat", "--max-tokens", str(COUNT), "--logprobs", "--json")
    for number, image in enumerate(IMAGES):
        file = tmp_path / f"{number}.png"
        file.write_bytes(encoded(image))
        done = runner.invoke(main, (*asked, "--image", str(file), "--repository", str(seeing.target.repository)))
        assert done.exit_code == 0, done.output
        values = seeing.model.says(templated(1), [image], COUNT)[1]
        assert likelihoods(done.stdout) == pytest.approx(values, abs=CLOSE)


def likelihoods(told: str) -> list[float]:
    """Of each token that `forge generate --json` has said."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in told.splitlines()]
    return [value for line in lines for value in line.get("log_probs", ())]


@pytest.mark.parametrize("number", [0, 1])
def test_an_image_goes_from_openais_client_to_the_model(seeing: Seeing, number: int) -> None:
    url = f"data:image/png;base64,{base64.b64encode(encoded(IMAGES[number])).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    asked: Any = [{"role": "user", "content": parts}]
    values = seeing.model.says(templated(1), [IMAGES[number]], COUNT)[1]
    with (
        front(seeing.target.address, seeing.target.repository) as address,
        OpenAI(base_url=address, api_key="none", timeout=600) as client,
    ):
        said = client.chat.completions.create(model="llava", messages=asked, max_tokens=COUNT, temperature=0, logprobs=True)
    answered = said.choices[0].logprobs
    assert answered is not None
    assert [each.logprob for each in answered.content or ()] == pytest.approx(values, abs=CLOSE)


def test_an_image_without_a_place_fails_its_request_alone(seeing: Seeing) -> None:
    """A place in the prompt."""
    with pytest.raises(InferenceError) as refused:
        seeing.says(QUESTION, IMAGES[:1], stream=False)
    assert "EngineGenerateError" not in str(refused.value)
    again = f"<image>{QUESTION}"
    assert seeing.says(again, IMAGES[:1], stream=True)[0] == seeing.model.says(again, IMAGES[:1], COUNT)[0]
    assert seeing.says(QUESTION, [], stream=False)[0] == seeing.model.says(QUESTION, [], COUNT)[0]
