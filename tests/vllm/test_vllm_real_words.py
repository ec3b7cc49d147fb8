"""What a request asks of the real vLLM beside its prompt: penalties, how an answer ends, several answers; and its engine is
free when all have left. `make test-vllm`; it installs 3.4 GB."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from forge.api.forge import Forge
from forge.client import Client
from forge.client.types import Chunk, Request
from forge.errors import InferenceError
from forge.schema.values import BuildOptions, RuntimeKind
from forge.serve.lookup import Target
from patience import free_ports, soon
from shipped import SMOLLM2
from vllm_kit import Served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.skipif(os.environ.get("FORGE_TEST_VLLM") != "1", reason="vLLM itself takes 3.4 GB: `make test-vllm` runs it"),
]
NAME = "smollm2-135m-instruct"
PROMPT = "The capital of France is"
AGAIN = "one two one two one two one two one two one two one two"
"""A text that the model goes on repeating."""
AT_WORK = "EngineCore loop active."
IDLE = "EngineCore waiting for work."


@dataclass(frozen=True)
class Words:
    """A server whose vLLM tells what it does."""

    served: Served
    target: Target

    def request(self, prompt: str, **words: object) -> Request:
        return replace(self.target.request(prompt), **{"temperature": 0.0, "max_tokens": 12, **words})

    def chunks(self, prompt: str, **words: object) -> list[Chunk]:
        with Client(self.target.address) as client:
            return list(client.generate(self.request(prompt, **words)))

    def say(self, prompt: str, **words: object) -> str:
        return "".join(chunk.text for chunk in self.chunks(prompt, **words))

    def tokens(self, prompt: str, **words: object) -> list[int]:
        return [token for chunk in self.chunks(prompt, return_log_probs=True, **words) for token in chunk.tokens]


@pytest.fixture(scope="module")
def words(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Words]:
    shop = Forge(home, {**os.environ, "VLLM_LOGGING_LEVEL": "DEBUG"})
    place = tmp_path_factory.mktemp("words")
    recipe = place / "smollm2.toml"
    more = "[serve.vllm]\nkv_cache_memory_bytes = 1073741824\nenable_log_requests = true\n[serve]"
    recipe.write_text(SMOLLM2.read_text().replace("[serve]", more, 1))
    root = shop.build([recipe], BuildOptions(RuntimeKind.VLLM), repository=place / "repository").repository
    running = shop.serve(root, free_ports())
    yield Words(Served(running), shop.target(NAME, root))
    shop.stop(running)


@pytest.mark.parametrize(
    "penalty",
    [{"repetition_penalty": 1.8}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}],
    ids=lambda each: next(iter(each)),
)
def test_a_penalty_ends_repetition(words: Words, penalty: dict[str, float]) -> None:
    plain, penalised = (words.tokens(AGAIN, max_tokens=40, **said) for said in ({}, penalty))
    most, fewer = (max(Counter(said).values()) for said in (plain, penalised))
    assert most >= 10, "without one it repeats"
    assert fewer < most / 2


def test_a_penalty_that_vllm_refuses_is_the_requests_error(words: Words) -> None:
    with pytest.raises(InferenceError, match="presence_penalty"):
        words.say(PROMPT, presence_penalty=3.0)


def test_an_answer_is_kept_from_its_end_and_no_longer(words: Words) -> None:
    asked = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"
    short = words.tokens(asked, max_tokens=100)
    assert len(short) < 40
    assert len(words.tokens(asked, max_tokens=100, min_tokens=60)) >= 60


def test_an_answer_ends_before_a_stop_text_and_without_it(words: Words) -> None:
    whole = words.say("One, two, three,", max_tokens=24)
    stop = whole.split(",")[1]
    assert words.say("One, two, three,", max_tokens=24, stop=(stop,)) == whole.partition(stop)[0]
    (last,) = words.chunks("One, two, three,", max_tokens=24, stop=(stop,), stream=False)
    assert last.text == whole.partition(stop)[0]


def test_words_that_are_forbidden_are_not_said(words: Words) -> None:
    assert " Paris" in words.say(PROMPT)
    said = words.say(PROMPT, bad=(" Paris", "Paris"))
    assert said.strip()
    assert "Paris" not in said


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_are_told_apart(words: Words, stream: bool) -> None:
    request = words.request("Once upon a time", n=3, temperature=1.5, seed=7, max_tokens=16, stream=stream)
    said: Counter[int] = Counter()
    texts = ["", "", ""]
    with Client(words.target.address) as client:
        for chunk in client.generate(request):
            said[chunk.index] += 1
            texts[chunk.index] += chunk.text
    assert set(said) == {0, 1, 2}
    assert len(set(texts)) == 3
    likeliest = words.say("Once upon a time", n=1, max_tokens=16)
    assert likeliest.strip()


def test_whoever_leaves_frees_the_engine(words: Words) -> None:
    """vLLM tells that it gave the requests up, and then that it has nothing to do: long before they would have ended."""
    with Client(words.target.address) as client, ThreadPoolExecutor(4) as threads:
        asked = [words.request(f"Count to {n} thousand: 1, 2, 3,", max_tokens=3000, min_tokens=3000) for n in range(1, 5)]
        streams = [client.generate(each) for each in asked]
        list(threads.map(next, streams))
        assert words.served.log.rfind(AT_WORK) > words.served.log.rfind(IDLE)
        gone = words.served.log.count(" aborted.")
        before = words.served.log.count(IDLE)
        for each in streams:
            each.close()
    assert soon(lambda: words.served.log.count(" aborted.") >= gone + 4)
    assert soon(lambda: words.served.log.count(IDLE) > before)
    assert words.served.log.rfind(IDLE) > words.served.log.rfind(AT_WORK)
