"""A few turns of the campaigns that ``make torture`` goes on with for as long as it is told."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import torture
from forge.api.forge import Forge
from patience import PATIENCE
from tiny_served import Tiny

KIT = Path(torture.__file__).parent
SHARED = ("environment", "backends", "converter")
"""Steps that every recipe of the twin stands on."""


@pytest.fixture
def made(tiny: Tiny, shop: Forge, tmp_path: Path) -> Path:
    """One in which all of these stand."""
    assert tiny.recipe.exists()
    for held in shop.store.artifacts():
        if held.manifest.provenance.step in SHARED:  # made once for the session
            shutil.copytree(held.path.parent, tmp_path / "home" / held.path.parent.relative_to(shop.home), symlinks=True)
    return tmp_path / "home"


def told(name: str, *words: str) -> str:
    """What a campaign says in the end; it has found nothing wrong."""
    command = [sys.executable, str(KIT / name), *words, "--seed", os.environ.get("FORGE_TORTURE_SEED", "4")]
    environ = {**os.environ, "PYTHONPATH": str(KIT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_whatever_is_killed_nothing_is_lost(made: Path) -> None:
    assert re.search(r"seed \d+: 4 kills, .* 0 faults", told("torture.py", "--kills", "4", "--home", str(made)))


@pytest.mark.slow
def test_eight_builders_lose_nothing_to_each_other(made: Path) -> None:
    said = told("torture_rounds.py", "--rounds", "2", "--home", str(made))
    assert re.search(r"2 rounds of 8 builders, 0 faults", said)
