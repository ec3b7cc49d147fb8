"""Faults are planted in published copies of a tiny model, on one real Triton: each is found, and the failing stage is named."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from forge.api.forge import Forge
from forge.cli import main
from forge.errors import VerifyError
from forge.verify.judge import ENDS, TEMPLATE, Outcome, Stage
from forge.verify.verdicts import Report, next_steps
from forge.verify.verify import VerifyOptions
from patience import free_ports
from verify_kit import FAULTS, PROMPTS, checkpoint, recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes beside one tiny checkpoint."""
    place = tmp_path_factory.mktemp("verify")
    checkpoint(place / "checkpoint")
    return place


@pytest.fixture(scope="module")
def repository(shop: Forge, folder: Path) -> Iterator[Path]:
    """One good copy and one for each fault, served together; the golden transcripts are made of the good one."""
    place = folder / "repository"
    names = ("good", *FAULTS)
    shop.build([recipe(folder, name) for name in names], repository=place)
    for name, plant in FAULTS.items():
        plant(place, name)
    running = shop.serve(place, free_ports(), verify="never", restart=False)  # what was done to them is the point
    shop.verify(folder / "good.toml", place, VerifyOptions(update=True, streaming=False))
    for name in FAULTS:
        shutil.copyfile(folder / "good.toml.golden.json", folder / f"{name}.toml.golden.json")
    yield place
    shop.stop(running)


def servers(shop: Forge) -> set[str]:
    return {running.repository for running in shop.servers()}


def report(shop: Forge, repository: Path, name: str, *, streaming: bool = False) -> Report:
    return shop.verify(repository.parent / f"{name}.toml", repository, VerifyOptions(streaming=streaming))


def test_a_good_model_says_what_its_checkpoint_says(shop: Forge, repository: Path) -> None:
    found = report(shop, repository, "good", streaming=True)
    assert found.faults == ()
    asked = {(each.prompt, each.stage) for each in found.verdicts if each.outcome is Outcome.SAME}
    stages = (Stage.TOKENIZER, Stage.ENGINE, Stage.DETOKENIZER, Stage.TRANSPORT)
    assert asked == {(str(prompt["name"]), stage) for prompt in PROMPTS for stage in stages} | {
        (ENDS, Stage.TOKENIZER),
        (TEMPLATE, Stage.TOKENIZER),
    }
    assert {check.prompt: check.outcome for check in found.checks} == dict.fromkeys(
        ("stream and final flag", "max_tokens", "stop words", "streams at once", "seeds", "cancellation"), Outcome.SAME
    )


def test_a_changed_merge_is_the_tokenizers(shop: Forge, repository: Path) -> None:
    found = report(shop, repository, "merge")
    assert found.failing == (Stage.TOKENIZER,)
    assert "preprocessing's" in found.faults[0].what


def test_flipped_special_tokens_are_the_tokenizers_and_called_by_name(shop: Forge, repository: Path) -> None:
    found = report(shop, repository, "special")
    assert found.failing == (Stage.TOKENIZER,)
    assert {fault.prompt for fault in found.faults} >= {"short", "emoji", "code"}
    assert all("add_special_tokens" in fault.what for fault in found.faults)


def test_a_wrong_end_token_is_a_finding_of_its_own(shop: Forge, repository: Path) -> None:
    found = report(shop, repository, "ends", streaming=True)
    assert found.failing == (Stage.TOKENIZER,)
    assert [fault.prompt for fault in found.faults] == [ENDS]
    assert "preprocessing ends at 0" in found.faults[0].what


def test_a_scaled_layer_is_the_engines_and_no_near_tie(shop: Forge, repository: Path) -> None:
    found = report(shop, repository, "layer")
    assert found.failing == (Stage.ENGINE,)
    assert any("nats apart" in fault.what for fault in found.faults)
    differing = [fault.difference for fault in found.faults if fault.difference]
    assert all(each.expected_log_prob is not None and each.served_log_prob is not None for each in differing)


def test_dropped_spaces_are_the_detokenizers_in_both_places(shop: Forge, repository: Path) -> None:
    found = report(shop, repository, "spaces")
    assert found.failing == (Stage.DETOKENIZER,)
    told = " ".join(fault.what for fault in found.faults)
    assert "postprocessing: the same but for blanks" in told
    assert "the front model: the same but for blanks" in told


def test_mixed_streams_are_the_transports_seen_in_crowds(shop: Forge, repository: Path) -> None:
    found = report(shop, repository, "mixed", streaming=True)
    assert found.failing == (Stage.TRANSPORT,)
    assert [fault.prompt for fault in found.faults] == ["streams at once"]
    assert report(shop, repository, "mixed").passed


def forge(home: Path, *words: str) -> Result:
    return CliRunner().invoke(main, list(words), env={"FORGE_HOME": str(home)}, catch_exceptions=False)


def test_the_failing_is_named_with_its_own_exit_code(home: Path, repository: Path) -> None:
    asked = ("--repository", str(repository), "--no-streaming")
    good = forge(home, "verify", str(repository.parent / "good.toml"), *asked)
    assert (good.exit_code, "good says what its checkpoint says" in good.stdout) == (0, True)
    bad = forge(home, "verify", str(repository.parent / "merge.toml"), *asked)
    assert bad.exit_code == VerifyError.exit_code
    assert "failing: tokenizer" in bad.stdout
    assert next_steps()[Stage.TOKENIZER] in bad.stdout
    told = json.loads(forge(home, "verify", str(repository.parent / "merge.toml"), *asked, "--json", "-q").stdout)
    assert (told["passed"], told["failing"]) == (False, ["tokenizer"])
    assert {each["stage"] for each in told["verdicts"]} == {"tokenizer", "engine", "detokenizer", "transport"}


def test_a_build_that_must_pass_publishes_after_one_verdict(shop: Forge, folder: Path, repository: Path) -> None:
    before = servers(shop)
    proven = recipe(folder, "proven", "on_build = true\nstreaming = false")
    shutil.copyfile(folder / "good.toml.golden.json", folder / "proven.toml.golden.json")
    place = folder / "proven-repository"
    built = shop.build([proven], repository=place)
    (key,) = (key for name, key in built.models[0].keys.items() if name == "proven: verdict")
    held = shop.store.find(key)
    assert held is not None
    assert json.loads((held.path / "verdict.json").read_text())["passed"]
    assert all(step.held for step in shop.outlook(shop.plan([proven])))
    assert servers(shop) == before


def test_a_build_that_does_not_pass_publishes_nothing(shop: Forge, folder: Path, repository: Path) -> None:
    before = servers(shop)
    refused = recipe(folder, "refused", "on_build = true\nstreaming = false")
    stated = json.loads((folder / "good.toml.golden.json").read_text())
    told = stated["transcripts"][0]
    told["tokens"][3] += 1
    told["rivals"][3] = []
    (folder / "refused.toml.golden.json").write_text(json.dumps(stated))
    place = folder / "refused-repository"
    with pytest.raises(VerifyError, match=r"not published: the engine is failing"):
        shop.build([refused], repository=place)
    assert not (place / "forge.json").exists()
    assert [step.name for step in shop.outlook(shop.plan([refused])) if not step.held] == ["refused: verdict"]
    assert servers(shop) == before
