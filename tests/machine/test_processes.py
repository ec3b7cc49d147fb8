"""What another user of this machine can put in the way, under names that a list of processes shows."""

import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from forge.errors import HostError
from forge.machine import processes
from patience import soon

NOBODY = 65534


@pytest.fixture
def marker() -> Iterator[str]:
    name = f"forge-serve-{uuid4().hex}"
    yield name
    for region in processes.SHARED_MEMORY.glob(f"*{name}*"):
        shutil.rmtree(region) if region.is_dir() and not region.is_symlink() else region.unlink()


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_shared_memory_is_closed_off_what_links_lead_to_stays(marker: str, tmp_path: Path) -> None:
    region, link, folder = (processes.SHARED_MEMORY / f"{marker}-{name}" for name in ("region", "link", "run"))
    (tmp_path / "page.html").touch(0o644)
    (tmp_path / "page.html").chmod(0o644)
    region.touch()
    region.chmod(0o644)
    link.symlink_to(tmp_path / "page.html")
    folder.mkdir(0o700)
    processes.close_off(marker)
    assert [mode(each) for each in (region, tmp_path / "page.html", folder)] == [0o600, 0o644, 0o700]


def test_only_who_carries_the_whole_mark_ends_with_its_server(marker: str) -> None:
    told = ({processes.MARKER: marker}, {processes.MARKER: f"{marker}0"}, {"NOTE": f"{processes.MARKER}={marker}"})
    begun = [
        subprocess.Popen(("sleep", "600"), env={"PATH": os.environ["PATH"], **each}, start_new_session=True) for each in told
    ]
    try:
        assert soon(lambda: all(b"sleep" in Path(f"/proc/{each.pid}/cmdline").read_bytes() for each in begun))
        assert processes.marked(marker) == (begun[0].pid,)
        processes.end(marker, 0.0, lambda: True)
        assert [each.poll() is None for each in begun] == [False, True, True]
    finally:
        for each in begun:
            each.kill()
            each.wait()


def test_a_pipe_among_shared_memory_is_not_waited_for(marker: str) -> None:
    pipe = processes.SHARED_MEMORY / f"{marker}-pipe"
    os.mkfifo(pipe)
    looking = threading.Thread(target=processes.close_off, args=(marker,), daemon=True)
    looking.start()
    looking.join(5.0)
    waited = looking.is_alive()
    while looking.is_alive():  # it waits for somebody who writes
        with pipe.open("wb"):
            looking.join(0.1)
    assert not waited


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_shared_memory_keeps_no_server_from_its_end(marker: str) -> None:
    theirs, sharing = processes.SHARED_MEMORY / f"{marker}-theirs", processes.SHARED_MEMORY / f"sem.{marker}-theirs"
    theirs.touch()
    sharing.touch()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.setgroups([])
            os.setuid(NOBODY)
            (processes.SHARED_MEMORY / f"{marker}-own").touch()
            processes.end(marker, 0.0, lambda: True)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert {each.name for each in processes.SHARED_MEMORY.glob(f"*{marker}*")} == {theirs.name, sharing.name}


def test_a_program_with_a_stubs_name_alone_is_none(marker: str, tmp_path: Path) -> None:
    (tmp_path / marker).touch()
    words = ("triton_python_backend_stub", "-f", marker)
    with subprocess.Popen(words, executable="tail", cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        try:
            shown = Path(f"/proc/{process.pid}/cmdline")
            assert soon(lambda: shown.read_bytes().startswith(b"triton_python_backend_stub"))
            assert processes.stubs(marker) == {}
        finally:
            process.kill()


def test_a_log_cut_short_goes_on_from_its_beginning(tmp_path: Path) -> None:
    """As logrotate's copytruncate does it: without O_APPEND zeros would stand before what comes."""
    log, go = tmp_path / "log", tmp_path / "go"
    wait = "while not os.path.exists(sys.argv[1]): time.sleep(0.01)"
    code = f"import os, sys, time\nprint('first' * 100, flush=True)\n{wait}\nprint('second')"
    pid = processes.detached((sys.executable, "-c", code, str(go)), {}, log)
    assert soon(lambda: log.exists() and log.read_text().endswith("first\n"))
    os.truncate(log, 0)
    go.touch()
    os.waitpid(pid, 0)
    assert log.read_text() == "second\n"


def status_in_a_pid_namespace(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What `forge status` says in a namespace that is made with ``words`` more for unshare."""
    forge = (sys.executable, "-c", "from forge.cli import main; main()", "status")
    for user in ((), ("--map-root-user",)):
        argv, environ = ("unshare", *user, "--pid", "--fork", *words, *forge), {**os.environ, "FORGE_HOME": str(home)}
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
        if not done.stderr.startswith("unshare: "):
            return done
    pytest.skip("no PID namespace can be made: that takes root or user namespaces")


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_numbers_of_another_namespaces_processes_are_not_believed(tmp_path: Path) -> None:
    assert status_in_a_pid_namespace(tmp_path, "--mount-proc").stdout == "no server is running\n"
    refused = status_in_a_pid_namespace(tmp_path)
    assert (refused.returncode, refused.stdout) == (HostError.exit_code, "")
    assert "/proc is that of another PID namespace" in refused.stderr
