"""Commands of a step, run on this machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forge.errors import StepError
from forge.machine.containers import Job
from forge.machine.local_executor import LocalExecutor
from forge.machine.processes import started
from forge.schema.values import Command
from patience import PATIENCE, soon


def run(tmp_path: Path, command: Command, mounts: dict[str, Path] | None = None) -> list[str]:
    """Run ``command`` and give its lines; its log is tmp_path/log."""
    lines: list[str] = []
    LocalExecutor(os.environ).run(Job(command, mounts or {}, tmp_path / "log"), lines.append)
    return lines


def python(code: str, *words: str) -> Command:
    return Command((sys.executable, "-c", code, *words))


def test_output_is_told_line_by_line_and_kept_whole(tmp_path: Path) -> None:
    lines = run(tmp_path, python("import sys; print('out'); print('err', file=sys.stderr); print('no newline', end='')"))
    assert sorted(lines) == ["err", "no newline", "out"]
    assert (tmp_path / "log").read_text() == "\n".join(lines)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("/forge/model", "{model}"),
        ("/forge/model/config.json", "{model}/config.json"),
        ("--model_dir=/forge/model", "--model_dir={model}"),
        ("/forge/model:/forge/out", "{model}:{out}"),
        ("/elsewhere/forge/model", "/elsewhere/forge/model"),
        ("/forge", "/forge"),
    ],
)
def test_constant_paths_become_real_ones(tmp_path: Path, word: str, expected: str) -> None:
    mounts = {"model": tmp_path / "forge" / "model", "out": tmp_path / "out"}
    command = Command(python("import os, sys; print(sys.argv[1]); print(os.environ['WORD'])", word).argv, {"WORD": word})
    real = expected.format(**mounts)
    assert run(tmp_path, command, mounts) == [real, real]


def test_a_path_is_matched_by_whole_components(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="no such input") as caught:
        run(tmp_path, python("", "/forge/models"), {"model": tmp_path})
    assert "model" in caught.value.hint


def test_python3_is_the_environments(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    code = "import os; print(os.environ['PATH'].split(':')[0])"
    assert run(tmp_path, Command(("python3", "-c", code)), {"environment": tmp_path}) == [str(tmp_path / "bin")]


def test_tokens_do_not_reach_a_step(tmp_path: Path) -> None:
    environ = {**os.environ, "HF_TOKEN": "hf_secret", "AWS_SECRET_ACCESS_KEY": "secret"}
    lines: list[str] = []
    job = Job(python("import os; print(sorted(os.environ))"), {}, tmp_path / "log")
    LocalExecutor(environ).run(job, lines.append)
    assert "PATH" in lines[0]
    assert "HF_TOKEN" not in lines[0]
    assert "SECRET" not in lines[0]


def test_a_failure_shows_its_last_output_and_the_log(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="exited with 3") as caught:
        run(tmp_path, python("print('\\n'.join(map(str, range(100)))); raise SystemExit(3)"))
    assert "\n99" in caught.value.what
    assert "\n12\n" not in caught.value.what
    assert caught.value.where == str(tmp_path / "log")


def test_a_killed_program_is_said_to_be_killed(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="killed by SIGKILL"):
        run(tmp_path, python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="cannot start no-such-program"):
        run(tmp_path, Command(("no-such-program",)))


def test_leftovers_of_a_finished_program_do_not_keep_the_step(tmp_path: Path) -> None:
    began = time.monotonic()
    lines = run(tmp_path, python("import subprocess; print(subprocess.Popen(['sleep', '3600']).pid)"))
    assert time.monotonic() - began < PATIENCE
    assert gone(int(lines[0]))


def test_an_interrupt_ends_the_whole_group(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, time; print(os.getpid(), subprocess.Popen(['sleep', '3600']).pid, flush=True); time.sleep(3600)"
    )
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.extend(map(int, line.split()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalExecutor(os.environ).run(Job(python(code), {}, tmp_path / "log"), interrupt)
    assert all(gone(pid) for pid in pids)


def test_the_working_folder_is_a_scratch_that_goes(tmp_path: Path) -> None:
    (folder,) = run(tmp_path, python("import os; open('stray', 'w').close(); print(os.getcwd())"))
    assert not Path(folder).exists()


def gone(pid: int) -> bool:
    """Whether ``pid`` ends soon (an orphan that was killed may stay a moment, or as a zombie of init's)."""
    return soon(lambda: started(pid) is None)


LAST_THREAD = """
import ctypes, os, sys, threading
threading.Thread(target=sys.stdin.readline).start()
print("begun", flush=True)
ctypes.CDLL(None).syscall({exit}, 0)
"""


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="the number of exit(2) is not known here")
def test_a_process_without_its_first_thread_still_holds_memory() -> None:
    """The state that a killed one with many threads passes through: after `forge stop` a GPU was not empty yet."""
    text = LAST_THREAD.format(exit=60 if os.uname().machine == "x86_64" else 93)
    with subprocess.Popen((sys.executable, "-c", text), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        assert soon(lambda: b"State:\tZ" in Path(f"/proc/{process.pid}/status").read_bytes())
        assert started(process.pid) is not None
        process.kill()
        assert soon(lambda: started(process.pid) is None)
