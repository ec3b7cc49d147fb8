"""`forge verify` of vLLM's models: faults are planted in published copies of a tiny checkpoint, which vLLM's stand-in speaks.

The same of vLLM itself: test_vllm_real.py. Of a model that counts, in a container: test_vllm_container.py.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from forge.api.forge import Forge
from forge.errors import VerifyError
from forge.plan.preview import provenance
from forge.verify.judge import ENDS, TEMPLATE, Outcome, Stage
from forge.verify.verdicts import Report
from forge.verify.verify import VerifyOptions
from patience import free_ports
from triton_fixture import Opened
from verify_kit import PROMPTS, checkpoint, edited, one_layer_scaled, recipe
from vllm_kit import environment

pytestmark = [pytest.mark.slow, pytest.mark.network]


def _model(repository: Path, name: str) -> Path:
    return repository / "_assets" / name / "model"


def another_template(repository: Path, name: str) -> None:
    """Conversations get a word more."""
    edited(_model(repository, name) / "chat_template.jinja", lambda text: text.replace("[assistant]", "[the assistant]"))


def another_end(repository: Path, name: str) -> None:
    """Answers end with the token that begins texts, and not with the checkpoint's."""
    folder = _model(repository, name)
    edited(folder / "tokenizer_config.json", lambda text: json.dumps({**json.loads(text), "eos_token": "<s>"}))
    edited(folder / "generation_config.json", lambda text: json.dumps({**json.loads(text), "eos_token_id": 0}))


def another_layer(repository: Path, name: str) -> None:
    one_layer_scaled(repository, name, "model")


def blanks_dropped(repository: Path, name: str) -> None:
    """The decoder of the tokenizer leaves blanks out."""

    def change(text: str) -> str:
        stated = json.loads(text)
        without = {"type": "Replace", "pattern": {"String": " "}, "content": ""}
        stated["decoder"] = {"type": "Sequence", "decoders": [stated["decoder"], without]}
        return json.dumps(stated)

    edited(_model(repository, name) / "tokenizer.json", change)


FAULTS: Mapping[str, Callable[[Path, str], None]] = {
    "template": another_template,
    "ends": another_end,
    "layer": another_layer,
    "blanks": blanks_dropped,
}
"""Name of a published copy -> what is wrong with it."""


@pytest.fixture(scope="module")
def forged(home: Path, opened: Opened) -> Forge:
    return opened(home / "vllm-verify")


@pytest.fixture(scope="module")
def folder(forged: Forge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes beside one tiny checkpoint that the stand-in is to speak, in the place of 3.4 GB of vLLM."""
    place = checkpoint(tmp_path_factory.mktemp("verify") / "checkpoint").parent
    config = place / "checkpoint" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "standin_speaks": True}))
    (step,) = [step for step in forged.plan([written(place, "good")]).steps if step.name == "vllm environment"]
    forged.store.make(step.key, provenance(step), environment)
    return place


def written(folder: Path, name: str, more: str = "") -> Path:
    file = recipe(folder, name, more)
    text = file.read_text().replace('kind = "twin"', 'kind = "vllm"\ngpus = "none"').replace("instances = 2", "")
    file.write_text(text + '[convert]\ndtype = "float32"\n')
    return file


@pytest.fixture(scope="module")
def repository(forged: Forge, folder: Path) -> Iterator[Path]:
    """One good copy and one for each fault, served together; the golden transcripts are made of the good one."""
    place = folder / "repository"
    names = ("good", *FAULTS)
    forged.build([written(folder, name) for name in names], repository=place)
    for name, plant in FAULTS.items():
        plant(place, name)
    running = forged.serve(place, free_ports(), verify="never", restart=False)  # what was done to them is the point
    forged.verify(folder / "good.toml", place, VerifyOptions(update=True, streaming=False))
    for name in FAULTS:
        shutil.copyfile(folder / "good.toml.golden.json", folder / f"{name}.toml.golden.json")
    yield place
    forged.stop(running)


def report(forged: Forge, repository: Path, name: str, *, streaming: bool = False) -> Report:
    return forged.verify(repository.parent / f"{name}.toml", repository, VerifyOptions(streaming=streaming))


def test_a_good_model_matches_its_checkpoint_token_by_token(forged: Forge, repository: Path) -> None:
    found = report(forged, repository, "good", streaming=True)
    assert found.faults == ()
    assert found.allowed.name == "float32"
    asked = {(each.prompt, each.stage) for each in found.verdicts if each.outcome is Outcome.SAME}
    stages = (Stage.TOKENIZER, Stage.ENGINE, Stage.DETOKENIZER, Stage.TRANSPORT)
    own = {(ENDS, Stage.TOKENIZER), (TEMPLATE, Stage.TOKENIZER)}
    assert asked == {(str(prompt["name"]), stage) for prompt in PROMPTS for stage in stages} | own
    assert {check.prompt: check.outcome for check in found.checks} == dict.fromkeys(
        ("stream and final flag", "max_tokens", "stop words", "streams at once", "seeds", "cancellation"), Outcome.SAME
    )


def test_another_chat_template_is_the_tokenizers(forged: Forge, repository: Path) -> None:
    found = report(forged, repository, "template")
    assert found.failing == (Stage.TOKENIZER,)
    assert [fault.prompt for fault in found.faults] == [TEMPLATE]


def test_a_wrong_end_token_is_a_finding_of_its_own(forged: Forge, repository: Path) -> None:
    found = report(forged, repository, "ends")
    assert found.failing == (Stage.TOKENIZER,)
    assert [fault.prompt for fault in found.faults] == [ENDS]
    assert "the checkpoint ends at 1" in found.faults[0].what


def test_other_weights_are_the_engines(forged: Forge, repository: Path) -> None:
    found = report(forged, repository, "layer")
    assert found.failing == (Stage.ENGINE,)
    assert any("nats apart" in fault.what for fault in found.faults)


def test_dropped_blanks_are_the_detokenizers(forged: Forge, repository: Path) -> None:
    found = report(forged, repository, "blanks")
    assert found.failing == (Stage.DETOKENIZER,)
    assert all("the same but for blanks" in fault.what for fault in found.faults)


def test_a_build_that_must_pass_is_verified_before_publishing(forged: Forge, folder: Path, repository: Path) -> None:
    good = folder / "good.toml.golden.json"
    proven = written(folder, "proven", "on_build = true\nstreaming = false")
    shutil.copyfile(good, folder / "proven.toml.golden.json")
    built = forged.build([proven], repository=folder / "proven-repository")
    assert "proven: verdict" in built.models[0].keys
    refused = written(folder, "refused", "on_build = true\nstreaming = false")
    stated = json.loads(good.read_text())
    stated["transcripts"][0]["tokens"][3] += 1
    stated["transcripts"][0]["rivals"][3] = []
    (folder / "refused.toml.golden.json").write_text(json.dumps(stated))
    with pytest.raises(VerifyError, match="not published: the engine is failing"):
        forged.build([refused], repository=folder / "refused-repository")
    assert not (folder / "refused-repository" / "forge.json").exists()
