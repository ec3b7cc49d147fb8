"""OpenAI's API beside a server: it starts with it, ends with it, and is put up again where it dies alone."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest
from msgspec.structs import replace

import tiny_models
import tiny_served
from docker_fixture import environ
from forge.api.forge import Forge
from forge.errors import ServerError
from forge.machine import processes
from forge.schema.values import BuildOptions, Ports
from forge.serve.openai import sidecar
from forge.serve.openai.access import key
from forge.serve.server import Servers
from forge.serve.server_types import Launch, Running
from patience import PATIENCE, soon, spare
from standin.tree import Image
from triton_fixture import Serving

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.fixture
def launch(serving: Serving, tmp_path: Path) -> Launch:
    """A server of one model that is no language model's, with the API beside it."""
    tiny_models.lay(tmp_path / "repository", "identity", tiny_models.IDENTITY)
    plain = serving.launch(tmp_path / "repository", detach=True)
    (port,) = spare(1)
    return replace(plain, ports=replace(plain.ports, openai=port))


def serving_process(running: Running) -> int:
    """The process that listens, a child of the one that keeps it up."""
    found = processes.listener(running.ports.openai)
    assert found is not None
    return found


TOKENS = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_KEY"),
    *("VLLM_API_KEY", "OPENAI_API_KEY", "FORGE_SIGNING_KEY", "FORGE_SIGNING_PASSPHRASE", "COSIGN_PASSWORD", "HTTPS_PROXY"),
)


def test_no_token_reaches_the_server(serving: Serving, launch: Launch) -> None:
    """Nor its stubs, its guardian, the API beside it, or who looks after it."""
    secret = "a-token-of-the-callers"
    triton = Servers(serving.home, {**os.environ, **dict.fromkeys(TOKENS, secret)})
    running = triton.start(replace(launch, detach=False), lambda _: None)
    try:
        running = triton.watch(running, restart=True, scrub=0.0)
        begun = {running.pid, running.front, running.vigil, serving_process(running), *processes.marked(running.shared_memory)}
        begun |= processes.offspring((os.getpid(),)) - {os.getpid()}
        shown = [Path(f"/proc/{pid}/{part}") for pid in begun for part in ("cmdline", "environ")]
        assert len(begun) >= 6  # the server, a stub, its guardian, and of the API and of the vigil each who keeps it up
        assert [file for file in shown if secret.encode() in _read(file)] == []
        kept = [each for each in Path(running.log).parent.iterdir() if each.is_file()]
        assert [each for each in kept if secret in each.read_text(errors="replace")] == []
        assert [each for each in kept if stat.S_IMODE(each.stat().st_mode) & 0o077] == []
    finally:
        triton.stop(running)


def _read(file: Path) -> bytes:
    """What ``file`` of a process says; nothing where it has ended meanwhile."""
    try:
        return file.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_it_comes_up_and_goes_with_the_server(serving: Serving, launch: Launch) -> None:
    triton = serving.triton()
    running = triton.start(launch, lambda _: None)
    try:
        assert sidecar.answers(launch.ports)
        assert running in triton.running()
        assert serving_process(running) != running.front
    finally:
        triton.stop(running)
    assert not processes.marked(running.shared_memory)
    assert processes.free("127.0.0.1", launch.ports.openai)


def test_the_twin_computes_behind_who_speaks_for_it(serving: Serving, launch: Launch) -> None:
    triton = serving.triton()
    running = triton.start(launch, lambda _: None)
    try:
        port = serving_process(running)
        computing = processes.offspring((running.pid,))  # with its stubs
        spoken, *behind = [os.getpriority(os.PRIO_PROCESS, pid) for pid in (port, *computing)]
        assert spoken == os.getpriority(os.PRIO_PROCESS, 0)
        assert len(behind) > 1
        assert {*behind} == {min(19, spoken + 5)}
        groups = [Path(f"/proc/{pid}/autogroup").read_text().partition(" ")[2] for pid in (port, *computing)]
        if groups[0]:  # a kernel that has them, and has them on
            assert groups == ["nice 0\n", *["nice 5\n"] * len(computing)]
    finally:
        triton.stop(running)


def test_what_dies_is_put_up_again_giving_up_is_told(serving: Serving, launch: Launch) -> None:
    triton = serving.triton()
    running = triton.start(launch, lambda _: None)
    try:
        first = serving_process(running)
        os.kill(first, signal.SIGKILL)
        assert soon(lambda: sidecar.answers(launch.ports) and serving_process(running) != first)
        os.kill(running.front, signal.SIGKILL)
        assert soon(lambda: processes.listener(launch.ports.openai) is None)
        (told,) = (each for each in triton.running() if each.pid == running.pid)
        assert (told.front, told.ports.openai) == (0, launch.ports.openai)
    finally:
        triton.stop(running)
    assert not processes.marked(running.shared_memory)


def test_what_dies_comes_back_with_its_key_without_the_file(serving: Serving, launch: Launch, tmp_path: Path) -> None:
    file = tmp_path / "named.key"
    file.write_text("correct-horse-battery")
    triton = serving.triton()
    running = triton.start(replace(launch, ports=replace(launch.ports, key_file=str(file))), lambda _: None)
    try:
        file.unlink()
        first = serving_process(running)
        os.kill(first, signal.SIGKILL)
        assert soon(lambda: sidecar.answers(launch.ports) and serving_process(running) != first)
        kept = Path(running.ports.key_file)
        assert (kept.read_text(), stat.S_IMODE(kept.stat().st_mode)) == ("correct-horse-battery", 0o600)
        assert "Traceback" not in Path(running.log).with_suffix(sidecar.SUFFIX).read_text()
    finally:
        triton.stop(running)
    assert not kept.exists()


def test_a_missing_key_ends_it_with_a_sentence(tmp_path: Path) -> None:
    wanted = sidecar.command(Ports(openai=9000, key_file=str(tmp_path / "none")), [])
    done = subprocess.run(wanted.argv, env=dict(wanted.env), stderr=subprocess.PIPE, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 1
    assert "the file with the key cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_ends_when_the_server_dies(serving: Serving, launch: Launch) -> None:
    triton = serving.triton()
    running = triton.start(launch, lambda _: None)
    os.kill(running.pid, signal.SIGKILL)
    assert soon(lambda: not sidecar.alive(running) and processes.listener(launch.ports.openai) is None)
    assert running not in triton.running()
    assert not processes.marked(running.shared_memory)


def test_a_taken_port_is_found_before_the_start(serving: Serving, launch: Launch) -> None:
    complaint = f"port {launch.ports.openai} is taken by process {os.getpid()}"
    with socket.create_server(("127.0.0.1", launch.ports.openai)), pytest.raises(ServerError, match=complaint) as caught:
        serving.triton().start(launch, lambda _: None)
    assert "--openai-port" in caught.value.hint
    ports = replace(launch.ports, openai=launch.ports.grpc)
    with pytest.raises(ServerError, match="asked for twice"):
        serving.triton().start(replace(launch, ports=ports), lambda _: None)


def test_one_that_does_not_come_up_leaves_nothing(serving: Serving, launch: Launch) -> None:
    """Another program takes the port while the models load."""
    taken: list[socket.socket] = []

    def take(line: str) -> None:
        if "Started GRPCInferenceService" in line:
            taken.append(socket.create_server(("127.0.0.1", launch.ports.openai)))

    triton = serving.triton()
    try:
        with pytest.raises(ServerError, match=f"taken by process {os.getpid()}.*did not come up") as caught:
            triton.start(launch, take)
    finally:
        for each in taken:
            each.close()
    assert "address already in use" in caught.value.what
    assert not triton.running()


def test_forge_serve_has_it_and_sees_what_is_added(shop: Forge, home: Path, tmp_path: Path) -> None:
    """In the foreground: `forge status` shows it, a model that is added is offered, and it goes with a forge that is killed."""
    tiny_served.checkpoint(tmp_path / "checkpoint")
    recipe, repository = tmp_path / "tiny.toml", tmp_path / "repository"
    recipe.write_text(tiny_served.RECIPE)
    shop.build([recipe], repository=repository, options=BuildOptions(prefixed=True))
    ports = spare(4)
    names = ("--http-port", "--grpc-port", "--metrics-port", "--openai-port")
    options = [word for pair in zip(names, map(str, ports), strict=True) for word in pair]
    argv = [sys.executable, "-c", "from forge.cli import main; main()", "serve", "--repository", str(repository), *options]
    environ = {**os.environ, "FORGE_HOME": str(home)}
    printed = subprocess.run([*argv, "--print"], env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout
    words = f"--metrics 127.0.0.1:{ports[2]} 127.0.0.1 {ports[3]} 127.0.0.1:{ports[1]} {repository}"
    assert f"-m forge.serve.openai {words}" in printed
    beyond = subprocess.run(
        [*argv, "--print", "--ui", "--host", "0.0.0.0"], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    assert (
        f"-m forge.serve.openai --key-file {tmp_path / 'openai.key'} --metrics 127.0.0.1:{ports[2]} 0.0.0.0 {ports[3]}"
        in beyond.stdout
    )
    assert not (tmp_path / "openai.key").exists()
    (made,) = re.findall(r"make one: (.+)", beyond.stderr)
    subprocess.run(["sh", "-c", f"umask 022; {made}"], cwd=tmp_path, check=True)
    assert len(key(tmp_path / "openai.key")) == 48
    assert stat.S_IMODE((tmp_path / "openai.key").stat().st_mode) == 0o600
    twice = [*argv, "--print", "--openai-port", str(ports[0])]
    refused = subprocess.run(twice, env=environ, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (ServerError.exit_code, "")
    named = subprocess.run([*argv, "--print", "--host", "localhost"], env=environ, capture_output=True, text=True, check=True)
    assert "--http-address=127.0.0.1 " in named.stdout, "of a name Triton makes 255.255.255.255"
    sixth = subprocess.run([*argv, "--print", "--host", "::1"], env=environ, capture_output=True, text=True, check=True)
    assert "--http-address=ipv6:::1 " in sixth.stdout
    assert f"--metrics '[::1]:{ports[2]}' ::1 {ports[3]} '[::1]:{ports[1]}' " in sixth.stdout
    bracketed = subprocess.run([*argv, "--print", "--host", "[::1]"], env=environ, capture_output=True, text=True, check=True)
    assert bracketed.stdout == sixth.stdout
    assert f"port {ports[0]} is asked for twice" in refused.stderr
    with subprocess.Popen([*argv, "-q"], env=environ, stdout=subprocess.PIPE, text=True) as forge, ExitStack() as stack:
        stack.callback(forge.kill)
        assert forge.stdout is not None
        assert "ready" in forge.stdout.readline()
        assert f"openai http://127.0.0.1:{ports[3]}/v1" in forge.stdout.readline()
        assert forge.stdout.readline() == f"page http://127.0.0.1:{ports[3]}/\n"
        running = shop.server(repository)
        assert (running.ports.openai, bool(running.front)) == (ports[3], True)
        client = stack.enter_context(
            openai.OpenAI(base_url=f"http://127.0.0.1:{ports[3]}/v1", api_key="none", timeout=PATIENCE)
        )
        assert [model.id for model in client.models.list()] == ["tiny"]
        recipe.write_text(tiny_served.RECIPE.replace('"tiny"', '"other"').replace("max_tokens = 12", "max_tokens = 5"))
        shop.add([recipe], repository=repository)
        assert sorted(model.id for model in client.models.list()) == ["other", "tiny"]
        said = client.chat.completions.create(model="other", messages=[{"role": "user", "content": "hello"}])
        assert said.usage is not None
        assert said.usage.completion_tokens == 5
        os.kill(running.pid, signal.SIGKILL)
        assert soon(lambda: shop.server(repository).pid not in (0, running.pid) and speaks(client, "other"), pause=0.2)
    assert soon(lambda: not processes.marked(running.shared_memory))
    # A process that is going has no environment any more while the kernel still takes its memory back.
    assert soon(lambda: repository not in [Path(each.repository) for each in shop.servers()])


def speaks(client: openai.OpenAI, model: str) -> bool:
    try:
        return bool(client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}]).choices)
    except openai.APIStatusError:
        return False


def test_it_runs_here_beside_a_server_in_a_container(engine: str, standin: Image, launch: Launch, tmp_path: Path) -> None:
    servers = Servers(tmp_path / "home", environ(engine), patience=120.0)
    contained = replace(launch, environment=None, backends=None, image=standin.reference)
    running = servers.start(contained, lambda _: None)
    try:
        assert running.container
        assert sidecar.answers(launch.ports)
        with openai.OpenAI(base_url=f"http://127.0.0.1:{launch.ports.openai}/v1", api_key="none") as client:
            assert list(client.models.list()) == []
    finally:
        servers.stop(running)
    assert processes.free("127.0.0.1", launch.ports.openai)
    assert not processes.marked(running.shared_memory)
