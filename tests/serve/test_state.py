"""What is kept of servers where another user had a hand in it: it is neither believed nor written."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from forge.schema.values import Ports
from forge.serve.server import Servers
from forge.serve.server_types import Running
from forge.serve.state import States, key_file, make_private

ME, OTHER = 65534, 12345
ASKS = """
import os, sys
from pathlib import Path
from forge.errors import ServerError
from forge.serve.server import Servers
from forge.serve.state import States
os.setgroups([]); os.setgid({me}); os.setuid({me})
states = States(Path(sys.argv[1]))
print([each.repository for each in Servers(states._folder.parent, {{}}).running()])
try:
    with states.lock([Path("/mine")]):
        print("locked")
except ServerError as error:
    print(error)
"""

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder in which everybody may write; pytest's own is root's alone."""
    with tempfile.TemporaryDirectory(prefix="forge-shared-") as name:
        Path(name).chmod(0o777)
        (Path(name) / "servers").mkdir()
        yield Path(name)


def laid(folder: Path, owner: int, victim: int) -> Path:
    """The state file of a server that has died, whose guard is said to be ``victim``."""
    ticks = float(Path(f"/proc/{victim}/stat").read_text().rpartition(")")[2].split()[19])
    running = Running("/theirs", 1, 1.0, Ports(), (), str(folder / "x.log"), "forge-serve-x", vigil=victim, vigil_started=ticks)
    file = States(folder).file(Path("/theirs"))
    file.write_bytes(msgspec.json.encode(running))
    os.chown(file, owner, owner)
    return file


def test_each_start_has_a_secret_of_its_own(home: Path) -> None:
    states = States(home / "servers")
    running = Running("/mine", 1, 1.0, Ports(), (), str(states.log(Path("/mine"))), "forge-serve-x")
    drawn: set[str] = set()
    for _ in range(3):
        states.draw_key(running)
        drawn.add(key_file(running).read_text())
    assert len(drawn) == 3
    assert {len(each) for each in drawn} == {43}  # 256 bits in base64


def test_a_folder_that_was_open_to_others_is_closed(home: Path) -> None:
    (home / "servers").chmod(0o777)
    with States(home / "servers").lock([Path("/mine")]):
        assert (home / "servers").stat().st_mode & 0o777 == 0o700


def asked(folder: Path) -> str:
    words = [sys.executable, "-c", ASKS.format(me=ME), str(folder)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@root
@pytest.mark.parametrize(("owner", "seen"), [(OTHER, False), (ME, True)])
def test_another_users_state_file_is_no_server(home: Path, owner: int, seen: bool) -> None:
    os.chown(home / "servers", ME, ME)
    laid(home / "servers", owner, os.getpid())
    assert asked(home / "servers") == f"{['/theirs'] if seen else []}\nlocked\n"


@root
def test_in_another_users_folder_no_server_starts(home: Path) -> None:
    os.chown(home / "servers", OTHER, OTHER)
    (home / "servers").chmod(0o777)
    said = asked(home / "servers")
    assert "belongs to another user" in said
    assert "FORGE_HOME" in said
    assert list((home / "servers").iterdir()) == []


def test_a_link_is_no_state_nor_is_one_written_through(tmp_path: Path) -> None:
    states, mine = States(tmp_path / "servers"), tmp_path / "mine"
    (tmp_path / "servers").mkdir()
    file = laid(tmp_path / "servers", os.geteuid(), os.getpid())
    assert len(states.kept()) == 1
    file.replace(mine)
    file.symlink_to(mine)
    assert states.kept() == ()
    kept = mine.read_bytes()
    with pytest.raises(OSError, match="symbolic links"):
        make_private(file, b"secret")
    assert mine.read_bytes() == kept


def test_what_others_could_read_is_closed_before_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "x.key"
    file.write_text("x" * 100)
    file.chmod(0o644)
    make_private(file, b"secret")
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"secret", 0o600)


def test_a_recycled_number_of_a_server_is_not_ended(tmp_path: Path) -> None:
    """The numbers that a state file has are other processes' now: they carry no mark, and began at other times."""
    (tmp_path / "servers").mkdir()
    with subprocess.Popen(("sleep", "600"), start_new_session=True) as bystander:
        file = laid(tmp_path / "servers", os.geteuid(), bystander.pid)
        (kept,) = States(tmp_path / "servers").kept()
        ticks = kept.vigil_started - 1
        pid = bystander.pid
        running = replace(kept, pid=pid, vigil=pid, front=pid, started=ticks, vigil_started=ticks, front_started=ticks)
        file.write_bytes(msgspec.json.encode(running))
        servers = Servers(tmp_path, {})
        assert servers.running() == ()
        servers.stop(running)
        assert not file.exists()
        assert bystander.poll() is None
        bystander.kill()
