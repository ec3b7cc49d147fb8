"""Steps over nodes without Ray: what a step asks, where it goes, what travels, and how nodes that differ are told apart."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from fake_wiring import FakeWiring, World
from forge.api.forge import Forge
from forge.build.builder import Builder
from forge.cli import main
from forge.cluster import worker
from forge.cluster.census import Facts, Wanted, differences, facts
from forge.cluster.errand import Errand, Failed, Lost, Made, Report, required
from forge.cluster.labels import Described, labels
from forge.cluster.node import Ask, Node, asked, mark, require
from forge.cluster.spread import Spread
from forge.cluster.team import Team
from forge.cluster.work import Travel, Work
from forge.cluster.workplace import Patience, Workplace
from forge.errors import ForgeError, HostError, RecipeError, SourceError, StepError, StoreError
from forge.events import Event
from forge.machine.probe import ThisMachine
from forge.plan.steps import Fetch, LayTexts, MakeImage, Run, Step
from forge.remote.place import RemoteError
from forge.schema.values import LOCAL, Command, FileFact, Gpu, Pinned, Requirements, SourceKind, TextFile
from forge.settings import RemoteTable, Settings
from forge.store.store import Store

PUSHED = ("toolchain", "checkpoint", "engine")
GPU = Node("g", "g", slots=2, sm=frozenset({"sm_90"}), docker=True, gpus=frozenset({"0", "1"}))
PLAIN = Node("p", "p", slots=2)


def run(name: str, *needs: Step, gpu: str = "", gpus: str = "") -> Step:
    return Step(name, Run((Command((name,)),), gpu=gpu, gpus=gpus), tuple((need.name, need) for need in needs))


def fetch(name: str, kind: SourceKind = SourceKind.HUB, size: int = 0) -> Step:
    return Step(name, Fetch(Pinned(kind, name, "c0ffee", (FileFact("a", size),), location=f"/data/{name}")))


IMAGE = Step("image", MakeImage("llama", "sha256:a", Requirements(), reference="nvcr.io/x"))


class TestAsk:
    def test_an_engine_asks_for_its_gpu_and_maybe_docker(self) -> None:
        asks = asked(run("engine", IMAGE, gpu="sm_90", gpus="0"), [IMAGE])
        assert asks == Ask(sm="sm_90", docker=True, gpus=frozenset({"0"}))
        assert GPU.lacks(asks) == ()
        assert PLAIN.lacks(asks) == ("has no GPU, not sm_90", "has no Docker", "has no GPU for it")

    def test_what_runs_inside_nvidias_container_asks_for_the_same_environment(self) -> None:
        image = Step("image", MakeImage("llama", "local:1", Requirements(), reference=LOCAL))
        asks = asked(run("convert", image), [image])
        assert asks == Ask(inside=mark("local:1"))
        assert replace(PLAIN, inside=mark("local:1")).lacks(asks) == ()
        assert PLAIN.lacks(asks)
        assert replace(PLAIN, inside=mark("local:2")).lacks(asks)

    def test_a_person_s_own_folder_has_to_be_seen(self) -> None:
        model = fetch("mine", SourceKind.PATH)
        asks = asked(run("convert", model), [model])
        assert PLAIN.lacks(asks) == ("does not see /data/mine",)
        assert replace(PLAIN, folders=frozenset({"/data/mine"})).lacks(asks) == ()

    def test_the_nearest_node_is_named_with_what_it_lacks(self) -> None:
        with pytest.raises(HostError, match=r"big: engine: the nearest is g, which has sm_90, not sm_70"):
            require([("big: engine", Ask(sm="sm_70", docker=True)), ("fine", Ask())], [PLAIN, GPU])
        with pytest.raises(HostError, match="no machine of the cluster takes forge's steps"):
            require([("fine", Ask())], [])


class TestSpread:
    def test_the_most_awaited_goes_first_and_needs_before_it(self) -> None:
        first, second = run("first"), run("second")
        works = [Work(run("short"), seconds=1), Work(first, seconds=5), Work(second, frozenset({first.key}), seconds=5)]
        spread = Spread(works, [replace(PLAIN, slots=1)])
        order: list[str] = []
        while spread:
            (placed,) = spread.next()
            order.append(placed.work.step.name)
            spread.ended(placed.work.key, 1)
        assert order == ["first", "second", "short"]

    def test_a_step_goes_where_its_inputs_lie_by_their_bytes(self) -> None:
        big, small = run("big"), run("small")
        both = Work(run("both"), frozenset({big.key, small.key}))
        spread = Spread([Work(big), Work(small), both], [replace(PLAIN, id="1", slots=1), replace(PLAIN, id="2", slots=1)])
        where = {placed.work.step.name: placed.node.id for placed in spread.next()}
        spread.ended(small.key, 10)
        spread.ended(big.key, 1000)
        (placed,) = spread.next()
        assert placed.node.id == where["big"]

    def test_a_freed_node_takes_a_step_whose_inputs_it_holds(self) -> None:
        makers = [run(f"maker{at}") for at in range(20)]
        works = [Work(maker, seconds=10) for maker in makers]
        works += [Work(run("reader"), frozenset({makers[0].key}), seconds=1)]
        spread = Spread(works, [replace(PLAIN, slots=1)])
        order: list[str] = []
        while spread:
            (placed,) = spread.next()
            order.append(placed.work.step.name)
            spread.ended(placed.work.key, 10**9)
        assert order[order.index("maker0") + 1] == "reader"

    def test_an_image_counts_like_other_inputs_by_its_bytes(self) -> None:
        maker = run("maker")
        works = [Work(maker), Work(run("both"), frozenset({maker.key}), images=frozenset({"big"}))]
        holder, other = replace(PLAIN, id="1", images=frozenset({"big"})), replace(PLAIN, id="2", slots=3)
        for size, where in ((20 * 10**9, "1"), (10**8, "2")):
            spread = Spread(works, [holder, other], {"big": size})
            (first,) = spread.next()
            assert first.node.id == "2"
            spread.ended(maker.key, 10**9)
            (placed,) = spread.next()
            assert placed.node.id == where

    def test_a_busy_image_holder_passes_its_step_and_image_on(self) -> None:
        on = frozenset({"i"})
        works = [Work(run(f"s{number}"), images=on) for number in range(3)]
        nodes = [replace(PLAIN, id=name, slots=1) for name in ("1", "2", "3")]
        spread = Spread(works, [replace(nodes[0], images=on), *nodes[1:]], {"i": 10**10})
        first, second, third = spread.next()
        assert first.node.id == "1"
        for placed in (second, third):
            spread.returned(placed.work.key)
        spread.ended(first.work.key, 1)
        again, elsewhere = spread.next()
        assert (again.node.id, elsewhere.node.id) == ("1", "3")
        spread.returned(again.work.key)
        spread.without("1")
        spread.ended(elsewhere.work.key, 1)
        (last,) = spread.next()
        assert last.node.id == "3"

    def test_private_weights_and_own_results_draw_steps_to_a_node(self) -> None:
        weights, before = fetch("weights", size=10**9), run("before")
        nodes = [replace(PLAIN, id="1"), replace(PLAIN, id="2", slots=3), replace(PLAIN, id="3", holds=frozenset({before.key}))]
        draws = [Work(run(name, weights), drawn={weights.key: 10**9}) for name in ("one", "two")]
        spread = Spread([draws[0]], nodes)
        (first,) = spread.next()
        assert first.node.id == "2"
        spread = Spread([Work(run("after", before), frozenset({before.key}))], nodes, {before.key: 1})
        (placed,) = spread.next()
        assert placed.node.id == "3"
        late = replace(draws[1], needs=frozenset({draws[0].key}))
        spread = Spread([draws[0], late], [replace(nodes[0], slots=4), replace(nodes[1], slots=4)])
        (first,) = spread.next()
        spread.ended(first.work.key, 0)
        (placed,) = spread.next()
        assert placed.node.id == first.node.id

    def test_a_gpu_has_one_step_at_a_time(self) -> None:
        ask = Ask(sm="sm_90", gpus=frozenset({"0"}))
        works = [Work(run(f"e{at}"), ask=ask) for at in range(3)]
        spread = Spread([*works, Work(run("other"), ask=replace(ask, gpus=frozenset({"1"})))], [replace(GPU, slots=8)])
        assert len(spread.next()) == 2

    def test_a_step_without_a_gpu_leaves_room_where_one_is(self) -> None:
        (placed,) = Spread([Work(run("convert"))], [GPU, PLAIN]).next()
        assert placed.node is PLAIN

    def test_a_lost_node_gets_nothing_and_its_steps_move(self) -> None:
        spread = Spread([Work(run("one"))], [replace(PLAIN, id="1"), replace(PLAIN, id="2")])
        (placed,) = spread.next()
        spread.returned(placed.work.key)
        spread.without(placed.node.id)
        (again,) = spread.next()
        assert again.node.id != placed.node.id
        spread.returned(again.work.key)
        spread.without(again.node.id)
        assert spread.next() == ()
        assert [work.step.name for work in spread.stranded()] == ["one"]

    def test_any_plan_is_done_within_each_node_s_room(self) -> None:
        chance = random.Random(7)
        works: list[Work] = []
        for number in range(200):
            needs = frozenset(work.key for work in chance.sample(works, min(len(works), chance.randint(0, 3))))
            gpus = chance.choice([frozenset[str](), frozenset({"0"}), frozenset({"all"})])
            works.append(Work(run(f"s{number}"), needs, ask=Ask(gpus=gpus), seconds=chance.random()))
        spread, done, busy = Spread(works, [GPU, PLAIN]), set[str](), list[tuple[str, Ask, str]]()
        while spread:
            for placed in spread.next():
                assert placed.work.needs <= done
                busy.append((placed.work.key, placed.work.ask, placed.node.id))
            for node in (GPU, PLAIN):
                there = [ask for _, ask, where in busy if where == node.id]
                taken = [gpu for ask in there for gpu in node.taken(ask.gpus)]
                assert len(there) <= node.slots
                assert len(taken) == len(set(taken))
            key, _, _ = busy.pop(chance.randrange(len(busy)))
            spread.ended(key, 1)
            done.add(key)
        assert len(done) == 200


class TestTravel:
    def test_only_pushed_steps_go_to_nodes_with_their_needs(self) -> None:
        model = fetch("model")
        checkpoint = run("checkpoint", IMAGE, model)
        engine = run("engine", IMAGE, checkpoint, gpu="sm_90", gpus="0")
        steps = (IMAGE, model, checkpoint, engine)
        found = Travel(PUSHED).spread(steps, lambda _: False, frozenset())
        assert [(work.step.name, work.needs, {each.name for each in work.local}) for work in found.works] == [
            ("checkpoint", frozenset(), {"image", "model"}),
            ("engine", frozenset({checkpoint.key}), {"image"}),
        ]
        assert Travel(PUSHED).spread(steps, lambda _: False, frozenset({engine.key})).works == ()
        with_weights = Travel((*PUSHED, "weights")).spread(steps, lambda _: False, frozenset())
        assert [work.step.name for work in with_weights.works] == ["model", "checkpoint", "engine"]

    def test_what_the_asking_machine_alone_has_is_sent_before(self) -> None:
        model = fetch("mine", SourceKind.PATH)
        checkpoint = run("checkpoint", model)
        engine = run("engine", checkpoint, gpu="sm_90")
        found = Travel((*PUSHED, "weights")).spread((model, checkpoint, engine), lambda _: False, frozenset())
        assert found.first == (model,)
        assert [work.step.name for work in found.works] == ["checkpoint", "engine"]
        held = Travel(PUSHED).spread((model, checkpoint, engine), lambda step: step is checkpoint, frozenset())
        assert (held.first, [work.step.name for work in held.works]) == ((checkpoint,), ["engine"])


class TestErrand:
    def test_a_key_is_reckoned_anew_where_the_step_arrives(self) -> None:
        step = run("one", run("below"))
        assert required(Errand(step, step.key, RemoteTable(), "me")).key == step.key
        with pytest.raises(StepError, match="reckons another key"):
            required(Errand(step, "0" * 64, RemoteTable(), "me"))

    @pytest.mark.parametrize("error", [StepError("a", where="log", hint="b"), SourceError("a"), StoreError("full")])
    def test_an_error_comes_back_as_what_it_was(self, error: ForgeError) -> None:
        back = Failed.of(error, "n1").error()
        assert (type(back), back.what, back.exit_code, back.hint) == (type(error), error.what, error.exit_code, error.hint)
        assert "n1" in back.where


class TestWorker:
    def test_a_process_with_another_forge_than_its_machine_makes_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step, said = run("one"), RemoteTable(url=f"file://{tmp_path / 'shared'}", access="read-write")
        wiring = FakeWiring(tmp_path, World())
        for kind in (Made, Failed):
            if kind is Failed:
                monkeypatch.setattr("forge.cluster.worker._LOADED", "0" * 16)
            found = worker.Worker(Errand(step, step.key, said, "me"), lambda _: wiring.equipment(said), "n1")
            end = found.hear(10**6, 30.0).end
            assert isinstance(end, kind)
            if isinstance(end, Failed):
                assert (end.kind, end.here) == ("HostError", True)
                assert "join again" in end.hint
            step = run("two")


@dataclass
class FakeFleet:
    """Nodes that are folders of this machine; ``ends`` is what becomes of an errand in place of being made, by (step, node)."""

    root: Path
    members: tuple[Node, ...]
    ends: dict[tuple[str, str], Failed | Lost] = field(default_factory=dict[tuple[str, str], Failed | Lost])
    other: dict[str, str] = field(default_factory=dict[str, str])
    sent: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    halted: int = 0
    worlds: dict[str, World] = field(default_factory=dict[str, World])
    """Nodes' own Docker, by their id."""
    listed: bool = False
    """Whether a node that is gone is told of as alive."""
    _waiting: list[Report] = field(default_factory=list[Report])

    def nodes(self) -> tuple[Node, ...]:
        return self.members

    def facts(self, nodes: Sequence[Node], wanted: Wanted) -> dict[str, Facts | str]:
        found = {node.id: facts(wanted, self._wiring(node).equipment(wanted.remote)) for node in nodes}
        return {node: replace(told, forge=self.other.get(node, told.forge)) for node, told in found.items()}

    def start(self, errand: Errand, ask: Ask, node: Node) -> None:
        self.sent.append((errand.step.name, node.id))
        told: list[Event] = []
        end: Made | Failed | Lost | None = self.ends.get((errand.step.name, node.id))
        if isinstance(end, Lost) and not self.listed:
            self.members = tuple(member for member in self.members if member.id != node.id)
        if end is None:
            equipment = self._wiring(node).equipment(errand.remote)
            try:
                end = Workplace(errand, equipment, told.append).make()
            except ForgeError as error:
                end = Failed.of(error, node.name)
        self._waiting.append(Report(errand.key, node.name, tuple(told), end=end))

    def _wiring(self, node: Node) -> FakeWiring:
        return FakeWiring(self.root / node.id, self.worlds.setdefault(node.id, World()))

    def hear(self, seconds: float) -> tuple[Report, ...]:
        heard, self._waiting = tuple(self._waiting), []
        return heard

    def halt(self) -> None:
        self.halted += 1


class Driver:
    """The machine that asks, with a fleet of fakes; nodes make steps in turn."""

    def __init__(self, root: Path, *members: Node) -> None:
        said = RemoteTable(url=f"file://{root / 'shared'}", access="read-write", deadline=5.0)
        self.fleet = FakeFleet(root, members or (PLAIN, GPU))
        self.told: list[Event] = []
        wiring, store = FakeWiring(root / "driver", World()), Store(root / "driver" / "store", clock=time.time)
        sharing = wiring.sharing(said, self.told.append, time.time, wiring.notary(said, store))
        assert sharing is not None
        alone = Builder(store, wiring.tools, self.told.append)
        self.team = Team(
            sharing, said, lambda: self.fleet, lambda wanted: facts(wanted, wiring.equipment(said)), alone.realise,
            self.told.append, wiring.tools.halt,
        )  # fmt: skip
        self.builder = Builder(store, wiring.tools, self.told.append, shared=self.team)

    def build(self, *steps: Step) -> None:
        self.builder.realise(steps)


CHECKPOINT = run("checkpoint")
ENGINE = run("engine", CHECKPOINT, gpu="sm_90", gpus="0")
LIST = Step("list", LayTexts((TextFile("a", "b"),)), (("engine", ENGINE),))


class TestTeam:
    def test_steps_are_made_on_nodes_and_the_result_is_taken(self, tmp_path: Path) -> None:
        driver = Driver(tmp_path)
        driver.build(CHECKPOINT, ENGINE, LIST)
        assert driver.fleet.sent == [("checkpoint", "p"), ("engine", "g")]
        assert [event.step for event in driver.told if event.kind == "made" and not event.node] == ["list"]
        assert driver.team.nodes == {CHECKPOINT.key: "p", ENGINE.key: "g"}
        assert not (tmp_path / "driver" / "store" / "artifacts" / CHECKPOINT.key[:2] / CHECKPOINT.key).exists()
        again = Driver(tmp_path)
        again.build(CHECKPOINT, ENGINE, LIST)
        assert again.fleet.sent == []

    def test_a_step_goes_where_its_image_is_held(self, tmp_path: Path) -> None:
        docker = replace(PLAIN, docker=True)
        nodes = [replace(docker, id=name, name=name) for name in ("n1", "n2", "n3")]
        for holder in ("n1", "n2"):
            driver = Driver(tmp_path / holder, *nodes)
            held = {node.id: World() for node in nodes}
            for name, world in held.items():
                world.containers.here = name == holder
            driver.fleet.worlds = held
            image = Step("image", MakeImage("llama", held[holder].containers.identity, Requirements(), reference="nvcr.io/x"))
            driver.build(run("convert", image))
            assert driver.fleet.sent == [("convert", holder)]
            assert all(not world.containers.pulled for world in held.values())

    def test_a_later_build_goes_where_its_inputs_were_left(self, tmp_path: Path) -> None:
        nodes = [replace(PLAIN, id=name, name=name) for name in ("n1", "n2", "n3")]
        first = Driver(tmp_path, *nodes)
        first.build(CHECKPOINT)
        ((_, where),) = first.fleet.sent
        again = Driver(
            tmp_path, *[node for node in nodes if node.id != where], replace(nodes[0], id=where, name=where, slots=1)
        )
        again.build(CHECKPOINT, run("other", CHECKPOINT))
        assert again.fleet.sent == [("other", where)]

    def test_a_full_disk_costs_the_node_and_not_the_step(self, tmp_path: Path) -> None:
        driver = Driver(tmp_path, PLAIN, replace(PLAIN, id="q", name="q"), GPU)
        full = Failed.of(StoreError("there is no space left"), "p")
        driver.fleet.ends = {("checkpoint", node): full for node in ("q",)}
        driver.build(CHECKPOINT, ENGINE, LIST)
        assert driver.fleet.sent == [("checkpoint", "q"), ("checkpoint", "p"), ("engine", "g")]
        assert [(event.step, event.text) for event in driver.told if event.kind == "note"] == [
            ("node q", "it is left out: there is no space left")
        ]

    def test_a_node_s_fault_fails_the_build_without_another_node(self, tmp_path: Path) -> None:
        driver = Driver(tmp_path, GPU)
        driver.fleet.ends = {("engine", "g"): Failed.of(StoreError("there is no space left"), "g")}
        with pytest.raises(StoreError, match=r"engine.*no space left"):
            driver.build(CHECKPOINT, ENGINE, LIST)

    def test_the_last_node_that_could_is_gone(self, tmp_path: Path) -> None:
        driver = Driver(tmp_path)
        driver.fleet.ends = {("engine", "g"): Lost("the node is dead")}
        with pytest.raises(HostError, match=r"engine: the nearest is p, which has no GPU, not sm_90"):
            driver.build(CHECKPOINT, ENGINE, LIST)
        assert "node g" in [event.step for event in driver.told if event.kind == "note"]

    def test_a_lost_node_that_is_still_listed_gets_nothing(self, tmp_path: Path) -> None:
        driver = Driver(tmp_path, PLAIN, replace(PLAIN, id="q", name="q"), GPU)
        driver.fleet.ends = {("checkpoint", "q"): Lost("its node was terminated", node=True)}
        driver.fleet.listed = True
        driver.build(CHECKPOINT, ENGINE, LIST)
        assert driver.fleet.sent == [("checkpoint", "q"), ("checkpoint", "p"), ("engine", "g")]

    def test_nodes_that_differ_are_refused_before_anything_begins(self, tmp_path: Path) -> None:
        driver = Driver(tmp_path)
        driver.fleet.other = {"p": "another"}
        with pytest.raises(HostError, match="p has another forge: another, here"):
            driver.build(CHECKPOINT, ENGINE, LIST)
        assert driver.fleet.sent == []


class TestPatience:
    def test_an_absent_shared_store_is_awaited_and_told_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("forge.cluster.workplace._PAUSE", 0.01)
        told: list[Event] = []
        left = [3]

        def ask() -> str:
            left[0] -= 1
            if left[0]:
                raise RemoteError("it does not answer")
            return "here"

        assert Patience(told.append, lambda: None, "engine").until(ask) == "here"
        assert [event.kind for event in told] == ["note"]
        left[0] = 10**6
        with pytest.raises(RemoteError):
            Patience(told.append, lambda: None, "engine", outage=0.05).until(ask)


class TestCensus:
    def test_what_must_agree_stops_and_what_may_differ_passes(self) -> None:
        here = Facts("f", {"forge_llama": "1"}, "3.11.7", "570.1", 10**9, "/home")
        nodes: dict[str, Facts | str] = {
            "a": replace(here, python="3.11.9", images={"i": "sha256:1"}),
            "b": replace(here, python="3.12.1", plugins={"forge_llama": "2"}, driver="580.2", images={"i": ""}),
            "c": "does not answer: it is gone",
        }
        found = differences(here, nodes, ("i",))
        assert [(each.node, each.what.split(":")[0]) for each in found if each.stops] == [
            ("b", "has another forge_llama"),
            ("b", "has Python 3.12.1, here 3.11.7"),
            ("c", "does not answer"),
        ]
        assert [each.node for each in found if "driver" in each.what] == ["a", "b"]
        assert [each.node for each in found if "does not hold i" in each.what] == ["b"]


def test_ray_and_forge_can_read_a_machine_s_labels() -> None:
    cards = frozenset({"sm_90", "sm_89"})
    inside = f"{mark('local:1')},forge.images=25.08_25.06"
    found = labels(Described("gpu 1!", cards, 2, 64, 3, docker=True, inside="local:1", images=("25.08", "25.06")))
    assert found.words == (
        f"--labels=forge.node=gpu-1,forge.sm=sm_89.sm_90,forge.docker=true,forge.memory=64,forge.inside={inside}",
        '--resources={"forge": 3, "forge_gpu_0": 1, "forge_gpu_1": 1}',
    )
    assert found.command().startswith("RAY_USAGE_STATS_ENABLED=0 RAY_enable_worker_prestart=1 RAY_preload")
    assert " ray start --head --num-cpus=12 --labels=" in found.command()
    many = Described("g", cards, 0, 64, 3, docker=True, images=tuple(f"25.{month:02}" for month in range(12, 0, -1)))
    assert labels(many).labels["images"] == "25.12_25.11_25.10_25.09_25.08_25.07_25.06_25.05_25.04_25.03"


def test_a_build_without_a_writable_shared_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text('name = "tiny"\n[source]\nwheel = "acme-tiny==1.0"\nfile = "tiny.gguf"\n[runtime]\nkind = "twin"\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    words = ["cluster", "check", "--remote"]
    refused = CliRunner().invoke(main, [*words, "none"])
    assert refused.exit_code == 11
    assert "exchange what they make through a shared store, and none is named" in refused.stderr
    read_only = CliRunner().invoke(main, [*words, f"file://{tmp_path}/shared"])
    assert read_only.exit_code == 11
    assert "is read-only here" in read_only.stderr


@dataclass
class Site:
    """A laptop without a GPU, and two machines with one each; all in miniature."""

    root: Path
    fleet: FakeFleet
    world: World = field(default_factory=World)

    def forge(self) -> Forge:
        settings = Settings(
            executor="ray", remote=RemoteTable(url=f"file://{self.root / 'shared'}", access="read-write", deadline=5.0)
        )
        wiring = FakeWiring(self.root / "laptop", self.world)
        wiring.fleet = lambda: self.fleet  # type: ignore[method-assign]
        return Forge(self.root / "laptop", {}, self.world.events.append, wiring, settings=settings)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    cards = [replace(GPU, id=sm, name=sm, sm=frozenset({sm}), gpus=frozenset({"0"})) for sm in ("sm_80", "sm_90")]
    return Site(tmp_path, FakeFleet(tmp_path, tuple(cards)))


TINY = 'name = "tiny"\n[source]\nhub = "acme/tiny"\n[runtime]\nkind = "engine"\nimage = "25.08"\n'


def test_a_gpuless_machine_builds_each_engine_on_its_gpu_kind(site: Site) -> None:
    (site.root / "tiny.toml").write_text(TINY)
    members = "".join(f'{{ recipe = "tiny.toml", name = "tiny-{sm}", gpu = "{sm}" }}, ' for sm in ("sm_80", "sm_90"))
    (site.root / "fleet.toml").write_text(f'repository = "models"\nrecipes = [{members}]\n')
    built = site.forge().build([site.root / "fleet.toml"])
    where = {each.step: each.node for each in built.nodes}
    assert (where["tiny-sm_80: engine"], where["tiny-sm_90: engine"]) == ("sm_80", "sm_90")
    assert [step for step, _ in site.fleet.sent].count("tiny-sm_80: checkpoint") == 1
    assert "tiny-sm_90: checkpoint" not in where  # the same conversion: one step
    assert sorted(model.name for model in built.models) == ["tiny-sm_80", "tiny-sm_90"]
    assert not [command for command in site.world.containers.ran if "trtllm-build" in command.command.argv]


def test_an_engine_without_a_gpu_is_refused_on_mixed_nodes(site: Site) -> None:
    (site.root / "tiny.toml").write_text(TINY)
    with pytest.raises(RecipeError, match=r"runtime\.gpu: the cluster has GPUs of sm_80, sm_90, and an engine is for one kind"):
        site.forge().plan([site.root / "tiny.toml"])
    assert site.fleet.sent == []


class Ada(ThisMachine):
    """A machine with a card of another kind."""

    def gpus(self) -> tuple[Gpu, ...]:
        return (Gpu("a card", 24 << 30, "8.9"),)


def test_an_engine_for_another_gpu_is_not_built_here(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(f'{TINY}gpu = "sm_90"\n')
    wiring = FakeWiring(tmp_path / "home", World())
    wiring.machine = Ada({})
    forge = Forge(tmp_path / "home", {}, wiring=wiring)
    with pytest.raises(HostError, match="engines for sm_90 are built on such a GPU; here is sm_89"):
        forge.build([tmp_path / "tiny.toml"], repository=tmp_path / "models")
