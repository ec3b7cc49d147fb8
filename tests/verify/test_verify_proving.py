"""Who is asked, and what speaks for the checkpoint: `forge verify` over a world in miniature."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

from fake_containers import FakeContainers
from fake_wiring import FakeWiring, World
from forge.api.forge import Forge
from forge.client.types import Chunk, Client, ModelMetadata, Request
from forge.errors import ForgeError, HostError, InferenceError, RepositoryError, SourceError, StepError, VerifyError
from forge.machine.containers import ContainerRun, Line
from forge.verify import transcripts
from forge.verify.interview import Stages
from forge.verify.reciter import InImage, OwnPython
from forge.verify.reference import Job, Reciter
from forge.verify.transcripts import Reference, Transcript
from forge.verify.verify import VerifyOptions

RECIPE = """
name = "tiny"
[source]
hub = "acme/tiny"
[runtime]
kind = "twin"
[verify]
prompts = "prompts.txt"
streaming = false
"""
PROMPTS = "one two three\nfour five\n"


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(sum(map(ord, word)) for word in text.split())


@dataclass
class Parrot:
    """Says the prompt again, in words or in ids; ``wrong`` says another last id."""

    wrong: bool = False

    def generate(self, address: str, request: Request) -> Iterator[Chunk]:
        if request.tokens:
            said = (*request.tokens[:-1], 7) if self.wrong else request.tokens
            yield Chunk("", final=True, tokens=said, log_probs=(-0.1,) * len(said))
            return
        yield Chunk(request.prompt, final=True)

    def ids(self, address: str, model: str, text: str, stop: tuple[str, ...] = ()) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return ids_of(text), ()

    def ends(self, address: str, model: str, further: tuple[str, ...] = ()) -> tuple[int, ...]:
        raise InferenceError("it tells no end id")

    def text(self, address: str, model: str, tokens: tuple[int, ...]) -> str:
        words = {ids_of(word)[0]: word for word in PROMPTS.split()}
        return " ".join(words.get(token, "?") for token in tokens)


@dataclass
class Speaker:
    """Speaks for a checkpoint that says its prompt again. ``missing`` is what keeps it from speaking."""

    missing: str = ""
    asked: list[Job] = field(default_factory=list[Job])

    def lacks(self) -> str:
        return self.missing

    def recite(self, folder: Path, job: Job, line: Callable[[str], None]) -> Reference:
        assert (folder / "config.json").is_file()
        self.asked.append(job)
        said = tuple(_transcript(prompt.name, prompt.text) for prompt in job.prompts)
        return Reference(
            by="a speaker", checkpoint=job.checkpoint, prompts=job.prompts_digest, max_tokens=job.max_tokens, transcripts=said
        )


def _transcript(name: str, text: str) -> Transcript:
    ids, words = ids_of(text), text.split()
    lengths = tuple(len(" ".join(words[: count + 1])) for count in range(len(words)))
    rivals = (((1, -0.1), (2, -4.0)),) * len(ids)
    return Transcript(
        name=name, prompt=text, ids=ids, tokens=ids, log_probs=(-0.1,) * len(ids), rivals=rivals, text=text, lengths=lengths
    )


@dataclass
class Stand:
    """A Forge over fakes, and what can be broken in it."""

    world: World
    parrot: Parrot
    speaker: Speaker
    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "tiny.toml"

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @cached_property
    def shop(self) -> Forge:
        return Forge(self.folder / "home", {}, self.world.events.append, _Wiring(self.folder / "home", self))


class _Wiring(FakeWiring):
    def __init__(self, home: Path, stand: Stand) -> None:
        super().__init__(home, stand.world)
        self._stand = stand

    @cached_property
    def client(self) -> Client:
        return self._stand.parrot

    @cached_property
    def stages(self) -> Stages:
        return self._stand.parrot

    def metadata(self, address: str, model: str) -> ModelMetadata:
        return ModelMetadata(model, {}, {})

    def reciter(self, python: str = "") -> Reciter:
        return self._stand.speaker


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    return Stand(World(), Parrot(), Speaker(), tmp_path)


@pytest.fixture
def built(stand: Stand) -> Stand:
    stand.shop.build([stand.recipe], repository=stand.models)
    return stand


def test_a_running_server_is_asked_and_left_running(built: Stand) -> None:
    running = built.shop.serve(built.models)
    assert built.shop.verify("tiny", options=VerifyOptions(prompts=built.folder / "prompts.txt", streaming=False)).passed
    assert built.shop.servers() == (running,)


def test_what_no_server_offers_is_served_for_the_time_being(built: Stand) -> None:
    assert built.shop.verify(built.recipe, built.models).passed
    assert built.shop.servers() == ()
    assert [event.step for event in built.world.events if event.kind == "made"].count("server") == 1


def test_what_is_asked_just_now_is_told_with_how_many(built: Stand) -> None:
    assert built.shop.verify(built.recipe, built.models).passed
    told = [event for event in built.world.events if event.step.startswith("verify: ")]
    assert [event.kind for event in told] == ["start", "made", "start", "log", "log", "made"]
    assert {event.step for event in told} == {"verify: the checkpoint", "verify: tiny"}
    assert [event.text for event in told if event.kind == "log"] == ["prompt 1 of 2: line 1", "prompt 2 of 2: line 2"]


def test_nothing_is_built_for_it(stand: Stand) -> None:
    with pytest.raises(RepositoryError, match="neither served nor published"):
        stand.shop.verify(stand.recipe, stand.models)
    assert stand.world.origin.fetches == 0


def test_a_path_of_no_file_is_no_model(built: Stand) -> None:
    with pytest.raises(SourceError, match="there is no such file") as error:
        built.shop.verify("recipes/smollm2-135m-instruct.tml", built.models)
    assert "did you mean 'smollm2-135m-instruct'" in error.value.hint


def test_what_is_published_is_told_where_the_model_is_not(built: Stand) -> None:
    with pytest.raises(RepositoryError, match="neither served nor published") as error:
        built.shop.verify("tini", built.models)
    assert error.value.hint.startswith("did you mean 'tiny'? It holds: tiny.")


def test_a_server_is_stopped_also_where_the_verification_fails(built: Stand) -> None:
    built.speaker.missing = "no torch"
    with pytest.raises(HostError, match="no torch"):
        built.shop.verify(built.recipe, built.models)
    assert built.shop.servers() == ()


def test_without_transformers_and_golden_transcripts_it_says_what_to_install(built: Stand) -> None:
    built.speaker.missing = "this Python has not got torch"
    with pytest.raises(HostError, match=r"triton-forge\[verify\]"):
        built.shop.verify(built.recipe, built.models)


def test_an_engine_that_says_another_token_is_named(built: Stand) -> None:
    built.parrot.wrong = True
    report = built.shop.verify(built.recipe, built.models)
    assert [str(stage) for stage in report.failing][:1] == ["engine"]


def test_golden_transcripts_are_written_on_request_and_replace_the_checkpoint(built: Stand) -> None:
    built.shop.verify(built.recipe, built.models, VerifyOptions(update=True))
    golden = transcripts.read((built.folder / "tiny.toml.golden.json").read_bytes(), "g")
    assert [said.prompt for said in golden.transcripts] == PROMPTS.splitlines()
    built.speaker.missing = "no torch"
    report = built.shop.verify(built.recipe, built.models)
    assert report.passed
    assert report.reference == "golden transcripts of a speaker"
    assert len(built.speaker.asked) == 1


@pytest.mark.parametrize("options", [VerifyOptions(fresh=True), VerifyOptions(max_tokens=9)], ids=["fresh", "another question"])
def test_golden_transcripts_do_not_answer_what_they_were_not_asked(built: Stand, options: VerifyOptions) -> None:
    built.shop.verify(built.recipe, built.models, VerifyOptions(update=True))
    assert built.shop.verify(built.recipe, built.models, options).reference == "a speaker"
    assert len(built.speaker.asked) == 2


def test_golden_transcripts_need_a_recipe_file_not_a_name(built: Stand) -> None:
    with pytest.raises(RepositoryError, match="beside a recipe"):
        built.shop.verify("tiny", built.models, VerifyOptions(update=True))


def test_prompts_needing_a_chat_template_are_left_out_without(built: Stand) -> None:
    asked = built.folder / "prompts.jsonl"
    asked.write_text('{"name": "a", "text": "one two"}\n{"name": "b", "messages": [{"role": "user", "content": "three"}]}\n')
    report = built.shop.verify(built.recipe, built.models, VerifyOptions(prompts=asked))
    assert {verdict.prompt for verdict in report.verdicts} == {"a"}
    assert "b was not asked: this model has no chat template" in report.notes
    asked.write_text('{"name": "b", "messages": [{"role": "user", "content": "three"}]}\n')
    with pytest.raises(ForgeError, match="nothing to compare"):
        built.shop.verify(built.recipe, built.models, VerifyOptions(prompts=asked))


def test_a_build_needing_a_verdict_is_refused_without_reference(stand: Stand) -> None:
    stand.recipe.write_text(RECIPE + "on_build = true\n")
    stand.speaker.missing = "this Python has not got torch"
    with pytest.raises(HostError, match="on_build"):
        stand.shop.build([stand.recipe], repository=stand.models)
    assert stand.world.origin.fetches == 0


def test_a_verdict_is_a_step_keyed_by_its_inputs(stand: Stand) -> None:
    def steps() -> dict[str, str]:
        return {step.name: step.key for step in stand.shop.plan([stand.recipe]).steps}

    without = steps()
    assert "tiny: verdict" not in without
    stand.recipe.write_text(RECIPE + "on_build = true\n")
    first = steps()
    assert {name: key for name, key in first.items() if name != "tiny: verdict"} == without
    stand.folder.joinpath("prompts.txt").write_text("six seven\n")
    second = steps()
    stand.recipe.write_text(RECIPE + "on_build = true\ntie = 0.5\n")
    third = steps()
    assert len({each["tiny: verdict"] for each in (first, second, third)}) == 3


def test_a_build_verifies_once_and_publishes_only_what_passes(stand: Stand) -> None:
    stand.recipe.write_text(RECIPE + "on_build = true\n")
    stand.parrot.wrong = True
    with pytest.raises(VerifyError, match="engine is failing"):
        stand.shop.build([stand.recipe], repository=stand.models)
    assert not (stand.models / "forge.json").exists()
    stand.parrot.wrong = False
    model = stand.shop.build([stand.recipe], repository=stand.models).models[0]
    assert model.keys["tiny: verdict"] in model.held
    stand.shop.build([stand.recipe], repository=stand.models)
    assert len(stand.speaker.asked) == 2
    assert stand.shop.servers() == ()
    assert list((stand.folder / "home" / "verifying").iterdir()) == []


def test_this_python_is_not_asked_for_missing_packages(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    assert "has not got torch and transformers" in OwnPython(os.environ, str(bare)).lacks()
    assert "cannot be started" in OwnPython(os.environ, str(tmp_path / "none")).lacks()
    with pytest.raises(HostError, match="--python"):
        OwnPython(os.environ, str(bare)).recite(tmp_path, Job("k", "p", (), 1), lambda _: None)


def test_the_references_python_is_offline_and_told_no_secret(tmp_path: Path) -> None:
    told = tmp_path / "told"
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nenv > {told}\n")
    python.chmod(0o755)
    assert OwnPython({**os.environ, "AWS_SECRET_ACCESS_KEY": "secret", "HF_TOKEN": "secret"}, str(python)).lacks() == ""
    assert "=secret\n" not in told.read_text()
    assert {"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1"} <= set(told.read_text().splitlines())


@pytest.mark.slow
def test_a_checkpoint_transformers_cannot_read_is_told_its_reason(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="could not answer for the checkpoint"):
        OwnPython(os.environ).recite(tmp_path, Job("k", "p", (), 1), lambda _: None)


def test_the_reference_image_mounts_the_checkpoint_without_network(tmp_path: Path) -> None:
    class Image(FakeContainers):
        def run(self, run: ContainerRun, line: Line) -> None:
            self.ran.append(run)
            job = json.loads(run.inputs["job"].read_text())
            said = Reference(by="it", checkpoint=job["checkpoint"], prompts="p", max_tokens=job["max_tokens"])
            (run.out / run.promised[0]).write_text(transcripts.written(said))

    image = Image()
    found = InImage(image, "sha256:1", "a" * 64, tmp_path / "logs").recite(tmp_path, Job("k", "p", (), 4), lambda _: None)
    (run,) = image.ran
    assert (found.checkpoint, found.max_tokens) == ("k", 4)
    assert run.inputs["model"] == tmp_path
    assert run.inputs["script"].read_text().startswith('"""Runs apart from forge')
    assert run.command.argv[:2] == ("python3", "/forge/script")
    assert run.command.env["HF_HUB_OFFLINE"] == "1"


def test_an_engine_is_verified_in_its_image_before_publishing(stand: Stand) -> None:
    stand.recipe.write_text(RECIPE.replace('kind = "twin"', 'kind = "engine"') + "on_build = true\n")
    model = stand.shop.build([stand.recipe], repository=stand.models).models[0]
    held = stand.shop.store.find(model.keys["tiny: verdict"])
    assert held is not None
    assert json.loads((held.path / "verdict.json").read_text())["allowed"]["name"] == "bfloat16"
    assert stand.shop.servers() == ()
