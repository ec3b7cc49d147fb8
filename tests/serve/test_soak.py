"""Many clients at once: every answer comes, and is what the model says when asked alone."""

import asyncio
import sys
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from tiny_served import Tiny

pytestmark = [pytest.mark.slow, pytest.mark.network]
FILE = Path(__file__).parents[2] / "benchmarks" / "soak.py"


def soak() -> Any:
    spec = util.spec_from_file_location("soak", FILE)
    assert spec
    assert spec.loader
    module = util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


def test_streams_and_whole_answers_of_many_clients_all_come(tiny: Tiny) -> None:
    found = soak()
    bounds = found.Bounds(seconds=600, requests=1500, patience=120)
    tally = asyncio.run(found.soak(tiny.address, tiny.target.request("").model, 24, bounds))
    assert tally.clean, str(tally)
    assert tally.right > 1000
