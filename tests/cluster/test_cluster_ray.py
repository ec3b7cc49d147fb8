"""One plan over real Ray nodes: what is made once, what happens to machines and builds that die, and what is left running."""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from msgspec.structs import asdict

from docker_fixture import PLAIN, environ, private_engine
from forge.api.wiring import Wiring
from forge.build.builder import Builder
from forge.errors import HostError, StepError
from forge.events import Event
from forge.machine.docker.containers import DockerContainers
from forge.plan.steps import MakeImage, Run, Step
from forge.schema.values import Command, Requirements
from forge.store.store import Artifact, Store
from patience import soon
from ray_cluster import RayCluster
from ray_driver import Plan, build, team
from s3_server import BUCKET, S3

ray = pytest.importorskip("ray", reason="Ray is not installed here: pip install -e '.[test]' or '.[ray]' brings it")
pytestmark = [pytest.mark.slow, pytest.mark.long]
KINDS = {"a": "sm_80", "b": "sm_90", "c": "sm_90"}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A server that only one test starts; the nodes know its credentials from the beginning."""
    server = S3(tmp_path_factory.mktemp("s3"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def cluster(s3: S3) -> Iterator[RayCluster]:
    """Three nodes; the test's own process is a driver beside them."""
    # Not pytest's folder: a socket's path may have 107 characters at most, and Ray takes some 70 of them.
    with tempfile.TemporaryDirectory(prefix="fr-", ignore_cleanup_errors=True) as name, pytest.MonkeyPatch.context() as patch:
        found = RayCluster(Path(name), environ={**os.environ, **s3.environment()})
        patch.setenv("RAY_ADDRESS", found.address)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        try:
            found.begin({name: {"sm": sm} for name, sm in KINDS.items()})
            ray.init(found.address, namespace="forge", log_to_driver=False, logging_level=logging.ERROR)
            yield found
        finally:
            if ray.is_initialized():
                ray.shutdown()
            found.stop()


class Told:
    """What a build said."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def nodes(self, kind: str = "made") -> dict[str, str]:
        return {event.step: event.node for event in self.events if event.kind == kind and event.node}


def ran(plan: Plan) -> Counter[str]:
    """How often each line was noted."""
    file = Path(plan.ran)
    return Counter(file.read_text().splitlines()) if file.exists() else Counter()


def once(plan: Plan) -> dict[str, int]:
    """What ``ran`` has to be where nothing was made twice."""
    words = [f"{plan.name}{at}-{kind}" for at in range(plan.count) for kind in ("ce" if plan.sm else "c")]
    return {f"{word} {what}": 1 for word in words for what in ("begins", "ends")}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'shared'}"


def listings(found: Mapping[str, Artifact]) -> dict[str, str]:
    """Digests of all that was made, by key."""
    return {key: artifact.manifest.listing for key, artifact in found.items()}


def test_a_spread_plan_gives_the_same_with_each_step_once(cluster: RayCluster, tmp_path: Path, url: str) -> None:
    plan, told = Plan(str(tmp_path / "ran"), count=4, sm="sm_90", name="one"), Told()
    found = build(tmp_path / "driver", url, plan, told)
    assert ran(plan) == once(plan)
    nodes = told.nodes()
    assert {nodes[f"one{at}: engine"] for at in range(4)} == {"b", "c"}
    assert {event.node for event in told.events if event.kind == "log"} == set(nodes.values())
    alone = Store(tmp_path / "alone", clock=time.time)
    tools = Wiring(tmp_path / "home", dict(os.environ), print).tools
    same = Builder(alone, tools, Told()).realise(plan.steps())
    assert listings(found).items() <= listings(same).items()
    assert len(found) == 5  # the engines, and what this machine laid itself


def test_an_impossible_build_is_refused_at_once_with_nearest_node(cluster: RayCluster, tmp_path: Path, url: str) -> None:
    plan = Plan(str(tmp_path / "ran"), sm="sm_70")
    with pytest.raises(HostError, match=r"engine.*the nearest is a, which has sm_80, not sm_70") as refused:
        build(tmp_path / "driver", url, plan, Told())
    assert refused.value.exit_code == 11
    assert not ran(plan)


def test_a_failed_command_comes_back_unchanged_and_is_not_retried(cluster: RayCluster, tmp_path: Path, url: str) -> None:
    plan = Plan(str(tmp_path / "ran"), count=3, failing="m1", seconds=0.1)
    told = Told()
    with pytest.raises(StepError, match=r"m1: checkpoint.*exited with 3") as failed:
        build(tmp_path / "driver", url, plan, told)
    assert failed.value.exit_code == 7
    assert "it cannot be" in str(failed.value)
    assert ran(plan)["m1-c begins"] == 1


class Driver:
    """A build in a process of its own."""

    def __init__(self, home: Path, url: str, plan: Plan) -> None:
        self.plan = plan
        program = Path(__file__).parents[1] / "kit" / "ray_driver.py"
        argv = (sys.executable, str(program), str(home), url, json.dumps(asdict(plan)))
        paths = os.pathsep.join(path for path in sys.path if path)
        self.log = home.with_suffix(".out")
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(argv, stdout=sink, stderr=sink, env={**os.environ, "PYTHONPATH": paths})

    def wait(self) -> int:
        return self.process.wait(timeout=120)

    def events(self) -> list[Event]:
        lines = self.log.read_text().splitlines()
        return [Event(**json.loads(line)) for line in lines if line.startswith("{")]

    def has_begun(self, count: int = 1) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        return sum(line.endswith("begins") for line in ran(self.plan).elements()) >= count


def running(plan: Plan) -> list[str]:
    """Shells of the plan's steps that live, anywhere."""
    found: list[str] = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if words.startswith("sh\0-c\0") and plan.ran in words:
            found.append(words)
    return found


def test_two_builds_at_once_make_each_step_once(cluster: RayCluster, tmp_path: Path, url: str) -> None:
    plan = Plan(str(tmp_path / "ran"), count=4, seconds=0.5, sm="sm_90", name="two")
    drivers = [Driver(tmp_path / f"driver{number}", url, plan) for number in range(2)]
    assert [driver.wait() for driver in drivers] == [0, 0], drivers[0].log.read_text()[-3000:]
    assert ran(plan) == once(plan)
    for driver in drivers:
        assert {event.step for event in driver.events() if event.kind == "taken" and not event.node} >= {
            f"two{at}: engine, from the shared store" for at in range(4)
        }


def test_ctrl_c_ends_all_processes_on_nodes_in_ten_seconds(cluster: RayCluster, tmp_path: Path, url: str) -> None:
    driver = Driver(tmp_path / "driver", url, Plan(str(tmp_path / "ran"), count=6, seconds=300, name="ctrlc"))
    assert soon(lambda: driver.has_begun(3), 60)
    began = time.monotonic()
    driver.process.send_signal(signal.SIGINT)
    assert driver.wait() == 130
    assert not running(driver.plan)
    assert time.monotonic() - began < 10


def test_a_killed_build_leaves_nothing_running(cluster: RayCluster, tmp_path: Path, url: str) -> None:
    plan = Plan(str(tmp_path / "ran"), count=3, seconds=300, name="dead")
    driver = Driver(tmp_path / "driver", url, plan)
    assert soon(lambda: driver.has_begun(3), 60)
    driver.process.kill()
    driver.wait()
    assert soon(lambda: not running(plan), seconds=10)


def test_a_joined_build_goes_on_when_the_other_is_killed(cluster: RayCluster, tmp_path: Path, url: str) -> None:
    gate = tmp_path / "gate"
    plan = Plan(str(tmp_path / "ran"), count=2, name="join", gate=str(gate))
    first = Driver(tmp_path / "first", url, plan)
    assert soon(lambda: first.has_begun(2), 60)
    second = Driver(tmp_path / "second", url, plan)
    # It hears what both of the first one's steps say: one that it has not joined yet would be its own, made again.
    assert soon(lambda: len({event.step for event in second.events() if event.kind == "log"}) == 2, 60)
    first.process.kill()
    first.wait()
    # Ray ends what the first one had sent when it hears of its death: one that the gate lets out before would end twice.
    assert soon(lambda: ran(plan)["join0-c begins"] == ran(plan)["join1-c begins"] == 2, 60)
    gate.touch()
    assert second.wait() == 0, second.log.read_text()[-3000:]
    assert ran(plan)["join0-c ends"] == ran(plan)["join1-c ends"] == 1


def test_only_the_steps_of_a_dead_node_are_made_again(cluster: RayCluster, tmp_path: Path, url: str) -> None:
    plan, told = Plan(str(tmp_path / "ran"), count=8, seconds=1, name="kill"), Told()
    cluster.start("doomed", {"sm": "sm_80"})
    assert soon(lambda: "doomed" in alive(), 60)
    victims: list[str] = []

    def tell(event: Event) -> None:
        told(event)
        if event.kind == "log" and event.node == "doomed" and not victims:
            victims.extend(e.step for e in told.events if e.node == "doomed" and e.kind == "log")
            cluster.kill("doomed")

    build(tmp_path / "driver", url, plan, tell)
    assert victims
    noted = ran(plan)
    assert {word for word, count in noted.items() if word.endswith("ends") and count == 1} == {
        word for word in once(plan) if word.endswith("ends")
    }
    assert len(told.nodes()) == 8
    assert "doomed" not in told.nodes().values()
    assert [event.step for event in told.events if event.kind == "note" and event.step.startswith("node ")] == ["node doomed"]
    assert not running(plan)


def test_steps_wait_for_a_killed_shared_store_to_return(
    cluster: RayCluster, tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    s3.start()
    plan, told = Plan(str(tmp_path / "ran"), count=3, seconds=0.5, name="s3"), Told()

    def tell(event: Event) -> None:
        told(event)
        if event.kind == "log" and sum(other.kind == "log" for other in told.events) == 1:
            s3.kill()
        if (
            event.kind == "note"
            and "does not answer" in event.text
            and s3.process is not None
            and s3.process.poll() is not None
        ):
            s3.start()

    build(tmp_path / "driver", f"s3://{BUCKET}/cluster", plan, tell)
    assert any("does not answer" in event.text for event in told.events)
    assert ran(plan) == once(plan)


@pytest.fixture
def full(cluster: RayCluster) -> Iterator[str]:
    """A node whose disk takes no more than 300 kB."""
    home = cluster.home("full")
    home.mkdir()
    if subprocess.run(
        ("mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(home)), capture_output=True, check=False
    ).returncode:
        pytest.skip("a small disk cannot be mounted here: that wants root")
    try:
        cluster.start("full", {"sm": "sm_100"}, slots=4)
        assert soon(lambda: "full" in alive(), 60)
        yield "full"
        cluster.kill("full")
        assert soon(lambda: "full" not in alive(), 60)
    finally:
        subprocess.run(("umount", "-l", str(home)), check=True)


def alive() -> list[str]:
    return [node["Labels"].get("forge.node") for node in ray.nodes() if node["Alive"]]


def test_a_node_with_a_full_disk_loses_its_steps(cluster: RayCluster, tmp_path: Path, url: str, full: str) -> None:
    plan, told = Plan(str(tmp_path / "ran"), count=6, name="disk", kilobytes=500), Told()
    found = build(tmp_path / "driver", url, plan, told)
    assert len(found) == 7
    (left,) = [event for event in told.events if event.step == f"node {full}"]
    assert "left out" in left.text
    assert full not in told.nodes().values()


def test_a_step_goes_where_docker_holds_its_image(
    cluster: RayCluster, tmp_path: Path, url: str, engine: str, plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has more room, and a Docker that holds nothing."""
    monkeypatch.setenv("DOCKER_HOST", engine)
    held = DockerContainers(environ(engine)).inspect(PLAIN)
    assert held
    image = Step("image", MakeImage("llama", held.identity, Requirements(), reference=PLAIN))
    command = Command(("sh", "-c", "echo made > /forge/out/x"))
    steps = [Step(f"convert {at}", Run((command, Command(("true", str(at))))), (("image", image),), ("x",)) for at in range(2)]
    with private_engine() as (empty, _):
        nodes = {"holder": (1, engine), "empty": (4, empty)}
        for name, (slots, address) in nodes.items():
            cluster.join(name, {"docker": "true"}, slots=slots, more={"DOCKER_HOST": address})
        try:
            for step in steps:
                told = Told()
                team(tmp_path / "driver", url, told)[1].realise((image, step))
                assert told.nodes()[step.name] == "holder"
        finally:
            for name in nodes:
                cluster.kill(name)
    assert soon(lambda: not {*nodes} & {*alive()}, 60)
