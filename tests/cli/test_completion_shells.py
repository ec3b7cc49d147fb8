"""`forge completion` in the shells themselves: bash, zsh and fish at a terminal, where somebody presses Tab."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patience import PATIENCE
from tiny_served import Tiny

BIN = Path(sys.executable).parent
SHELLS = {
    "bash": (("bash", "--norc", "--noprofile", "-i"), 'eval "$(forge completion bash)"'),
    "zsh": (("zsh", "-f", "-i"), 'autoload -Uz compinit && compinit -u; eval "$(forge completion zsh)"'),
    "fish": (("fish", "--no-config", "-i"), "forge completion fish | source"),
}
HOME_OF_LINE = "\x01"
MARK = "typed:"


def pressed(shell: str, typed: str, place: Path, home: Path) -> str:
    """The line that stands there after Tab: it is put behind an ``echo`` and run."""
    argv, ready = SHELLS[shell]
    if shutil.which(argv[0]) is None:
        pytest.skip(f"no {shell} here (Debian: apt-get install {shell})")
    environ = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(place), "TERM": "xterm", "FORGE_HOME": str(home)}
    master, slave = pty.openpty()
    with subprocess.Popen(("setsid", "-c", *argv), stdin=slave, stdout=slave, stderr=slave, cwd=place, env=environ) as run:
        os.close(slave)
        try:
            os.write(master, f"{ready}; echo rea''dy\n".encode())
            _until(master, "ready")
            os.write(master, f"{typed}\t{HOME_OF_LINE}echo ty''ped: \n".encode())
            return _until(master, MARK).rpartition(MARK)[2].split("\r")[0].strip()
        finally:
            run.kill()
            os.close(master)


def _until(master: int, wanted: str) -> str:
    """What the shell has shown, up to a whole line with ``wanted``."""
    end, shown = time.monotonic() + PATIENCE, ""
    while "\n" not in shown.rpartition(wanted)[2] or wanted not in shown:
        assert time.monotonic() < end, shown
        if select.select([master], [], [], 1)[0]:
            shown += os.read(master, 65536).decode(errors="replace")
    return shown


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("forge dockerf", "forge dockerfile"),
        ("forge plan smollm2-135m-i", "forge plan smollm2-135m-instruct"),
        ("forge fit smollm2-135m-instruct --gpu rtx-409", "forge fit smollm2-135m-instruct --gpu RTX-4090"),
        ("forge serve --http-p", "forge serve --http-port"),
    ],
    ids=["verb", "recipe", "card", "option"],
)
def test_tab_completes(shell: str, typed: str, line: str, tmp_path: Path) -> None:
    assert pressed(shell, typed, tmp_path, tmp_path / "home") == line


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes_the_name_of_a_served_model(shell: str, tiny: Tiny, home: Path, tmp_path: Path) -> None:
    assert tiny.target.model.name == "tiny"
    assert pressed(shell, "forge generate ti", tmp_path, home) == "forge generate tiny"
