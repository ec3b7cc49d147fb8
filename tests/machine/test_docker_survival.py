"""What a forge that dies, a daemon that dies and a disk that fills leave behind: nothing that runs, nothing taken for whole."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from docker_fixture import (
    PLAIN,
    driven,
    engine_pid,
    environ,
    load,
    names,
    private_engine,
    run_of,
    start,
)
from forge.errors import HostError, StepError
from forge.machine.docker.containers import DockerContainers
from forge.machine.processes import started
from patience import PATIENCE, soon

pytestmark = pytest.mark.slow
LONG = ("sh", "-c", "echo begun; exec sleep 300")
SOMEBODY = 12345
KIT = Path(__file__).parents[1] / "kit"


def heard(process: "subprocess.Popen[str]", word: str) -> None:
    """Wait until another forge told ``word``."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    pytest.fail(process.communicate()[1])


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """(exit code, standard error) of another forge that is about to end."""
    _, error = process.communicate(timeout=PATIENCE)
    return process.returncode, error


def test_what_a_killed_forge_left_the_next_one_removes(containers: DockerContainers, engine: str, out: Path) -> None:
    before = names(engine)
    process = driven(engine, out, LONG)
    heard(process, "begun")
    (left,) = names(engine) - before
    assert left.startswith("forge-k3y5k3y5")
    containers.reap()
    assert left in names(engine), "its owner lives"
    process.kill()
    finish(process)
    assert left in names(engine)
    containers.run(run_of(out, "true"), lambda line: None)
    assert left not in names(engine)


def test_leftovers_of_a_killed_cluster_worker_are_removed_there(engine: str, out: Path, plain: str) -> None:
    before = names(engine)
    process = driven(engine, out, LONG, DRIVER_WATCHED="1", DOCKER_HOST=engine)
    heard(process, "begun")
    assert names(engine) - before
    process.kill()
    finish(process)
    assert soon(lambda: names(engine) <= before, 10)


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_an_interrupted_forge_leaves_no_container(engine: str, out: Path, number: signal.Signals, plain: str) -> None:
    before = names(engine)
    process = driven(engine, out, LONG)
    heard(process, "begun")
    process.send_signal(number)
    code, error = finish(process)
    assert code != 0
    assert "KeyboardInterrupt" in error
    assert names(engine) <= before


def test_forges_interrupted_at_any_instant_leave_none(engine: str, out: Path, plain: str, containers: DockerContainers) -> None:
    """From before the daemon is asked until the container speaks: what is left by then, the next run removes."""
    before = names(engine)
    for delay in (0.3, 0.4, 0.5, 0.6, 0.8):
        process = driven(engine, out, LONG)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        finish(process)
    containers.reap()
    assert names(engine) <= before


@pytest.fixture(scope="module")
def fragile(plain_archive: Path, engine: str) -> Iterator[tuple[str, Path]]:
    """A Docker engine of one's own to kill, with the plain image in it."""
    if os.geteuid() != 0:
        pytest.skip("only root can start an engine of its own to kill")
    with private_engine() as (address, folder):
        load(address, plain_archive)
        yield address, folder


def kill(folder: Path) -> None:
    pid = engine_pid(folder)
    began = started(pid)
    os.kill(pid, signal.SIGKILL)
    while started(pid) == began:
        time.sleep(0.02)


def test_a_daemon_that_goes_away_is_no_success(fragile: tuple[str, Path], out: Path) -> None:
    address, folder = fragile
    process = driven(address, out, LONG)
    heard(process, "begun")
    kill(folder)
    code, error = finish(process)
    assert code == HostError.exit_code
    assert "HostError" in error
    assert "build again" in error
    assert start(folder) == address
    containers = DockerContainers(environ(address))
    assert names(address)
    containers.reap()
    assert names(address) == set()
    containers.run(run_of(out, "true"), lambda line: None)


def test_a_daemon_lost_in_a_build_is_no_image(fragile: tuple[str, Path], tmp_path: Path) -> None:
    from forge.machine.containers import ImageBuild

    address, folder = fragile
    containers = DockerContainers(environ(address))
    held = containers.inspect(PLAIN)
    assert held is not None
    begun = threading.Event()

    def line(text: str) -> None:
        if text == "begun":
            begun.set()
            kill(folder)

    text = f"FROM {held.base}\nRUN echo begun; trap exit TERM; sleep 60 & wait\n"
    with pytest.raises(HostError):
        containers.build(ImageBuild("gone", "gone-while-built", text, tmp_path / "build.log"), line)
    assert begun.is_set()
    assert start(folder) == address
    assert containers.inspect("forge/gone:gone-while-built") is None


def test_a_full_disk_is_named_and_nothing_is_promised(containers: DockerContainers, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        script = "dd if=/dev/zero of=/forge/out/rank0.engine bs=64k count=64"
        with pytest.raises(HostError) as caught:
            containers.run(run_of(small, "sh", "-c", script, promised=("rank0.engine",)), lambda line: None)
        assert "the disk is full" in caught.value.hint
        (small / "rank0.engine").unlink()
        with pytest.raises(HostError, match="the log cannot be written: the disk is full"):
            containers.run(run_of(tmp_path, "sh", "-c", "seq 1000000", log=small / "run.log"), lambda line: None)
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.fixture
def theirs(engine: str) -> Iterator[Path]:
    """A folder of an ordinary user, who for now may ask the engine."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as somebody else")
    socket = Path(engine.removeprefix("unix://"))
    mode = socket.stat().st_mode
    # Not pytest's folder, into which only its owner may look.
    with tempfile.TemporaryDirectory(prefix="forge-theirs-") as name:
        folder = Path(name) / "out"
        folder.mkdir()
        os.chown(name, SOMEBODY, SOMEBODY)
        os.chown(folder, SOMEBODY, SOMEBODY)
        socket.chmod(0o666)
        try:
            yield folder
        finally:
            socket.chmod(mode)


@pytest.mark.parametrize("code", [0, 3])
def test_what_the_containers_root_wrote_is_the_callers(engine: str, plain: str, theirs: Path, code: int) -> None:
    before = names(engine)
    script = "mkdir -m 700 /forge/out/deep; echo x > /forge/out/deep/file; ln -s /etc/passwd /forge/out/link; exit $0"
    process = driven(engine, theirs, ("sh", "-c", script, str(code)), user=SOMEBODY)
    returned, error = finish(process)
    assert returned == (StepError.exit_code if code else 0), error
    assert {path.lstat().st_uid for path in theirs.rglob("*")} == {SOMEBODY}
    assert (theirs / "deep" / "file").stat().st_gid == SOMEBODY
    assert Path("/etc/passwd").stat().st_uid == 0
    assert names(engine) <= before


def test_what_a_killed_forges_container_wrote_is_given_back(engine: str, plain: str, theirs: Path) -> None:
    process = driven(engine, theirs, ("sh", "-c", "echo x > /forge/out/half; echo begun; exec sleep 300"), user=SOMEBODY)
    heard(process, "begun")
    process.kill()
    finish(process)
    assert (theirs / "half").stat().st_uid == 0
    process = driven(engine, theirs, (), user=SOMEBODY)
    said, error = process.communicate(timeout=PATIENCE)
    assert "forge-k3y5" in said, error
    assert (theirs / "half").stat().st_uid == SOMEBODY


def test_a_user_without_rights_is_told_the_docker_group(theirs: Path, plain_archive: Path, engine: str) -> None:
    socket = Path(engine.removeprefix("unix://"))
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from docker_fixture import environ; from forge.machine.docker.containers import DockerContainers\n"
        "DockerContainers(environ(sys.argv[1])).facts(); os.chmod(sys.argv[1][7:], 0o600); os.setgroups([]); os.setuid(12345)\n"
        "print(*DockerContainers(environ(sys.argv[1])).check())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"unix://{socket}", KIT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "usermod -aG docker" in done.stdout, done.stderr
