"""How a program gets a secret that no list of processes shows: what its arguments are to itself, and to everybody else."""

# pyright: reportPrivateUsage=false

import ctypes
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from forge.machine import unlisted
from patience import soon

SAY = """
import os, sys
print(ascii([sys.argv[1:], sorted(name for name in os.environ if name.startswith("FORGE_UNLISTED"))]), flush=True)
input()
"""


class Become(Exception):  # noqa: N818  # nothing went wrong
    """In place of the program that a process would become: its arguments, and what the environment hands over."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        super().__init__()
        self.argv = list(argv)
        self.handed = {name: text for name, text in environ.items() if name.startswith("FORGE_UNLISTED")}


@pytest.fixture
def key(tmp_path: Path) -> str:
    (tmp_path / "key").write_text("hush\n")
    return str(tmp_path / "key")


def become(key: str, *words: str, shown: bool = False) -> Become:
    kept = os.umask(0o022)
    try:
        unlisted.main(key, list(words), shown=shown)
    except Become as found:
        assert os.umask(0o022) == 0o077, "what it makes is its user's alone"
        return found
    finally:
        os.umask(kept)
    raise AssertionError("it came back")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nobody becomes anything. Whether the process is traced is the list's one entry; by default it is."""
    traced = [1]

    def execute(_: str, argv: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
        raise Become(argv, environ)

    def is_traced(_: int) -> bool:
        return bool(traced[0])

    monkeypatch.setattr(os, "execvpe", execute)
    monkeypatch.setattr(unlisted, "_traced", is_traced)
    return traced


@pytest.mark.usefixtures("world")
def test_the_secret_goes_along_in_the_environment(key: str) -> None:
    found = become(key, "triton", "a=@secret", "plain", "b=@secret@secret")
    assert found.argv == ["triton", f"a={unlisted.CLOSED}", "plain", f"b={unlisted.CLOSED}{unlisted.CLOSED}"]
    assert found.handed == {"FORGE_UNLISTED_0": "a=hush", "FORGE_UNLISTED_1": "b=hushhush"}


def test_where_tracing_is_forbidden_it_is_closed_and_said(
    world: list[int], key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    world[0] = 0
    found = become(key, "triton", "a=@secret")
    assert (found.argv, found.handed) == (["triton", f"a={unlisted.CLOSED}"], {})
    assert capfd.readouterr().err.strip() == unlisted.SHUT


def test_where_tracing_is_forbidden_who_asked_for_it_is_shown(
    world: list[int], key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    world[0] = 0
    assert become(key, "triton", "a=@secret", shown=True).argv == ["triton", "a=hush"]
    assert capfd.readouterr().err.strip() == unlisted.SHOWN


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff"])
@pytest.mark.usefixtures("world")
def test_a_secret_that_cannot_be_read_closes_what_it_guards(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    found = become(str(tmp_path / "key"), "triton", "a=@secret", shown=True)
    assert (found.argv, found.handed) == (["triton", f"a={unlisted.CLOSED}"], {})


@pytest.mark.usefixtures("world")
def test_who_needs_no_secret_is_not_asked_for_one(tmp_path: Path) -> None:
    assert become(str(tmp_path / "none"), "triton", "plain").argv == ["triton", "plain"]


def test_a_program_that_cannot_start_ends_as_in_shells(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    plain.chmod(stat.S_IRUSR)
    kept = os.umask(0o022)
    try:
        for program, code, said in ((tmp_path / "none", 127, "not found"), (plain, 126, "Permission denied")):
            with pytest.raises(SystemExit) as caught:
                unlisted.main("", [str(program)])
            assert caught.value.code == code
            assert capfd.readouterr().err.strip() == f"{program}: {said}"
    finally:
        os.umask(kept)


# -- the helper, with this process in its place


class Traced:
    """A child that becomes ``argv`` when this process traces it, as its helper."""

    def __init__(self, tmp_path: Path, argv: Sequence[str], handed: Sequence[str]) -> None:
        self.said = tmp_path / "said"
        (hear, said), (go, start), (stdin, self._stdin) = os.pipe(), os.pipe(), os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.dup2(stdin, 0)
                os.dup2(os.open(self.said, os.O_WRONLY | os.O_CREAT, 0o600), 1)
                os.close(self._stdin)
                os.read(hear, 4)
                os.write(start, b".")
                if os.read(hear, 1) == b"1":
                    environ = {f"FORGE_UNLISTED_{number}": text for number, text in enumerate(handed)}
                    os.execvpe(argv[0], list(argv), {**os.environ, **environ})
            finally:
                os._exit(3)
        os.close(stdin)
        unlisted._help(ctypes.CDLL(None, use_errno=True), self.pid, len(argv), (said, go))
        for end in (hear, go, start):
            os.close(end)

    def listed(self) -> list[bytes]:
        return Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")[:-1]

    def heard(self) -> str:
        assert soon(lambda: self.said.exists() and self.said.read_text().endswith("]\n"))
        return self.said.read_text().strip()

    def end(self) -> int:
        os.close(self._stdin)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def may_trace() -> bool:
    """Whether this machine lets a process trace its own child."""
    pid = os.fork()
    if not pid:
        os.read(os.pipe()[0], 1)
        os._exit(0)
    refused = unlisted._ptrace(ctypes.CDLL(None, use_errno=True), unlisted._SEIZE, pid, 0)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return not refused


needs_tracing = pytest.mark.skipif(not may_trace(), reason="ptrace is forbidden here")


@needs_tracing
def test_the_program_reads_the_secret_that_process_lists_hide(tmp_path: Path) -> None:
    closed, long = unlisted.CLOSED, "x" * 9000
    argv = [sys.executable, "-c", SAY, f"a={closed}", "plain", f"{long}{closed}"]
    child = Traced(tmp_path, argv, ["a=hush", f"{long}hush"])
    assert child.heard() == ascii([["a=hush", "plain", f"{long}hush"], []]), "nor does its own environment hand it on"
    shown = child.listed()
    assert shown[3:] == [f"a={closed}".encode(), b"plain", f"{long}{closed}".encode()]
    child.end()


@needs_tracing
def test_a_scripts_interpreter_is_passed_over_for_the_program(tmp_path: Path) -> None:
    script = tmp_path / "wrapper"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "$2" "$1" three four\n')
    script.chmod(0o755)
    argv = [str(script), f"a={unlisted.CLOSED}", SAY, "-", "-", "-"]
    child = Traced(tmp_path, argv, ["a=hush"])
    assert child.heard().startswith("[['a=hush', 'three', 'four']")
    child.end()


@needs_tracing
def test_a_process_ending_before_it_becomes_anything_is_released(tmp_path: Path) -> None:
    child = Traced(tmp_path, [str(tmp_path / "none"), f"a={unlisted.CLOSED}"], ["a=hush"])
    with pytest.raises(ChildProcessError):
        child.end()  # who traced it has heard its end


@needs_tracing
def test_signals_on_their_way_reach_the_program(tmp_path: Path) -> None:
    code = "import os, signal; signal.signal(15, lambda *_: print('heard', flush=True)); os.kill(os.getpid(), 15)\n" + SAY
    script = tmp_path / "wrapper"
    script.write_text(f'#!/bin/sh\ntrap \'echo trapped\' TERM; kill -TERM $$\nexec {sys.executable} -c "$2" "$1" three\n')
    script.chmod(0o755)
    child = Traced(tmp_path, [str(script), f"a={unlisted.CLOSED}", code, "-", "-"], ["a=hush"])
    assert child.heard().splitlines()[:2] == ["trapped", "heard"]
    child.end()


def test_the_program_may_open_what_the_hard_limit_allows(tmp_path: Path) -> None:
    """Triton without a file for one more connection turns around its log as fast as it can write."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    words = (sys.executable, unlisted.__file__, str(tmp_path / "none"), "sh", "-c", "ulimit -n")
    done = subprocess.run(("sh", "-c", 'ulimit -S -n 64; exec "$@"', "sh", *words), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ("unlimited" if most == resource.RLIM_INFINITY else str(most))
