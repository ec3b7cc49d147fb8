"""Many clients at once: every answer comes, and is what the model says when asked alone."""

import asyncio
import signal
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from patience import PATIENCE
from tiny_served import Tiny

pytestmark = [pytest.mark.slow, pytest.mark.network]
FILE = Path(__file__).parents[2] / "benchmarks" / "soak.py"

HANGING = """
import asyncio, sys, threading
sys.path.insert(0, sys.argv[1])
import door
stopped = threading.Event()
door.end_on_signals(stopped.set)
print("waits", flush=True)
asyncio.run(asyncio.to_thread(stopped.wait))
"""


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_campaign_whose_server_hangs_ends_it_and_itself(number: signal.Signals) -> None:
    """Also one that a shell started in the background, and had ignore Ctrl-C."""
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        argv = (sys.executable, "-c", HANGING, str(FILE.parent))
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, ignored)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number
