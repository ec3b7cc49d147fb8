"""One command in one container, on a real Docker engine: what goes in, what comes out, what is said when it fails."""

import threading
from pathlib import Path
from typing import Any

import pytest

from docker_fixture import MORE, PLAIN, environ, granted, listed, names, run_of
from forge.errors import HostError, StepError
from forge.machine.containers import ContainerRun
from forge.machine.docker.containers import DockerContainers
from forge.machine.docker.daemon import Daemon
from forge.machine.interrupt import Halt
from forge.schema.values import Command


def told(containers: DockerContainers, run: ContainerRun) -> list[str]:
    """What a run says, line by line, past the entrypoint's banner."""
    lines: list[str] = []
    containers.run(run, lines.append)
    return [line for line in lines if line != "== banner =="]


def test_inputs_are_read_only_and_the_result_is_written(containers: DockerContainers, out: Path, tmp_path: Path) -> None:
    model = tmp_path / "a, b:c" / "model"  # a comma and a colon end a path in Docker's own notations
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    script = "cat /forge/model/config.json > /forge/out/seen; touch /forge/model/mine || echo refused; touch /forge/beside"
    lines = told(containers, run_of(out, "sh", "-c", script, inputs={"model": model}, promised=("seen",)))
    assert (out / "seen").read_text() == "{}"
    assert "refused" in lines
    assert [file.name for file in model.iterdir()] == ["config.json"]


def test_a_patched_script_stands_over_the_images_own(containers: DockerContainers, out: Path, tmp_path: Path) -> None:
    patched = tmp_path / "patched.py"
    patched.write_text("print('patched')\n")
    run = run_of(out, "python3", "/app/examples/convert.py", overlays={"/app/examples/convert.py": patched})
    assert told(containers, run) == ["patched"]
    assert told(containers, run_of(out, "python3", "/app/examples/convert.py")) == ["converts"]


def test_a_step_has_no_network(containers: DockerContainers, out: Path) -> None:
    argv = ("python3", "-c", "import socket; print([name for _, name in socket.if_nameindex()])")
    assert told(containers, run_of(out, *argv)) == ["['lo']"]


def test_the_container_is_confined_as_promised(containers: DockerContainers, out: Path) -> None:
    script = (
        "import os, resource\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "shm = os.statvfs('/dev/shm')\n"
        "print(status['NoNewPrivs'].strip(), shm.f_blocks * shm.f_frsize, resource.getrlimit(resource.RLIMIT_STACK)[0])\n"
        "print(os.environ['NVIDIA_VISIBLE_DEVICES'], os.environ['HF_HUB_OFFLINE'], os.getpid() != 1)\n"
    )
    assert told(containers, run_of(out, "python3", "-c", script)) == [f"1 {2 * 1024**3} {64 * 1024**2}", "void 1 True"]


def test_a_step_is_granted_nothing_beyond_dockers_own(engine: str, containers: DockerContainers, out: Path) -> None:
    found: list[dict[str, object]] = []

    def look(line: str) -> None:
        if line == "now":
            (mine,) = (each for each in listed(engine) if "echo now" in each.command)
            found.append(granted(engine, mine.id))

    containers.run(run_of(out, "sh", "-c", "echo now; sleep 1"), look)
    assert found == [{}]


def test_no_container_is_asked_for_with_more(containers: DockerContainers, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that only read an image or its help texts too."""
    import docker

    client: Any = docker.APIClient
    make = client.create_container_from_config
    asked: list[set[str]] = []

    def noted(api: Any, config: Any, name: str) -> Any:
        asked.append(set(config["HostConfig"]))
        return make(api, config, name)

    monkeypatch.setattr(client, "create_container_from_config", noted)
    containers.run(run_of(out, "true"), lambda _: None)
    containers.read(PLAIN, ("/app/examples",))
    containers.help_text(PLAIN, ("python3", "--help"))
    assert len(asked) >= 3
    assert set[str]().union(*asked) & {*MORE, "IpcMode"} == set()


def test_no_token_is_in_a_steps_container(engine: str, plain: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = dict.fromkeys(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "COSIGN_PASSWORD"), "hf_verysecret")
    for name in secrets:
        monkeypatch.setenv(name, secrets[name])
    inspected: list[str] = []

    def look(line: str) -> None:
        if line == "now":
            with Daemon(environ(engine)).connected() as api:
                here: Any = api
                inspected.extend(str(here.inspect_container(each["Id"])) for each in here.containers())

    script = "echo now; env > /forge/out/env; sleep 3"
    DockerContainers({**environ(engine), **secrets}).run(run_of(out, "sh", "-c", script), look)
    assert any(script in each for each in inspected)
    assert not any("hf_verysecret" in each for each in (*inspected, (out / "env").read_text()))


def test_the_commands_words_reach_the_program_as_they_are(containers: DockerContainers, out: Path) -> None:
    words = ("$(touch /forge/out/pwned)", "`id`", "; rm -rf /", "--privileged", "a\nb", "'\"\\", "${PATH}", "", "é🦜")
    run = ContainerRun(
        image=PLAIN,
        command=Command(
            ("python3", "-c", "import os, sys; print([*sys.argv[1:], os.environ['WORD']])", *words), {"WORD": words[0]}
        ),
        inputs={},
        out=out,
        log=out.parent / "run.log",
        key="hostile0",
    )
    assert told(containers, run) == [str([*words, words[0]])]
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    "hostile",
    [
        {"inputs": {"../etc": Path("/etc")}},
        {"inputs": {"out": Path("/etc")}},
        {"inputs": {"a/b": Path("/etc")}},
        {"overlays": {"/": Path("/etc/hosts")}},
        {"overlays": {"/app/../etc/passwd": Path("/etc/hosts")}},
        {"overlays": {"relative.py": Path("/etc/hosts")}},
        {"overlays": {"/proc/sys/kernel": Path("/etc/hosts")}},
        {"promised": ("../../escaped",)},
        {"promised": ("/etc/passwd",)},
        {"gpus": "all --privileged"},
        {"image": "--privileged"},
        {"image": "a b"},
        {"image": ""},
        {"command": Command(("true",), {"LD_PRELOAD=x": "y"})},
        {"command": Command(("true",), {"": "y"})},
        {"command": Command(("true",), {"A\nB": "y"})},
        {"key": "../../x"},
        {"key": "-v"},
    ],
    ids=str,
)
def test_a_hostile_run_is_refused_before_docker_hears_of_it(out: Path, hostile: dict[str, object]) -> None:
    with pytest.raises(StepError):
        DockerContainers(environ("unix:///nowhere")).run(run_of(out, "true", **hostile), print)


@pytest.mark.parametrize("argv", [(), ("",), ("-c", "id"), ("sh", "a\0b")])
def test_a_command_must_name_a_program(out: Path, argv: tuple[str, ...]) -> None:
    with pytest.raises(StepError):
        DockerContainers(environ("unix:///nowhere")).run(run_of(out, *argv), print)


def test_a_missing_input_is_an_error_and_makes_no_folder(containers: DockerContainers, out: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="not there to be mounted"):
        containers.run(run_of(out, "true", inputs={"model": tmp_path / "gone"}), print)
    assert not (tmp_path / "gone").exists()


def test_a_missing_gpu_is_said_with_its_fix(containers: DockerContainers, out: Path) -> None:
    with pytest.raises(HostError, match="could not select device driver") as caught:
        containers.run(run_of(out, "true", gpus="all"), print)
    assert "nvidia-container-toolkit" in caught.value.hint


def test_an_exit_code_comes_with_last_lines_and_log(containers: DockerContainers, out: Path) -> None:
    script = "for i in $(seq 50); do echo line $i; done; sleep 0.3; echo 'it is the flags' >&2; exit 3"
    with pytest.raises(StepError) as caught:
        containers.run(run_of(out, "sh", "-c", script), lambda line: None)
    text = str(caught.value)
    assert "sh exited with 3" in text
    assert "line 50\nit is the flags" in text
    assert "line 5\n" not in text
    assert caught.value.where == str(out.parent / "run.log")


def test_a_known_failure_is_explained(containers: DockerContainers, out: Path) -> None:
    said = "[TRT] [W] Requested amount of GPU memory (24793579520 bytes) could not be allocated."
    with pytest.raises(StepError) as caught:
        containers.run(run_of(out, "sh", "-c", 'echo "$0"; exit 1', said), lambda line: None)
    assert "24.8 GB" in caught.value.hint
    assert "max_num_tokens" in caught.value.hint


def test_a_broken_promise_is_a_failure(containers: DockerContainers, out: Path) -> None:
    with pytest.raises(StepError, match=r"did not write rank1\.engine, empty"):
        containers.run(run_of(out, "sh", "-c", "echo x > /forge/out/rank0.engine; : > /forge/out/empty",
                              promised=("rank0.engine", "rank1.engine", "empty")), lambda line: None)  # fmt: skip


def test_a_program_that_is_not_in_the_image_is_named(containers: DockerContainers, out: Path) -> None:
    with pytest.raises(StepError, match=r"trtllm-build.*127"):
        containers.run(run_of(out, "trtllm-build", "--help"), lambda line: None)


def test_an_image_that_is_not_there_is_named(containers: DockerContainers, out: Path) -> None:
    run = ContainerRun("forge-tests/none:1", Command(("true",)), {}, out, out.parent / "run.log", "missing0")
    with pytest.raises(StepError, match="No such image"):
        containers.run(run, print)


def test_what_goes_on_after_the_output_ended_is_waited_for(containers: DockerContainers, out: Path) -> None:
    told(containers, run_of(out, "sh", "-c", "exec >&- 2>&-; sleep 1; echo late > /forge/out/late", promised=("late",)))


@pytest.mark.slow
def test_output_of_programs_that_end_at_once_is_whole(containers: DockerContainers, out: Path) -> None:
    """Whole in 20 runs: what is said before anybody listens would be lost."""
    script = "import sys; sys.stdout.write('x' * 50000 + '\\n'); sys.stderr.write('the end\\n')"
    for _ in range(20):
        assert sorted(map(len, told(containers, run_of(out, "python3", "-c", script)))) == [7, 50000]
    assert (out.parent / "run.log").stat().st_size == 50001 + 8 + len("== banner ==\n")


def test_output_is_told_while_it_comes(containers: DockerContainers, out: Path) -> None:
    """The program goes on only when its first line was heard."""
    heard = threading.Event()

    def line(text: str) -> None:
        if text == "first":
            heard.set()
            (out / "go").touch()

    waits = "for _ in $(seq 1200); do [ -e /forge/out/go ] && break; sleep 0.05; done"
    script = f"echo first; {waits}; printf '10%%\\r100%%\\r'; printf 'no end'"
    containers.run(run_of(out, "sh", "-c", script), line)
    assert heard.is_set()
    assert (out.parent / "run.log").read_bytes().endswith(b"first\n10%\r100%\rno end")


def test_a_program_out_of_memory_is_told_so(containers: DockerContainers, out: Path) -> None:
    greedy = "x = bytearray(400 * 1024**2)"
    with pytest.raises(HostError, match=r"killed: the memory it may use \(0\.1 GB\) ran out") as caught:
        containers.run(run_of(out, "python3", "-c", greedy, memory=100 * 1024**2), lambda line: None)
    assert "add memory" in caught.value.hint
    child = f'python3 -c "{greedy}"; exit 1'
    with pytest.raises(HostError, match="exited with 1 after the memory"):
        containers.run(run_of(out, "sh", "-c", child, memory=100 * 1024**2), lambda line: None)


def test_no_container_is_left_by_any_of_these(containers: DockerContainers, out: Path, engine: str) -> None:
    before = names(engine)
    for argv in (("true",), ("false",), ("no-such-program",)):
        try:
            containers.run(run_of(out, *argv), lambda line: None)
        except StepError:
            assert argv != ("true",)
    assert names(engine) <= before


def test_a_failing_listener_stops_the_container(containers: DockerContainers, out: Path, engine: str) -> None:
    before = names(engine)

    def line(text: str) -> None:
        raise BrokenPipeError(text)

    with pytest.raises(BrokenPipeError):
        containers.run(run_of(out, "sh", "-c", "echo one; sleep 60"), line)
    assert names(engine) <= before


def test_without_a_daemon_the_fix_is_named(out: Path, tmp_path: Path) -> None:
    nowhere = DockerContainers(environ(f"unix://{tmp_path}/docker.sock"))
    with pytest.raises(HostError) as caught:
        nowhere.run(run_of(out, "true"), print)
    assert "no Docker daemon answers" in caught.value.what
    assert "start it" in nowhere.check()[0].hint


def test_the_check_says_what_keeps_gpus_away(containers: DockerContainers) -> None:
    assert containers.check() == ()
    if not containers.facts().nvidia:
        assert any("nvidia-container-toolkit" in problem.hint for problem in containers.check(gpus=True))


def test_a_halt_on_another_thread_ends_and_removes_the_container(engine: str, plain: str, out: Path) -> None:
    before, halt = names(engine), Halt()
    stopping = DockerContainers(environ(engine), halt=halt)

    def hear(line: str) -> None:
        if line == "begun":
            threading.Thread(target=halt.pull).start()

    with pytest.raises(KeyboardInterrupt):
        stopping.run(run_of(out, "sh", "-c", "echo begun; exec sleep 600"), hear)
    assert names(engine) <= before
