"""Who can reach a server's ports can ask its models, and nothing else: no code, no memory, no settings."""

import base64
import http.client
import importlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from msgspec.structs import replace

import tiny_models
from docker_fixture import environ, granted
from forbidden_ptrace import without_ptrace
from forge.client import Client
from forge.errors import ServerError
from forge.machine import processes, unlisted
from forge.machine.docker.daemon import Daemon
from forge.serve.arguments import HEADER
from forge.serve.container import tracing_is_for_admins
from forge.serve.server import Servers
from forge.serve.server_types import Launch, Running
from forge.serve.state import key_file
from patience import PATIENCE, free_ports
from standin.tree import Image
from triton_fixture import Serving

pytestmark = [pytest.mark.slow, pytest.mark.network]

pb: Any = importlib.import_module("tritonclient.grpc.service_pb2")
stubs: Any = importlib.import_module("tritonclient.grpc.service_pb2_grpc")
CODE = "open({!r}, 'w').write('ran')\nclass TritonPythonModel:\n    def execute(self, requests):\n        return []\n"
CONFIG = json.dumps({"name": "evil", "backend": "python", "instance_group": [{"kind": "KIND_CPU"}]})

POSTS: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("model control", "/v2/repository/models/identity/load", {}),
    ("model control", "/v2/repository/models/identity/unload", {}),
    ("model control", "/v2/repository/index", {}),
    ("shared memory", "/v2/systemsharedmemory/region/r/register", {"key": "/r", "offset": 0, "byte_size": 8}),
    ("shared memory", "/v2/systemsharedmemory/region/r/unregister", {}),
    ("shared memory", "/v2/systemsharedmemory/unregister", {}),
    (
        "shared memory",
        "/v2/cudasharedmemory/region/r/register",
        {"raw_handle": {"b64": "AA=="}, "device_id": 0, "byte_size": 8},
    ),
    ("shared memory", "/v2/cudasharedmemory/unregister", {}),
    ("trace", "/v2/trace/setting", {"trace_level": ["TIMESTAMPS"], "trace_file": "/tmp/trace"}),
    ("trace", "/v2/models/identity/trace/setting", {"trace_level": ["TIMESTAMPS"]}),
    ("logging", "/v2/logging", {"log_file": "/tmp/log"}),
)
GETS = ("/v2/systemsharedmemory/status", "/v2/cudasharedmemory/status", "/v2/trace/setting", "/v2/logging")
CALLS = (
    ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="identity")),
    ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="identity")),
    ("RepositoryIndex", pb.RepositoryIndexRequest()),
    ("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name="r", key="/r", byte_size=8)),
    ("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest()),
    ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()),
    ("CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name="r", raw_handle=b"0", byte_size=8)),
    ("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest()),
    ("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest()),
    ("TraceSetting", pb.TraceSettingRequest()),
    ("LogSettings", pb.LogSettingsRequest()),
)


@pytest.fixture(scope="module")
def running(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    repository = tmp_path_factory.mktemp("restricted") / "repository"
    tiny_models.lay(repository, "identity", tiny_models.IDENTITY)
    with serving.server(repository) as found:
        yield found


def ask(running: Running, method: str, path: str, body: object, headers: dict[str, str]) -> tuple[int, str]:
    connection = http.client.HTTPConnection(running.ports.host, running.ports.http, timeout=PATIENCE)
    try:
        connection.request(method, path, json.dumps(body) if method == "POST" else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def call(running: Running, name: str, message: object, *metadata: tuple[str, str]) -> str:
    """What gRPC said of it: a code's name, ``OK`` where it was done."""
    with grpc.insecure_channel(f"{running.ports.host}:{running.ports.grpc}") as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)
        try:
            getattr(stub, name)(message, timeout=PATIENCE, metadata=metadata)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return "OK"


def programs() -> Iterator[str]:
    """The command line of every process of this machine."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            yield Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")


def override(proof: Path) -> dict[str, object]:
    code = base64.b64encode(CODE.format(str(proof)).encode()).decode()
    return {"parameters": {"config": CONFIG, "file:1/model.py": code}}


@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_no_code_is_loaded_over_http(running: Running, tmp_path: Path, kind: str) -> None:
    body = override(tmp_path / "ran")
    for headers in ({}, {HEADER: "@secret"}, {HEADER: "closed"}, {HEADER: ""}):
        status, said = ask(running, "POST", "/v2/repository/models/evil/load", body, {"Content-Type": kind, **headers})
        assert (status, "restricted" in said) == (403, True), said
    assert not (tmp_path / "ran").exists()


def test_no_code_is_loaded_over_grpc(running: Running, tmp_path: Path) -> None:
    message = pb.RepositoryModelLoadRequest(model_name="evil")
    message.parameters["config"].string_param = CONFIG
    message.parameters["file:1/model.py"].bytes_param = CODE.format(str(tmp_path / "ran")).encode()
    for metadata in ((), ((f"triton-grpc-protocol-{HEADER}", "@secret"),)):
        assert call(running, "RepositoryModelLoad", message, *metadata).startswith("UNAVAILABLE: This protocol is restricted")
    assert not (tmp_path / "ran").exists()


def test_nothing_but_models_is_open_over_http(running: Running) -> None:
    for what, path, body in POSTS:
        status, said = ask(running, "POST", path, body, {})
        assert (what, status, "restricted" in said) == (what, 403, True), (path, said)
    for path in GETS:
        assert ask(running, "GET", path, None, {})[0] == 403, path


def test_nothing_but_models_is_open_over_grpc(running: Running) -> None:
    for name, message in CALLS:
        assert "restricted" in call(running, name, message), name
    for name, message in (
        ("ModelConfig", pb.ModelConfigRequest(name="identity")),
        ("ModelMetadata", pb.ModelMetadataRequest(name="identity")),
        ("ServerMetadata", pb.ServerMetadataRequest()),
        ("ModelStatistics", pb.ModelStatisticsRequest()),
    ):
        assert call(running, name, message) == "OK", name


def test_asking_a_model_takes_no_secret(running: Running) -> None:
    address = f"{running.ports.host}:{running.ports.grpc}"
    with Client(address) as client:
        assert client.models() == ("identity",)
    body = {"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": ["hello"]}]}
    status, said = ask(running, "POST", "/v2/models/identity/infer", body, {})
    assert (status, json.loads(said)["outputs"][0]["data"]) == (200, ["hello"])


def test_forge_loads_and_unloads_with_its_secret(serving: Serving, running: Running) -> None:
    triton, place = serving.triton(), Path(running.repository)
    tiny_models.lay(place, "second", tiny_models.IDENTITY)
    launch = serving.launch(place)
    now = triton.load(running, launch, ("second",), print)
    assert now.models == ("identity", "second")
    assert triton.unload(now, ("second",)).models == ("identity",)
    key_file(running).rename(key_file(running).with_suffix(".away"))
    try:
        with pytest.raises(ServerError, match="restricted"):
            triton.load(running, launch, ("second",), print)
    finally:
        key_file(running).with_suffix(".away").rename(key_file(running))


def test_the_secret_is_in_no_process_list_log_or_model(running: Running) -> None:
    secret = key_file(running).read_text(encoding="ascii")
    assert len(secret) >= 40
    pids = processes.marked(running.shared_memory)
    assert running.pid in pids
    assert len(pids) > 1
    for pid in pids:
        assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        if pid != running.pid:  # a stub, which runs a model's Python
            assert secret.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    assert secret not in Path(running.log).read_text(encoding="utf-8")
    assert secret not in json.dumps([str(each) for each in (running,)])


def test_what_a_server_keeps_is_its_users_alone(serving: Serving, running: Running) -> None:
    folder = Path(running.log).parent
    kept = [folder, *folder.glob(f"{Path(running.log).stem}.*")]
    kept += processes.SHARED_MEMORY.glob(f"{running.shared_memory}*")
    assert {each.suffix for each in kept} >= {".json", ".key", ".log", ".lock"}
    assert any(each.parent == processes.SHARED_MEMORY for each in kept)
    for each in kept:
        assert stat.S_IMODE(each.stat().st_mode) & 0o077 == 0, each


def test_a_secret_that_cannot_be_hidden_is_none(tmp_path: Path) -> None:
    listed = [sys.executable, "-I", "-S", unlisted.__file__, str(tmp_path / "absent"), sys.executable]
    show = "import sys; print(ascii(sys.argv[1:]))"
    said = subprocess.run([*listed, "-c", show, "a=@secret"], check=True, capture_output=True, text=True).stdout
    assert said.strip() == ascii([f"a={unlisted.CLOSED}"])


@pytest.mark.parametrize(("asked", "shown"), [((), False), ((unlisted.ASKED_TO_SHOW,), True)])
def test_without_ptrace_the_secret_stays_put_or_shows_by_name(tmp_path: Path, asked: tuple[str, ...], shown: bool) -> None:
    (tmp_path / "key").write_text("hush")
    show = "import sys; print(ascii(sys.argv[1:]))"
    argv = [
        sys.executable,
        "-I",
        "-S",
        unlisted.__file__,
        *asked,
        str(tmp_path / "key"),
        sys.executable,
        "-c",
        show,
        "a=@secret",
    ]
    done = without_ptrace(lambda: subprocess.run(argv, check=True, capture_output=True, text=True))
    assert done.stdout.strip() == ascii(["a=hush" if shown else f"a={unlisted.CLOSED}"])
    assert done.stderr.strip() == (unlisted.SHOWN if shown else unlisted.SHUT)


def laid(place: Path) -> Path:
    for name in ("identity", "second", "third"):
        tiny_models.lay(place, name, tiny_models.IDENTITY)
    return place


def test_serve_says_where_ptrace_is_forbidden_and_control_is_closed(serving: Serving, tmp_path: Path) -> None:
    lines: list[str] = []
    launch = serving.launch(laid(tmp_path / "repository"))
    triton = serving.triton()
    running = without_ptrace(lambda: triton.start(launch, lines.append))
    try:
        assert any("cannot change this server" in line for line in lines)
        with pytest.raises(ServerError, match="ptrace is forbidden"):
            triton.load(running, launch, ("second",), print)
    finally:
        triton.stop(running)


def test_without_ptrace_engines_in_turn_are_refused_or_named(serving: Serving, tmp_path: Path) -> None:
    launch = replace(serving.launch(laid(tmp_path / "repository")), turns=(("second",), ("third",)))
    triton = serving.triton()
    with pytest.raises(ServerError, match=r"second, third are loaded in turn") as caught:
        without_ptrace(lambda: triton.start(launch, lambda _: None))
    assert "--exposed" in caught.value.hint
    lines: list[str] = []
    named = replace(launch, ports=replace(free_ports(), exposed=True))
    running = without_ptrace(lambda: triton.start(named, lines.append))
    try:
        assert set(running.models) == {"identity", "second", "third"}
        assert any("stands in the list of processes" in line for line in lines)
        assert ask(running, "POST", POSTS[0][1], {}, {})[0] == 403
    finally:
        triton.stop(running)


def test_a_container_may_trace_only_to_keep_its_secret(tmp_path: Path) -> None:
    for said, wanted in (("2", True), ("1", False), ("3", False)):
        (tmp_path / "scope").write_text(f"{said}\n")
        assert tracing_is_for_admins(tmp_path / "scope") is wanted
    assert not tracing_is_for_admins(tmp_path / "absent")


OLD = """#!/bin/sh
case "$*" in *-restricted-*) echo "tritonserver: unrecognized option '--http-restricted-api=x'"; exit 1;; esac
export PATH={path} LD_LIBRARY_PATH={libraries}
exec {program} "$@"
"""
"""A Triton before 2.40: it ends over options that it does not know."""


@pytest.fixture
def old(serving: Serving, tmp_path: Path) -> Launch:
    place = tmp_path / "repository"
    tiny_models.lay(place, "identity", tiny_models.IDENTITY)
    now = serving.launch(place)
    command = serving.triton().command(now)
    env, program = command.env, next(word for word in command.argv if word.endswith("tritonserver"))
    (tmp_path / "triton" / "bin").mkdir(parents=True)
    (tmp_path / "triton" / "backends").symlink_to(serving.backends)
    script = tmp_path / "triton" / "bin" / "tritonserver"
    script.write_text(OLD.format(path=env["PATH"], libraries=env["LD_LIBRARY_PATH"], program=program))
    script.chmod(0o755)
    return Launch(place, now.models, ports=free_ports(), triton=str(tmp_path / "triton"))


def test_a_triton_too_old_to_restrict_stays_on_the_loopback(serving: Serving, old: Launch) -> None:
    lines: list[str] = []
    triton = serving.triton()
    running = triton.start(old, lines.append)
    try:
        assert any("too old to keep model control" in line for line in lines)
        assert ask(running, "POST", "/v2/repository/index", {}, {})[0] == 200
    finally:
        triton.stop(running)


def test_an_old_triton_listens_beyond_the_loopback_only_by_name(serving: Serving, old: Launch) -> None:
    triton = serving.triton()
    with pytest.raises(ServerError, match="too old") as caught:
        triton.start(replace(old, ports=replace(old.ports, host="0.0.0.0")), lambda _: None)
    assert "--exposed" in caught.value.hint
    running = triton.start(replace(old, ports=replace(old.ports, host="0.0.0.0", exposed=True)), lambda _: None)
    triton.stop(running)


def test_a_printed_command_line_has_no_secret(serving: Serving, tmp_path: Path) -> None:
    tiny_models.lay(tmp_path / "repository", "identity", tiny_models.IDENTITY)
    argv = serving.triton().command(serving.launch(tmp_path / "repository")).argv
    assert sum("-restricted-" in word and word.endswith("@secret") for word in argv) == 2


def test_a_containers_control_is_forges_alone(
    engine: str, standin: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token := "hf_verysecret")
    place = tmp_path / "repository"
    tiny_models.lay(place, "identity", tiny_models.IDENTITY)
    launch = Launch(place, ("identity",), ports=free_ports(), image=standin.reference)
    servers = Servers(tmp_path / "home", {**environ(engine), "HF_TOKEN": token}, patience=120.0)
    running = servers.start(launch, lambda _: None)
    try:
        secret = key_file(running).read_text(encoding="ascii")
        for _, path, body in POSTS:
            assert ask(running, "POST", path, body, {})[0] == 403, path
        status, said = ask(running, "POST", "/v2/repository/models/evil/load", override(Path("/ran")), {HEADER: "@secret"})
        assert (status, "restricted" in said) == (403, True)
        assert "restricted" in call(running, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="identity"))
        with Daemon(environ(engine)).connected() as api:
            inspected = str(api.inspect_container(running.container))
        assert [each for each in (secret, token) if each in inspected] == []
        assert set(granted(engine, running.container)) == ({"CapAdd"} if tracing_is_for_admins() else set())
        listed = "".join(programs())
        assert running.shared_memory in listed
        assert secret not in listed
        assert secret not in Path(running.log).read_text(encoding="utf-8")
        tiny_models.lay(place, "second", tiny_models.IDENTITY)
        assert servers.load(running, launch, ("second",), print).models == ("identity", "second")
    finally:
        servers.stop(running)
    assert not key_file(running).exists()
