"""Steps side by side: what overlaps, what waits, and what is left after a failure or Ctrl-C. Overlap is proved by meeting."""

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace

from fake_wiring import FakeWiring, World
from fakes import FakeOrigin
from forge.build.builder import DEFAULT, Builder, Tools
from forge.build.scheduler import Allowance
from forge.errors import ForgeError, StepError
from forge.events import Event, Listener, Progress
from forge.fit.gpus import clash
from forge.machine.containers import ContainerRun, Job, Line
from forge.machine.interrupt import Halt
from forge.machine.local_executor import LocalExecutor
from forge.plan.steps import Fetch, MakeImage, Run, Step
from forge.schema.values import Command, FileFact, Pinned, Requirements, SourceKind
from forge.store.store import Store
from patience import PATIENCE

TWIN = (
    'name = "{name}"\nfamily = "llama"\n[source]\nwheel = "acme-{name}==1.0"\nfile = "{name}.gguf"\n[runtime]\nkind = "twin"\n'
)


@dataclass
class Acts:
    """What commands do: a function by the command's first word. ``most`` is how many were ever under way at once."""

    by_name: Mapping[str, Callable[[Job], None]]
    most: int = 0
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, job: Job, line: Callable[[str], None]) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            line(job.command.argv[0])
            if act := self.by_name.get(job.command.argv[0]):
                act(job)
        finally:
            with self.lock:
                self.now -= 1


@dataclass
class Bench:
    """A builder over fakes; ``told`` is what it said."""

    home: Path
    allowance: Allowance = DEFAULT
    told: list[Event] = field(default_factory=list[Event])

    def tools(self) -> Tools:
        return FakeWiring(self.home, World()).tools

    def build(self, steps: list[Step], tools: Tools, listener: Listener | None = None) -> None:
        Builder(self.store, tools, listener or self.told.append, self.allowance).realise(steps)

    @property
    def store(self) -> Store:
        return Store(self.home / "store", clock=lambda: 1.0)

    def said(self, kind: str) -> list[str]:
        return [event.step for event in self.told if event.kind == kind]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def run(name: str, *needs: Step, gpus: str = "") -> Step:
    return Step(name, Run((Command((name,)),), gpus=gpus), tuple((need.name, need) for need in needs))


def fetch(name: str) -> Step:
    return Step(name, Fetch(Pinned(SourceKind.HUB, name, "c0ffee", (FileFact("a", 0),))))


def meeting(met: threading.Barrier) -> Callable[[Job], None]:
    """An act that ends when as many others are under way as have to meet."""

    def meet(_: Job) -> None:
        met.wait(PATIENCE)

    return meet


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("forge: ")]


def test_downloads_and_a_build_overlap_even_with_one_job(bench: Bench) -> None:
    met = threading.Barrier(3)

    class Meeting(FakeOrigin):
        def fetch(self, pinned: Pinned, into: Path, progress: Progress) -> None:
            met.wait(PATIENCE)

    tools = replace(bench.tools(), origins={SourceKind.HUB: Meeting()}, executor=Acts({"convert": meeting(met)}))
    bench.allowance = Allowance(jobs=1, fetches=2)
    bench.build([fetch("one"), fetch("two"), run("convert")], tools)
    assert sorted(bench.said("made")) == ["convert", "one", "two"]


def test_no_more_steps_compute_at_once_than_are_allowed(bench: Bench) -> None:
    met = threading.Barrier(2)  # each meets one other: two are under way at once, again and again
    acts = Acts({f"s{number}": meeting(met) for number in range(6)})
    bench.allowance = Allowance(jobs=2)
    bench.build([run(f"s{number}") for number in range(6)], replace(bench.tools(), executor=acts))
    assert acts.most == 2


def test_a_step_begins_only_when_its_needs_are_made(bench: Bench) -> None:
    order: list[str] = []
    names = ("a", "b", "both", "last")
    acts = Acts({name: lambda job: order.append(job.command.argv[0]) for name in names})
    a, b = run("a"), run("b")
    both = run("both", a, b)
    bench.build([a, b, both, run("last", both)], replace(bench.tools(), executor=acts))
    assert set(order[:2]) == {"a", "b"}
    assert order[2:] == ["both", "last"]


def test_what_recipes_share_is_made_once(tmp_path: Path) -> None:
    world = World(origin=FakeOrigin({"a.gguf": b"GGUF"}))
    files = [tmp_path / f"{name}.toml" for name in ("one", "two", "three")]
    for file in files:
        file.write_text(TWIN.format(name=file.stem))
    world.shop(tmp_path / "home").build(files, repository=tmp_path / "models")
    made = world.made()
    assert len(made) == len(set(made))
    assert len(world.environments.made) == 1
    assert {"one: model", "two: model", "three: model"} < set(made)


def test_events_come_in_turn_on_the_thread_that_builds(bench: Bench) -> None:
    heard: set[str] = set()
    bench.build([run("a"), run("b")], bench.tools(), lambda _: heard.add(threading.current_thread().name))
    assert heard == {threading.current_thread().name}


@pytest.mark.parametrize(
    ("some", "others", "wanted"),
    [
        ("all", "all", True),
        ("all", "1", True),
        ("0,1", "1,2", True),
        ("0", "1", False),
        ("0", "GPU-1f", True),
        ("GPU-1f", "GPU-2a", False),
        ("", "all", False),
    ],
)
def test_two_steps_that_may_want_one_gpu_take_turns(some: str, others: str, wanted: bool) -> None:
    one, two = (frozenset(names.split(",")) - {""} for names in (some, others))
    assert clash(one, two) is wanted
    assert clash(two, one) is wanted


@dataclass
class Cards:
    """A container engine that sees which GPUs are in use: none may be given twice."""

    meet: threading.Barrier | None = None
    held: set[str] = field(default_factory=set[str])
    twice: bool = False

    def inspect(self, reference: str) -> "Cards":
        return self

    id = "sha256:1"

    def run(self, run: ContainerRun, line: Line) -> None:
        wanted = set(run.gpus.split(","))
        self.twice |= bool(wanted & self.held)
        self.held |= wanted
        if self.meet:
            self.meet.wait(PATIENCE)
        line("worked")
        self.held -= wanted


IMAGE = Step("image", MakeImage("llama", "sha256:1", Requirements()))


def contained(bench: Bench, cards: Cards) -> Tools:
    from forge.build.in_containers import Contained

    wrapped = Contained(cards, bench.home / "logs")  # type: ignore[arg-type]
    return replace(bench.tools(), contained=lambda: wrapped)


def on_gpu(name: str, gpus: str) -> Step:
    return Step(name, Run((Command((name,)),), gpus=gpus), (("image", IMAGE),))


def test_engines_on_different_gpus_are_built_at_once(bench: Bench) -> None:
    cards = Cards(threading.Barrier(2))
    bench.build([IMAGE, on_gpu("one", "0"), on_gpu("two", "1")], contained(bench, cards))
    assert not cards.twice


def test_engines_on_one_gpu_are_built_one_after_the_other(bench: Bench) -> None:
    cards = Cards()
    bench.allowance = Allowance(jobs=4)
    bench.build([IMAGE, *(on_gpu(f"engine {number}", "all") for number in range(4))], contained(bench, cards))
    assert not cards.twice
    assert len(bench.said("made")) == 5


def test_after_a_failure_nothing_begins_and_running_steps_are_kept(bench: Bench) -> None:
    begun, failed = threading.Event(), threading.Event()

    def breaks(_: Job) -> None:
        begun.wait(PATIENCE)
        raise StepError("it broke")

    def lasts(_: Job) -> None:
        begun.set()
        assert failed.wait(PATIENCE)

    def listen(event: Event) -> None:
        bench.told.append(event)
        if event.kind == "failed":
            failed.set()

    bench.allowance = Allowance(jobs=2)
    steps = [run("breaks"), run("lasts"), run("never"), run("needs it", run("breaks"))]
    tools = replace(bench.tools(), executor=Acts({"breaks": breaks, "lasts": lasts}))
    with pytest.raises(StepError, match="breaks: it broke") as caught:
        bench.build(steps, tools, listen)
    assert caught.value.step == "breaks"
    assert bench.said("made") == ["lasts"]
    assert sorted(bench.said("start")) == ["breaks", "lasts"]
    assert [event.text for event in bench.told if event.kind == "failed"] == ["being finished before this ends: lasts"]
    assert bench.store.find(run("lasts").key)
    assert threads() == []


def test_a_second_failure_is_told_and_the_first_is_raised(bench: Bench) -> None:
    met = threading.Barrier(2)

    def breaks(job: Job) -> None:
        met.wait(PATIENCE)
        raise StepError(f"{job.command.argv[0]} broke")

    with pytest.raises(ForgeError) as caught:
        bench.build([run("a"), run("b")], replace(bench.tools(), executor=Acts({"a": breaks, "b": breaks})))
    assert sorted(bench.said("failed")) == ["a", "b"]
    assert caught.value.step == bench.said("failed")[0]


def test_ctrl_c_ends_every_program_and_leaves_nothing_stored(bench: Bench) -> None:
    halt, pids = Halt(), dict[str, int]()

    def listen(event: Event) -> None:
        if event.kind == "log":
            pids[event.step] = int(event.text)
        if len(pids) == 2:
            raise KeyboardInterrupt

    tools = replace(bench.tools(), executor=LocalExecutor(dict(os.environ), halt), halt=halt)
    script = ("sh", "-c", "echo $$; exec sleep 600")
    steps = [Step(name, Run((Command((*script, name)),))) for name in ("one", "two")]
    with pytest.raises(KeyboardInterrupt):
        bench.build(steps, tools, listen)
    assert threads() == []
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert list(bench.store.artifacts()) == []
    assert os.listdir(bench.home / "store" / "staging") == []


def test_ctrl_c_reaches_a_step_that_waits_for_another_process(bench: Bench) -> None:
    wanted = run("wanted")
    other = bench.store
    inside, leave = threading.Event(), threading.Event()

    def slow(_: Path) -> None:
        inside.set()
        leave.wait(PATIENCE)

    from forge.plan.preview import provenance

    holder = threading.Thread(target=lambda: other.make(wanted.key, provenance(wanted), slow))
    holder.start()
    assert inside.wait(PATIENCE)

    def listen(event: Event) -> None:
        if event.kind == "note":
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            bench.build([wanted], bench.tools(), listen)
        assert threads() == []
    finally:
        leave.set()
        holder.join()


def test_after_ctrl_c_the_same_builder_builds_again(bench: Bench) -> None:
    tools = bench.tools()
    builder = Builder(bench.store, tools, bench.told.append)
    tools.halt.pull()
    builder.realise([run("again")])
    assert bench.said("made") == ["again"]


def test_what_begins_to_wait_after_a_halt_is_not_begun() -> None:
    halt, ended = Halt(), list[str]()
    halt.pull()
    with pytest.raises(KeyboardInterrupt), halt.ending(lambda: ended.append("it")):
        ended.append("never")
    assert ended == []
