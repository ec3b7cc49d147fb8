"""The twin's real server, and the process beside it that reads its files again: rot under a server that runs is named."""

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from forge.api.forge import Forge
from forge.cli import main
from forge.errors import RepositoryError, ServerError
from live_kit import recipe, say
from patience import free_ports
from store_makers import rot

pytestmark = [pytest.mark.slow, pytest.mark.network]


def test_rot_under_a_running_server_is_named_builds_mend_it(
    shop: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_HOME", str(shop.home))
    place, file = tmp_path / "models", recipe(tmp_path, "one")
    shop.add([file], repository=place)
    running = shop.serve(place, free_ports(), scrub=1.0)
    try:
        target = shop.target("one", place)
        before = say(shop, target)
        weights = next((place / "_assets" / "one").rglob("*.safetensors"))
        content = rot(weights)
        until = time.monotonic() + 120
        while not shop.integrity.rotten([running]) and time.monotonic() < until:
            time.sleep(0.2)
        told = CliRunner().invoke(main, ["status", "--json"])
        assert told.exit_code == ServerError.exit_code
        assert [each["file"] for each in json.loads(told.stdout)["rotten"]] == [str(weights.relative_to(place))]
        log = Path(running.log).with_suffix(".watch.log").read_text()
        assert f"ROTTEN: {place}: one: {weights.relative_to(place)}: its bytes changed" in log
        assert say(shop, target) == before, "it goes on with what it has in memory"
        with pytest.raises(RepositoryError, match="not what was built"):
            shop.reload(place)
        shop.add([file], repository=place)
        assert next((place / "_assets" / "one").rglob("*.safetensors")).read_bytes() == content
        assert say(shop, shop.target("one", place)) == before
        assert CliRunner().invoke(main, ["status"]).exit_code == 0
    finally:
        shop.stop(running)
