"""What `forge build` and `forge add` say of what they have published: the real command line over a store that fakes filled."""

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fake_wiring import FakeWiring, World
from fakes import tiny_checkpoint
from forge.api.forge import Forge
from forge.api.wiring import Wiring
from forge.build.sources.source import Origin
from forge.cli import main
from forge.schema.values import BuildOptions, Host, SourceKind

RECIPE = '[source]\npath = "checkpoint"\n[runtime]\nkind = "twin"\n'
UNREADABLE = b'{"model": '


class OnThisMachine(FakeWiring):
    """Sources and machine are the real ones, so that a build by the command line comes to the same keys."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, World())
        self._real = Wiring(home, dict(os.environ), lambda _: None)

    @cached_property
    def origins(self) -> Mapping[SourceKind, Origin]:
        return self._real.origins

    def host(self) -> Host:
        return self._real.host()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    (tmp_path / "checkpoint").mkdir()
    for path, content in tiny_checkpoint().items():
        (tmp_path / "checkpoint" / path).write_bytes(content)
    return tmp_path


def forge(place: Path, verb: str, name: str, *words: str) -> Result:
    """Run a verb on a recipe of that name; each of its steps has been made before."""
    recipe = place / f"{name}.toml"
    recipe.write_text(f'name = "{name}"\n{RECIPE}')
    shop = Forge(place / "home", {}, wiring=OnThisMachine(place / "home"))
    shop.build([recipe], repository=place / "elsewhere" / name, options=BuildOptions(prefixed=verb == "add"))
    return CliRunner().invoke(main, [verb, str(recipe), "--repository", str(place / "models"), *words])


def test_a_build_in_order_says_nothing_of_it(place: Path) -> None:
    result = forge(place, "build", "tiny", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    result = forge(place, "build", "tiny", "--json")
    assert (result.exit_code, json.loads(result.stdout)["findings"]) == (0, [])
    assert "tokenizer-files" not in result.stderr


def test_what_would_not_load_has_rule_fix_and_exit_8(place: Path) -> None:
    (place / "checkpoint" / "tokenizer.json").write_bytes(UNREADABLE)
    result = forge(place, "build", "tiny")
    assert result.exit_code == 8
    assert result.stdout.startswith("tiny published into ")
    told, fix = result.stderr.split("error: ", 1)[1].splitlines()[:2]
    assert "tokenizer.json" in told
    assert fix.strip().endswith("[tokenizer-files; see docs/rules.md]")
    assert len(fix.split("[")[0].split()) > 3
    quiet = forge(place, "build", "tiny", "--quiet")
    assert (quiet.exit_code, quiet.stderr.splitlines()) == (8, [f"error: {told}", fix])
    document = json.loads(forge(place, "build", "tiny", "--json").stdout)
    assert [each["rule"] for each in document["findings"] if each["severity"] == "error"] == ["tokenizer-files"]


def test_add_says_what_is_wrong_with_what_it_added_only(place: Path) -> None:
    assert forge(place, "add", "sound").exit_code == 0
    (place / "checkpoint" / "tokenizer.json").write_bytes(UNREADABLE)
    result = forge(place, "add", "broken", "--json")
    found = [each for each in json.loads(result.stdout)["findings"] if each["severity"] == "error"]
    assert result.exit_code == 8
    assert [each["rule"] for each in found] == ["tokenizer-files"]
    assert "[tokenizer-files; see docs/rules.md]" in result.stderr
    (place / "checkpoint" / "tokenizer.json").write_bytes(tiny_checkpoint()["tokenizer.json"])
    assert forge(place, "add", "third").exit_code == 0
