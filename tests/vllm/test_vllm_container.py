"""The runtime vllm in containers of a stand-in for Triton's image with vLLM, through every verb, on a real Docker engine.

With NVIDIA's own backend where `make originals` has brought it, and with the stand-in's, which has to be as strict.
"""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec import structs
from openai import OpenAI

import originals
from docker_fixture import environ, load, names
from forge.api.forge import Forge
from forge.client import Client, Guide
from forge.client.types import Request
from forge.errors import ForgeError, InferenceError, RecipeError, ServerError
from forge.recipe import verify_prompts
from forge.repository import publish
from forge.verify import transcripts
from forge.verify.judge import Outcome, Stage
from forge.verify.transcripts import Reference, Transcript
from forge.verify.verify import VerifyOptions
from openai_front import front
from patience import free_ports, soon
from standin import vllm_image
from tiny_served import adapter, checkpoint
from triton_fixture import Serving
from vllm_kit import Recipes

pytestmark = [pytest.mark.slow, pytest.mark.network]


@dataclass(frozen=True)
class Place(Recipes):
    """A repository with one model of vLLM in a container, and recipes beside it."""

    engine: str
    image: str

    @property
    def runtime(self) -> str:
        return f'executor = "docker"\nimage = "{self.image}"\n'

    @property
    def environ(self) -> dict[str, str]:
        return environ(self.engine)

    @property
    def address(self) -> str:
        return self.shop.target("counts", self.repository).address

    @property
    def log(self) -> str:
        return Path(self.shop.server(self.repository).log).read_text(errors="replace")

    def say(self, name: str = "counts", **words: object) -> str:
        target = self.shop.target(name, self.repository)
        request = Request(name, "a b", 4, **words)  # type: ignore[arg-type]
        return "".join(chunk.text for chunk in self.shop.generate(target.address, request))


@pytest.fixture(scope="module", params=["standin", "nvidias"])
def place(
    request: pytest.FixtureRequest, engine: str, serving: Serving, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    backend = originals.vllm_backend() if request.param == "nvidias" else None
    if request.param == "nvidias" and backend is None:
        pytest.skip(originals.MISSING)
    made = vllm_image.archive(serving.environment, shared, backend)
    load(engine, made.archive)
    folder = tmp_path_factory.mktemp("contained")
    found = Place(Forge(folder / "home", environ(engine)), folder, engine, made.reference)
    checkpoint(folder / "checkpoint")
    adapter(folder / "adapter")
    found.shop.build([found.recipe("counts")], repository=found.repository)
    running = found.shop.serve(found.repository, free_ports())
    yield found
    found.shop.stop(running)
    assert running.container not in names(engine)


def test_generate_chat_and_whole_answers(place: Place) -> None:
    where = ("--repository", str(place.repository))
    assert place.invoke("generate", "counts", "a b", "--quiet", *where) == " 0 1 2 3\n"
    assert place.invoke("generate", "counts", "a b", "--quiet", "--no-stream", "--max-tokens", "2", *where) == " 0 1\n"
    told = [json.loads(line) for line in place.invoke("generate", "counts", "a b", "--json", *where).splitlines()]
    assert (told[-1]["answers"], told[-1]["input_tokens"], told[-1]["output_tokens"]) == ([" 0 1 2 3"], 2, 4)
    assert told[-1]["sequences"][0]["finish_reason"] == "length"


def test_an_adapter_is_asked_with_by_its_name(place: Place) -> None:
    where = ("--repository", str(place.repository))
    assert place.invoke("generate", "counts", "a b", "--lora", "sql", "--quiet", *where) == " 100 101 102 103\n"
    with pytest.raises(InferenceError, match="other"):
        place.say(lora="other")


def test_a_stream_comes_token_by_token_with_log_probabilities(place: Place) -> None:
    request = Request("counts", "a b", 100, return_log_probs=True, return_token_counts=True)
    chunks = list(place.shop.generate(place.address, request))
    # vLLM joins tokens of one answer that come faster than they are read.
    assert "".join(chunk.text for chunk in chunks) == "".join(f" {count}" for count in range(100))
    assert len([chunk for chunk in chunks if chunk.text]) > 1
    assert [each for chunk in chunks for each in chunk.log_probs or ()] == [-0.5] * 100
    assert [each for chunk in chunks for each in chunk.tokens or ()] == list(range(100))
    assert (chunks[0].input_tokens, sum(chunk.output_tokens or 0 for chunk in chunks)) == (2, 100)


def test_words_that_the_backend_takes_otherwise_than_forges(place: Place) -> None:
    structured = {"sampling_parameters": '{"structured_outputs": {"regex": "[0-9]+"}}'}
    assert json.loads(place.say(inputs=structured)) == {"regex": "[0-9]+"}
    assert json.loads(place.say(guide=Guide.json_schema('{"type": "object"}'))) == {"json": {"type": "object"}}
    assert place.say(min_p=0.1) == " 0 1 2 3"
    with pytest.raises(InferenceError, match="mixes several answers up"):
        place.say(n=2)
    with pytest.raises(InferenceError) as caught:
        place.say(inputs={"sampling_parameters": '{"top_kk": 3}'})
    assert "`forge logs` says which" in caught.value.hint
    assert "top_kk" in place.log
    assert place.say() == " 0 1 2 3"


def test_openais_api_in_front_of_it(place: Place) -> None:
    with front(place.address, place.repository) as url, OpenAI(base_url=url, api_key="none", timeout=300) as client:
        said = client.chat.completions.create(
            model="counts", messages=[{"role": "user", "content": "hello"}], max_tokens=3, logprobs=True
        )
        choice = said.choices[0]
        assert (choice.message.content, choice.finish_reason) == (" 0 1 2", "length")
        assert choice.logprobs is not None
        assert [each.logprob for each in choice.logprobs.content or ()] == [-0.5] * 3
        stream = client.completions.create(model="counts", prompt="a", max_tokens=3, stream=True)
        assert "".join(part.choices[0].text for part in stream) == " 0 1 2"
        several = client.completions.create(model="counts", prompt="a", max_tokens=2, n=2)  # a request for each
        assert [choice.text for choice in several.choices] == [" 0 1", " 0 1"]


def test_whoever_leaves_is_not_worked_for(place: Place) -> None:
    with Client(place.address, timeout=300.0) as client:
        chunks = client.generate(Request("counts", "a", 20_000))
        next(chunks)
        chunks.close()
    assert soon(lambda: "aborted" in place.log)


def test_a_model_is_added_asked_and_removed_while_another_answers(place: Place) -> None:
    more = "[serve.vllm]\ngpu_memory_utilization = 0.3\n"
    place.shop.add([place.recipe("second", more)], repository=place.repository)
    assert place.say("second") == place.say() == " 0 1 2 3"
    place.shop.remove("second", place.repository)
    assert [model.name for model in place.shop.models(place.repository)] == ["counts"]


def test_a_recipe_that_changed_is_taken_in_by_its_server(place: Place) -> None:
    place.shop.build([place.recipe("counts", "[serve.vllm]\nenable_log_requests = true\n")], repository=place.repository)
    place.shop.reload(place.repository)
    stated = json.loads((place.repository / "counts" / "1" / "model.json").read_text())
    assert stated["enable_log_requests"] is True
    assert place.say() == " 0 1 2 3"


def test_a_model_whose_engine_died_is_loaded_again(place: Place) -> None:
    worker = _worker(place.shop.server(place.repository).pid)
    os.kill(worker, signal.SIGKILL)
    assert soon(lambda: _answers(place)), place.log[-2000:]


def test_it_is_verified_by_tokens_within_its_dtypes_allowance(place: Place) -> None:
    """The stand-in counts, so its checkpoint is one that counts: golden transcripts say so."""
    recipe = place.recipe("counts", '[verify]\nprompts = "prompts.txt"\nmax_tokens = 6\n')
    (place.folder / "prompts.txt").write_text("a b c\n")
    asked = verify_prompts.parse("a b c\n", "prompts.txt")
    held = publish.inventory(place.repository).find("counts")
    assert held is not None
    said = Transcript(
        name=asked[0].name,
        prompt="a b c",
        ids=(0, 1, 2),
        tokens=tuple(range(6)),
        log_probs=(-0.5,) * 6,
        rivals=(((0, -0.5), (7, -9.0)),) * 6,
        text=" 0 1 2 3 4 5",
        lengths=(2, 4, 6, 8, 10, 12),
    )
    digest, checkpoint_key = verify_prompts.digest(asked), held.keys["counts: model"]
    reference = Reference(by="a count", checkpoint=checkpoint_key, prompts=digest, max_tokens=6, transcripts=(said,))
    golden = recipe.with_suffix(".toml.golden.json")
    golden.write_text(transcripts.written(reference))
    found = place.shop.verify(recipe, place.repository, VerifyOptions(streaming=False))
    assert (found.faults, found.allowed.name) == ((), "bfloat16")
    assert {each.stage: each.outcome for each in found.verdicts} == dict.fromkeys(
        (Stage.TOKENIZER, Stage.ENGINE, Stage.DETOKENIZER, Stage.TRANSPORT), Outcome.SAME
    )
    golden.write_text(transcripts.written(structs.replace(reference, transcripts=(structs.replace(said, text=" 0 1 2 3 4"),))))
    assert place.shop.verify(recipe, place.repository, VerifyOptions(streaming=False)).failing == (Stage.DETOKENIZER,)


def test_nothing_is_wrong_in_the_repository(place: Place) -> None:
    assert place.shop.check(place.repository).findings == ()


def test_what_its_vllm_does_not_know_is_read_from_images(place: Place) -> None:
    recipe = place.recipe("wrong", "[serve.vllm]\nenable_prefix_cachin = true\n")
    config = place.folder / "strange" / "config.json"
    shutil.copytree(place.folder / "checkpoint", config.parent, dirs_exist_ok=True)
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": ["StrangeForCausalLM"]}))
    recipe.write_text(recipe.read_text().replace('path = "checkpoint"', 'path = "strange"'))
    with pytest.raises(RecipeError) as caught:
        place.shop.build([recipe], repository=place.folder / "refused")
    said = str(caught.value)
    assert "vLLM 0.13.0 has no StrangeForCausalLM, and neither has its transformers" in said
    assert "did you mean 'enable_prefix_caching'?" in said
    assert not (place.folder / "refused").exists()


def test_an_unchecked_argument_is_named_by_the_server(place: Place) -> None:
    """Nobody held it against the vLLM of the image."""
    place.shop.build([place.recipe("counts")], repository=place.folder / "wrong")
    file = place.folder / "wrong" / "counts" / "1" / "model.json"
    stated = json.loads(file.read_text())
    file.unlink()  # its blocks are the store's
    file.write_text(json.dumps({**stated, "max_modle_len": 5}))
    with pytest.raises(ServerError, match="max_modle_len"):
        place.shop.serve(place.folder / "wrong", free_ports())


def _worker(pid: int) -> int:
    """The stand-in's worker among all that ``pid`` started: the newest."""
    found: list[int] = []
    below = [pid]
    while below:
        threads = Path(f"/proc/{below.pop()}/task").iterdir()
        children = [child for thread in threads for child in (thread / "children").read_text().split()]
        below += map(int, children)
        found += [int(child) for child in children if b"time.sleep" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return max(found)


def _answers(place: Place) -> bool:
    try:
        return place.say() == " 0 1 2 3"
    except ForgeError:
        return False
