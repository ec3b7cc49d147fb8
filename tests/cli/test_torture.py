"""A few turns of the campaign of kills, which ``make torture`` goes on with for as long as it is told; it can find a loss."""

import os
import shutil
from pathlib import Path
from random import Random

import pytest

from forge.api.forge import Forge
from patience import spare
from tiny_served import Tiny, checkpoint
from torture import Campaign, spend

SHARED = ("environment", "backends", "converter")
"""Steps that every recipe of the twin stands on."""


@pytest.mark.slow
def test_whatever_is_killed_nothing_is_lost(tiny: Tiny, shop: Forge, tmp_path: Path) -> None:
    assert tiny.recipe.exists()
    home = tmp_path / "home"
    for held in shop.store.artifacts():
        if held.manifest.provenance.step in SHARED:  # made once for the session
            shutil.copytree(held.path.parent, home / held.path.parent.relative_to(shop.home), symlinks=True)
    campaign = Campaign(tmp_path, home, Random(int(os.environ.get("FORGE_TORTURE_SEED", "4"))), spare(3))
    campaign.begin(checkpoint)
    assert not any("made  environment" in line for line in campaign.history)
    spend(campaign, 60, most=4)
    assert campaign.faults == []
    assert campaign.kills.total() == 4
    campaign.look({"nobody"})
    assert "lost: nobody" in campaign.faults[0]
