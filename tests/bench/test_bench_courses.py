"""A whole benchmark over a model in miniature: its order, what it is bound to, and what it refuses."""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench_kit import Letters, Speaker, driver
from fake_wiring import FakeWiring, World
from forge.bench.benchmark import Bench, Clocks, keep
from forge.bench.driver import Driver
from forge.bench.options import BenchOptions
from forge.bench.readings import Instruments, Seen
from forge.bench.results import Results, ServerTimes
from forge.bench.targets import measured
from forge.bench.workload import Tokenizer
from forge.build.builder import Builder
from forge.client.types import ModelMetadata, TensorMetadata
from forge.errors import BenchError, InferenceError
from forge.events import Event
from forge.schema.manifest import PublishedModel
from forge.schema.values import Ports, Role, RuntimeKind
from forge.serve.lookup import Target
from forge.store.store import Store

PORTS = Ports(1, 2, 3)


class FakeInstruments:
    def version(self) -> str:
        return "2.0"

    @contextmanager
    def look(self) -> Generator[Seen]:
        seen = Seen()
        yield seen
        times = ServerTimes(requests=1, failures=0, executions=1, queue=0, compute_input=0, compute=0, compute_output=0)
        seen.triton = {"a-bls": times, "stranger": times}
        seen.notes = ("no GPU was looked at",)


class BenchWiring(FakeWiring):
    """The wiring of one Speaker, whose model has ``offered`` for inputs."""

    def __init__(self, home: Path, speaker: Speaker, offered: frozenset[str]) -> None:
        super().__init__(home, World())
        self._speaker, self._offered = speaker, offered

    def load_loop(self, clock: Callable[[], float]) -> Driver:
        return driver(self._speaker)

    def instruments(self, ports: Ports) -> Instruments:
        return FakeInstruments()

    def tokens(self, folder: Path) -> Tokenizer:
        return Letters()

    def metadata(self, address: str, model: str) -> ModelMetadata:
        return ModelMetadata(model, {name: TensorMetadata(name, "", ()) for name in self._offered}, {})


def target(name: str) -> Target:
    roles = {Role.BLS: f"{name}-bls", Role.TENSORRT_LLM: f"{name}-llm"}
    model = PublishedModel(name=name, entry=name * 8, runtime=RuntimeKind.TWIN, roles=roles, keys={"model": "k" + name})
    return Target("127.0.0.1:2", model, Path("repository"))


class Place:
    def __init__(self, home: Path, speaker: Speaker, offered: frozenset[str] = frozenset({"min_tokens"})) -> None:
        self.events: list[Event] = []
        clocks = Clocks(lambda: 0.0, lambda: 0.0)
        self.wiring, store = BenchWiring(home, speaker, offered), Store(home / "store", clock=lambda: 0.0)
        tell = self.events.append
        self.bench = Bench(self.wiring, store, clocks, tell, lambda: Builder(store, self.wiring.tools, tell))

    def run(self, options: BenchOptions, *names: str) -> Results:
        return self.bench.run([target(name) for name in names or ("a",)], PORTS, options)


def test_repeats_go_over_all_points_before_the_next_one_begins(tmp_path: Path) -> None:
    place = Place(tmp_path, Speaker())
    place.run(BenchOptions(requests=2, repeats=2, sweep={"concurrency": (1, 2)}))
    told = [event.text.split(": ")[:2] for event in place.events]
    assert told == [[f"a, concurrency={c}", f"repeat {r} of 2"] for r in (1, 2) for c in (1, 2)]


def test_answers_are_kept_from_ending_where_the_model_allows(tmp_path: Path) -> None:
    able, unable = Speaker(), Speaker()
    assert Place(tmp_path, able).run(BenchOptions(requests=1, repeats=1, output_tokens=7)).settings.ignore_end
    assert {(request.min_tokens, request.max_tokens) for request in able.asked} == {(7, 7)}
    assert not Place(tmp_path, unable, frozenset()).run(BenchOptions(requests=1, repeats=1)).settings.ignore_end
    assert {request.min_tokens for request in unable.asked} == {None}
    with pytest.raises(BenchError, match="cannot be told"):
        Place(tmp_path, Speaker(), frozenset()).run(BenchOptions(requests=1, ignore_end=True))


def test_one_seed_is_one_work_and_no_prompt_comes_twice(tmp_path: Path) -> None:
    speakers = [Speaker(), Speaker(), Speaker()]
    found = [
        Place(tmp_path, each).run(BenchOptions(requests=3, repeats=2, input_tokens=20, seed=seed))
        for each, seed in zip(speakers, (1, 1, 2), strict=True)
    ]
    assert speakers[0].asked == speakers[1].asked != speakers[2].asked
    assert found[0].settings.prompts == found[1].settings.prompts != found[2].settings.prompts
    assert len({request.prompt for request in speakers[0].asked}) == 2 * (3 + 1), "the warm-up's too"


def test_models_are_put_under_load_in_turn(tmp_path: Path) -> None:
    speaker = Speaker()
    found = Place(tmp_path, speaker).run(BenchOptions(requests=4, repeats=1, concurrency=2), "a", "b")
    assert speaker.most == 2
    assert [(point.model, len(point.repeats[0].records)) for point in found.points] == [("a", 4), ("b", 4)]


def test_results_say_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    found = Place(tmp_path, Speaker()).run(BenchOptions(requests=2, repeats=1, sampling={"temperature": 0.5}))
    assert [(subject.name, subject.entry, subject.keys) for subject in found.subjects] == [("a", "a" * 8, {"model": "ka"})]
    assert found.points[0].sampling == {"temperature": 0.5, "top_k": 0, "top_p": 1.0}
    assert list(found.points[0].repeats[0].triton) == ["a-bls"], "of the model's own, not of its neighbours"
    assert {"no GPU was looked at"} < set(found.notes)
    assert any("no intervals" in note for note in found.notes)
    first, second = keep(found, tmp_path / "bench"), keep(found, tmp_path / "bench")
    assert first != second
    assert len(os.listdir(tmp_path / "bench")) == 2


def test_failures_are_told_and_a_repeat_of_failures_ends_it(tmp_path: Path) -> None:
    data = tmp_path / "some.jsonl"
    data.write_text('{"prompt": "good"}\n{"prompt": "fail"}\n')
    found = Place(tmp_path, Speaker()).run(BenchOptions(requests=4, repeats=1, dataset=data, output_tokens=2))
    assert found.points[0].repeats[0].errors == {"out of memory": 2}
    assert "2 of 4 requests failed" in found.notes
    data.write_text('{"prompt": "fail"}\n')
    with pytest.raises(InferenceError, match="every request failed: out of memory"):
        Place(tmp_path, Speaker()).run(BenchOptions(requests=4, repeats=1, dataset=data))


def test_a_quality_file_is_exported_for_each_setting_without_asking(tmp_path: Path) -> None:
    file, speaker = tmp_path / "q.toml", Speaker()
    file.write_text('[[prompt]]\nname = "x"\ntext = "say x"\ncheck = [{ contains = "x" }]\n')
    options = BenchOptions(quality=file, sweep={"temperature": (0.2, 0.7)})
    text = Place(tmp_path, speaker).bench.export([target("a")], PORTS, options)
    assert text.count("http://127.0.0.1:1/v2/models/a-bls/generate") == 2
    assert speaker.asked == []


def test_a_deployments_file_names_its_models(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(f'name = "{name}"\n[source]\npath = "c"\n[runtime]\nkind = "twin"\n')
    file = tmp_path / "both.toml"
    file.write_text('recipes = ["one.toml", { recipe = "two.toml", name = "second" }]\nrepository = "r"\n')
    world = World()
    shop = world.shop(tmp_path / "home")
    asked: list[tuple[str, Path | str | None]] = []

    class Finding:
        joint, read = staticmethod(shop.joint), staticmethod(shop.read)

        def target(self, model: str, repository: str | Path | None = None) -> Target:
            asked.append((model, repository))
            return target(model)

        def server(self, repository: str | Path) -> object:
            return type("Running", (), {"ports": PORTS})()

    found, ports = measured(Finding(), str(file), None)  # type: ignore[arg-type]
    assert [each.model.name for each in found] == ["one", "second"]
    assert {repository for _, repository in asked} == {tmp_path / "r"}
    assert ports == PORTS
