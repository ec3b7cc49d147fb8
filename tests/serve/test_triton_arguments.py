"""Command lines and containers of servers, as values."""

from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

import tiny_models
from forge.errors import HostError, ServerError
from forge.schema.values import Ports
from forge.serve.arguments import ServerPlace, arguments, variables
from forge.serve.container import TritonContainer
from forge.serve.container_options import PUBLISHED, REPOSITORY, Box, configuration, lay_view, line, places
from forge.serve.process import TritonProcess
from forge.serve.ready import require_address, require_gpus
from forge.serve.server import Servers
from forge.serve.server_types import Launch, RepositoryFolders

ROLES = ("bls", "ensemble", "llm", "post", "pre")
LAUNCH = Launch(Path("/home/me/repository"), ROLES, engines=("llm",), image="forge/gemma:key", gpus="all")
SEAT = ServerPlace("tritonserver", ("/forge/repository",), PUBLISHED, "forge-serve-1", gpus=2)


def loads(words: tuple[str, ...]) -> list[str]:
    return [word.partition("=")[2] for word in words if word.startswith("--load-model=")]


def split(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """What mpirun starts, rank by rank."""
    ranks: list[list[str]] = [[]]
    for word in words:
        if word == ":":
            ranks.append([])
        else:
            ranks[-1].append(word)
    return [tuple(rank) for rank in ranks]


def test_one_engine_in_one_part_needs_no_mpi() -> None:
    assert arguments(LAUNCH, SEAT) == (
        "tritonserver",
        "--model-repository=/forge/repository",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in ROLES),
        *("--http-address=0.0.0.0", "--http-port=8000", "--grpc-address=0.0.0.0", "--grpc-port=8001"),
        *("--metrics-address=0.0.0.0", "--metrics-port=8002"),
        "--http-restricted-api=model-repository,shared-memory,trace,logging:forge-control=@secret",
        "--grpc-restricted-protocol=model-repository,shared-memory,trace,logging:forge-control=@secret",
        *("--disable-auto-complete-config", "--exit-timeout-secs=10"),
        "--backend-config=python,shm-region-prefix-name=forge-serve-1",
    )
    assert variables(LAUNCH) == {}


def test_only_the_first_server_of_engine_parts_serves_other_models() -> None:
    first, *others = split(arguments(replace(LAUNCH, world=3), SEAT))
    assert first[:5] == ("mpirun", "--allow-run-as-root", "-n", "1", "tritonserver")
    assert loads(first) == list(ROLES)
    assert [other[:3] for other in others] == [("-n", "1", "tritonserver")] * 2
    assert [loads(other) for other in others] == [["llm"], ["llm"]]
    prefixes = {word for rank in (first, *others) for word in rank if "shm-region" in word}
    assert len(prefixes) == 3


def test_two_engines_are_orchestrated_by_a_server_without_gpus() -> None:
    launch = replace(LAUNCH, engines=("llm", "draft"), world=2)
    (words,) = split(arguments(launch, SEAT))
    assert words[:5] == ("mpirun", "--allow-run-as-root", "-n", "1", "tritonserver")
    wanted = {"--pinned-memory-pool-byte-size=0", "--enable-peer-access=false"}
    assert wanted | {f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in (0, 1)} <= set(words)
    assert variables(launch) == {"TRTLLM_ORCHESTRATOR": "1", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": "1"}


def test_one_engine_with_room_is_orchestrated_none_is_not() -> None:
    alone = replace(LAUNCH, room=True)
    assert alone.orchestrated
    assert arguments(alone, SEAT)[:4] == ("mpirun", "--allow-run-as-root", "-n", "1")
    assert variables(alone)["TRTLLM_ORCHESTRATOR"] == "1"
    assert alone.base == replace(LAUNCH, engines=("llm", "draft")).base
    assert not replace(alone, engines=()).orchestrated


@pytest.mark.parametrize("image", ["", "sha256:1"])
def test_a_server_of_engines_differs_with_the_orchestrator(
    image: str,
) -> None:
    """In a container and where Triton is installed."""
    launch = replace(LAUNCH, image=image, triton="" if image else "/opt/tritonserver")
    assert launch.base != replace(launch, room=True).base


@pytest.mark.parametrize(
    ("gpus", "here", "world", "complaint"),
    [
        ("all", 1, 2, "and 1 are here"),
        ("all", 2, 2, ""),
        ("all", 0, 2, ""),
        ("0,1", 8, 4, r"and 2 are what it may use \(0,1\)"),
        ("0,1", 0, 2, ""),
        ("", 1, 2, ""),
        ("all", 1, 1, ""),
    ],
)
def test_an_engine_in_more_parts_than_gpus_is_refused(gpus: str, here: int, world: int, complaint: str) -> None:
    """Where the number of GPUs is known."""
    launch = replace(LAUNCH, gpus=gpus, world=world)
    if not complaint:
        require_gpus(launch, lambda: here)
        return
    with pytest.raises(HostError, match=f"in {world} parts.*{complaint}"):
        require_gpus(launch, lambda: here)


def test_a_server_asks_this_machine_how_many_gpus_there_are(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '23034, 20000, 8.9, NVIDIA L4'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "DOCKER_HOST": "tcp://elsewhere:2375"}
    assert TritonProcess(environ).gpus() == 1
    assert TritonContainer(environ).gpus() == 0, "another machine's daemon"
    assert TritonContainer({**environ, "DOCKER_HOST": "unix:///run/docker.sock"}).gpus() == 1


def test_engines_sharing_gpus_load_in_turn_one_line_names_them(tmp_path: Path) -> None:
    launch = replace(LAUNCH, engines=("llm", "b-llm"), models=(*ROLES, "b-llm", "b-bls"), turns=(("b-llm", "b-bls"),))
    (words,) = split(arguments(launch, SEAT))
    assert loads(words) == list(ROLES)
    assert "--model-load-thread-count=1" in words
    typed = Servers(tmp_path, {"DOCKER_HOST": "tcp://127.0.0.1:9"}).command(launch).argv
    assert loads(typed) == [*ROLES, "b-llm", "b-bls"]


def test_several_repositories_are_all_named() -> None:
    words = arguments(LAUNCH, replace(SEAT, repositories=("/forge/repository-1", "/forge/repository-2")))
    assert words[1:3] == ("--model-repository=/forge/repository-1", "--model-repository=/forge/repository-2")


def test_repositories_in_a_container_share_what_their_configs_name(tmp_path: Path) -> None:
    first, second, view = tmp_path / "first", tmp_path / "second", tmp_path / "view"
    parts = (RepositoryFolders(first, ("a-llm", "_assets/a")), RepositoryFolders(second, ("b-llm", "_assets/b")))
    launch = replace(LAUNCH, repository=first, several=parts)
    assert {path.name: str(place) for path, place in places(launch).items()} == {
        "first": "/forge/repository-1",
        "second": "/forge/repository-2",
    }
    lay_view(launch, view)
    assert str((view / "_assets" / "b").readlink()) == "/forge/repository-2/_assets/b"
    lay_view(replace(launch, several=(parts[0], RepositoryFolders(second))), view)
    assert sorted(str(path.relative_to(view)) for path in view.rglob("*")) == ["_assets", "_assets/a", "a-llm"]
    typed = Servers(tmp_path, {"DOCKER_HOST": "tcp://127.0.0.1:9"}).command(launch).argv
    mounts = [word for word in typed if word.startswith("type=bind")]
    assert [word.split(",")[2] for word in mounts] == [
        "target=/forge/repository",
        "target=/forge/repository-1",
        "target=/forge/repository-2",
        "target=/forge/unlisted.py",
    ]


def test_without_gpus_none_are_measured() -> None:
    assert "--allow-gpu-metrics=false" in arguments(LAUNCH, replace(SEAT, gpus=0))


def box(repository: Path, **changes: Any) -> Box:
    mounts = ((repository, REPOSITORY),)
    plain = Box("forge-serve-1", "forge/gemma:key", ("tritonserver", "-x"), {}, mounts, "all", Ports())
    return replace(plain, **changes)


def host(made: dict[str, object]) -> dict[str, Any]:
    return cast("dict[str, Any]", made["HostConfig"])


def test_a_container_sees_its_repository_and_writes_only_its_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    made = configuration(box(tmp_path, entrypoint=("/entry.sh",)), log, {"forge.key": "k"}, memlock=True)
    assert host(made)["Mounts"] == [
        {"Type": "bind", "Source": str(tmp_path), "Target": "/forge/repository", "ReadOnly": True},
        {"Type": "bind", "Source": str(log), "Target": "/forge/server.log", "ReadOnly": False},
    ]
    assert made["Entrypoint"] == ["/bin/sh", "-c", 'exec "$@" >>/forge/server.log 2>&1', "forge", "/entry.sh"]
    assert made["Cmd"] == ["tritonserver", "-x"]
    assert host(made)["SecurityOpt"] == ["no-new-privileges"]
    assert host(made)["ShmSize"] == 2 * 1024**3
    assert {limit["Name"]: limit["Hard"] for limit in host(made)["Ulimits"]} == {"stack": 64 * 1024**2, "memlock": -1}
    assert host(made)["RestartPolicy"] == {"Name": "no"}


@pytest.mark.parametrize("traces", [False, True])
def test_a_server_is_granted_tracing_and_that_where_needed(tmp_path: Path, traces: bool) -> None:
    made = host(configuration(box(tmp_path, traces=traces), tmp_path / "log", {}, memlock=True))
    assert made.pop("CapAdd", []) == (["SYS_PTRACE"] if traces else [])
    bounds = {"SecurityOpt", "ShmSize", "Init", "LogConfig", "Ulimits", "RestartPolicy"}
    assert set(made) == bounds | {"Mounts", "NetworkMode", "PortBindings", "DeviceRequests"}, "more may let it out"


def test_ports_are_published_only_on_the_address_asked_for(tmp_path: Path) -> None:
    out = Ports(18000, 18001, 18002)
    made = host(configuration(box(tmp_path, published=out), tmp_path / "log", {}, memlock=False))
    assert made["NetworkMode"] == "bridge"
    assert made["PortBindings"]["8001/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": "18001"}]
    assert [limit["Name"] for limit in made["Ulimits"]] == ["stack"]
    shared = host(configuration(box(tmp_path, published=None), tmp_path / "log", {}, memlock=True))
    assert (shared["NetworkMode"], shared["PortBindings"]) == ("host", {})


@pytest.mark.parametrize(
    ("gpus", "requests", "typed"),
    [
        ("", [], None),
        ("all", [{"Driver": "", "Capabilities": [["gpu"]], "Count": -1}], "all"),
        ("0,2", [{"Driver": "", "Capabilities": [["gpu"]], "DeviceIDs": ["0", "2"]}], '"device=0,2"'),
    ],
)
def test_a_container_gets_the_gpus_asked_for(tmp_path: Path, gpus: str, requests: list[object], typed: str | None) -> None:
    wanted = box(tmp_path, gpus=gpus)
    made = configuration(wanted, tmp_path / "log", {}, memlock=True)
    assert host(made)["DeviceRequests"] == requests
    assert ("NVIDIA_VISIBLE_DEVICES=void" in cast("list[str]", made["Env"])) == (not gpus)
    words = line(wanted)
    assert (words[words.index("--gpus") + 1] if typed else "--gpus" not in words) == (typed or True)


def test_what_a_person_types_says_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "a,b c"
    folder.mkdir()
    words = line(box(folder, published=Ports(18000, 18001, 18002, "::1"), env={"TRTLLM_ORCHESTRATOR": "1"}))
    assert words[:6] == ("docker", "run", "--rm", "--init", "--name", "forge-serve-1")
    assert f'type=bind,"source={folder}",target=/forge/repository,readonly' in words
    assert "[::1]:18001:8001" in words
    assert "TRTLLM_ORCHESTRATOR=1" in words
    assert words[-3:] == ("forge/gemma:key", "tritonserver", "-x")
    assert "--network" not in words


COMMENT_ONLY = "# as localhost:8001 would be\n" + tiny_models.IDENTITY


@pytest.mark.parametrize("ports", [Ports(grpc=9001), Ports(host="10.0.0.7")])
def test_a_model_that_asks_elsewhere_for_every_request_is_refused(tmp_path: Path, ports: Ports) -> None:
    tiny_models.lay(tmp_path, "bls", tiny_models.ASKS_ALWAYS)
    tiny_models.lay(tmp_path, "other", tiny_models.IDENTITY)
    launch = Launch(tmp_path, ("other", "bls"), image="x")
    with pytest.raises(ServerError, match="bls asks its own server at localhost:8001") as caught:
        require_address(launch, ports, lambda _: None)
    assert "--grpc-port 8001" in (caught.value.hint or "")
    for fitting in (Ports(), PUBLISHED):
        require_address(launch, fitting, lambda _: None)


def test_a_model_that_may_not_ask_there_is_only_told(tmp_path: Path) -> None:
    tiny_models.lay(tmp_path, "bls", COMMENT_ONLY)
    lines: list[str] = []
    require_address(Launch(tmp_path, ("bls",)), Ports(grpc=9001), lines.append)
    assert "localhost:8001" in "".join(lines)


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_installed_triton_is_kept_from_an_activated_environment(tmp_path: Path, variable: str) -> None:
    environ = {variable: str(tmp_path / "venv"), "PATH": f"{tmp_path}/venv/bin:/usr/bin"}
    launch = replace(LAUNCH, repository=tmp_path, image="", triton="/opt/tritonserver")
    assert Servers(tmp_path, environ).command(launch).env["PATH"] == "/usr/bin"
    (tmp_path / "venv" / "lib" / "python3.12" / "site-packages" / "tensorrt_llm").mkdir(parents=True)
    assert Servers(tmp_path, environ).command(launch).env["PATH"] == environ["PATH"], "NVIDIA's own is one too"


def test_an_installed_triton_keeps_its_backends_and_its_path(tmp_path: Path) -> None:
    environ = {
        "PATH": "/opt/venv-tritonserver/bin:/usr/bin",
        "LD_LIBRARY_PATH": "/usr/local/cuda/lib64",
        "OPAL_PREFIX": "/hpcx",
    }
    servers = Servers(tmp_path, {**environ, "HF_TOKEN": "hf_secret"})
    launch = replace(LAUNCH, repository=tmp_path, image="", triton="/opt/tritonserver")
    command = servers.command(launch)
    assert "/opt/tritonserver/bin/tritonserver" in command.argv
    assert not any(word.startswith("--backend-directory") for word in command.argv)
    assert f"--model-repository={tmp_path}" in command.argv
    assert environ.items() <= command.env.items()
    assert "hf_secret" not in str(command)
    parts = servers.command(replace(launch, world=2))
    assert parts.argv[0] == "mpirun"
    assert servers.command(replace(launch, engines=("llm", "draft"))).env["TRTLLM_ORCHESTRATOR"] == "1"


def test_a_launch_without_any_triton_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="there is no Triton to serve it with"):
        Servers(tmp_path, {}).command(Launch(tmp_path, ("a",)))
