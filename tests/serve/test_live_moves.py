"""A repository that is moved away and back, as a person at the command line sees it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forge.api.forge import Forge
from live_kit import recipe
from patience import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.network]
Verb = Callable[..., Any]


@pytest.fixture
def forge(shop: Forge, tmp_path: Path) -> Verb:
    """The command line in a home of its own, which has what serves a twin already."""
    shop.build([recipe(tmp_path, "tiny")], repository=tmp_path / "warm")
    for each in ("artifacts", "index"):
        held = shop.store.root / each
        shutil.copytree(held, tmp_path / "home" / "store" / each, symlinks=True, copy_function=os.link)

    def run(*words: object) -> Any:
        done = subprocess.run(
            [Path(sys.executable).with_name("forge"), *map(str, words), "--json"],
            cwd=tmp_path,
            env={**os.environ, "FORGE_HOME": str(tmp_path / "home")},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    return run


def test_what_a_moved_repository_stands_on_stays_until_forgotten(forge: Verb, tmp_path: Path) -> None:
    place, away, ports = tmp_path / "models", tmp_path / "away", free_ports()
    forge("build", "tiny.toml", "--repository", place)
    forge("cache", "gc")
    before = forge("cache", "ls")["artifacts"]
    place.rename(away)
    place.mkdir()  # as an empty mount point is
    (lost,) = forge("cache", "gc")["unreachable"]
    assert lost["place"] == str(place)
    assert lost["artifacts"] == len(before)
    assert forge("cache", "ls")["artifacts"] == before
    place.rmdir()
    away.rename(place)
    told = ("--http-port", ports.http, "--grpc-port", ports.grpc, "--metrics-port", ports.metrics)
    forge("serve", "--repository", place, "--detach", *told)
    forge("stop", "--repository", place)
    assert forge("cache", "gc")["unreachable"] == []
    shutil.rmtree(place)
    assert forge("cache", "gc", "--unreachable-after", "1d")["removed"] == []
    (gone,) = forge("cache", "forget", place)["forgotten"]
    assert gone["artifacts"] == len(before)
    assert len(forge("cache", "gc")["removed"]) == len(before)
    assert forge("cache", "ls")["artifacts"] == []
