"""`forge tune`: successive halving over settings that are simulated, and over a real Triton; what it writes into a recipe."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import tomli
from msgspec.structs import replace

from fake_wiring import World
from forge.api.forge import Forge
from forge.api.outcome import Built
from forge.api.tune import Asked, Tuner
from forge.bench.options import BenchOptions
from forge.bench.results import Figure
from forge.bench.tune.evidence import applied, note, stated
from forge.bench.tune.goal import Goal, goal
from forge.bench.tune.search import Figures, Trial, Tuned, search
from forge.bench.tune.space import MOST, Candidate, Pairs, Value, axes, candidates, usual
from forge.client import Client, Request
from forge.errors import BenchError, HostError, RecipeError
from forge.plan.steps import Plan
from forge.recipe import reader
from forge.schema.values import BuildOptions, Recipe, Role, RuntimeKind
from patience import PATIENCE
from tiny_served import Tiny

TEXT = """# mine
name = "tiny"
family = "llama"

[source]
hub = "acme/tiny"  # where it is from

[build]
max_batch_size = 4      # requests together
"""
NO_WORD = "nothing is said"


@pytest.fixture
def recipe() -> Recipe:
    return reader.read(TEXT, "tiny.toml")


@dataclass
class Model:
    """Serves faster with larger batches and more requests at once, and later; every measurement is a little off."""

    broken: int = 0
    """The batch size that does not fit."""
    blunt: bool = False
    """Whether the batch size changes nothing."""
    asked: list[tuple[dict[str, Value], int]] = field(default_factory=list[tuple[dict[str, Value], int]])

    def measure(self, settings: Pairs, loads: Sequence[Pairs], requests: int) -> list[Figures]:
        size = int(str(dict(settings).get("build.max_batch_size", 4)))
        if size == self.broken:
            raise HostError("it does not fit")
        return [self._one(1 if self.blunt else size, dict(settings), dict(load), requests) for load in loads]

    def _one(self, size: int, settings: dict[str, Value], load: dict[str, Value], requests: int) -> Figures:
        many = int(str(load["concurrency"]))
        self.asked.append(({**settings, **load}, requests))
        off = 1 + 0.02 * math.sin(7 * len(self.asked)) / math.sqrt(requests)
        together = min(size, many)
        return {
            "output_tokens_per_s": Figure(value=40 * together**0.7 * off, unit="tokens/s", better="higher"),
            "ttft_p95": Figure(value=0.02 * many * max(1.0, many / size) * off, unit="s", better="lower"),
        }


def found(model: Model, recipe: Recipe, aim: Goal, *texts: str) -> Tuned:
    return search(candidates(axes(texts), recipe), model, aim, 4, lambda _: None)


GRID = ("build.max_batch_size=1,2,4,8,16", "concurrency=1,4,8,16")


def test_the_fastest_that_keeps_the_goal_is_found(recipe: Recipe) -> None:
    best = found(Model(), recipe, goal("tokens_per_s", ["ttft_p95<180ms"]), *GRID).best
    assert (best.settings, best.load) == ({"build.max_batch_size": 8}, {"concurrency": 8})


def test_each_round_halves_the_settings_and_doubles_the_requests(recipe: Recipe) -> None:
    rounds = found(Model(), recipe, goal("tokens_per_s", []), *GRID).rounds
    assert [len(trials) for trials in rounds] == [20, 10, 5, 2]
    assert [trials[0].requests for trials in rounds] == [4, 8, 16, 32]


def test_what_cannot_be_measured_is_left_with_its_reason(recipe: Recipe) -> None:
    told = found(Model(broken=16), recipe, goal("tokens_per_s", []), *GRID)
    assert {trial.failed for trial in told.rounds[0] if trial.settings.get("build.max_batch_size") == 16} == {"it does not fit"}
    assert told.best.settings == {"build.max_batch_size": 8}


def test_nothing_is_better_by_chance_alone(recipe: Recipe) -> None:
    told = found(Model(blunt=True), recipe, goal("ttft_p95", []), "build.max_batch_size=4,8", "concurrency=4")
    assert not told.better


def test_where_no_setting_keeps_the_goal_the_nearest_is_shown(recipe: Recipe) -> None:
    aim = goal("tokens_per_s", ["ttft_p95<1ms"])
    best = found(Model(), recipe, aim, *GRID).best
    assert best.load == {"concurrency": 1}
    assert not aim.kept({name: each.value for name, each in best.figures.items()})


def test_where_nothing_can_be_measured_the_first_reason_is_said(recipe: Recipe) -> None:
    with pytest.raises(BenchError, match="none of these settings"):
        found(Model(broken=4), recipe, goal("tokens_per_s", []), "concurrency=1,2")


def test_the_recipe_as_it_is_is_always_among_the_candidates(recipe: Recipe) -> None:
    given = candidates(axes(["build.max_batch_size=8,4", "concurrency=2"]), recipe)
    assert given == (
        Candidate((), (("concurrency", 2),)),
        Candidate((("build.max_batch_size", 8),), (("concurrency", 2),)),
    )


@pytest.mark.parametrize("kind", ["engine", "llmapi", "twin", "vllm"])
def test_what_is_usual_is_allowed_in_a_recipe(recipe: Recipe, kind: str) -> None:
    text = TEXT + f'\n[runtime]\nkind = "{kind}"\n'
    given = candidates(usual(reader.read(text, "")), reader.read(text, ""))
    assert len(given) <= MOST
    for settings in {each.settings for each in given}:
        reader.read(applied(text, dict(settings)), "tried")


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["build.max_batch_size"], "names no values"),
        (["max_batch_size=4"], "no key of a recipe's table"),
        (["concurrency=0"], "a whole number above 0"),
        (["concurrency=1.5"], "a whole number above 0"),
        (["concurrency=true"], "a whole number above 0"),
        (["rate=-1"], "a number above 0"),
        (["concurrency=1", "rate=2"], "exclude each other"),
        (["build.max_batch_size=4", "build.max_batch_size=8"], "varied twice"),
        (["sampling.stop=[1,2"], "is no value of TOML"),
        (['sampling.stop=["a"],"b'], "is no value of TOML"),
    ],
)
def test_a_wish_that_means_nothing_is_refused(texts: list[str], said: str) -> None:
    with pytest.raises(BenchError, match=said):
        axes(texts)


def test_lists_are_values_and_are_written_as_lists(recipe: Recipe) -> None:
    given = axes(["""sampling.stop=["."],["!","a, b"],[]""", "speculation.choices=[[0], [0,1]]", "build.x=auto,'a,b',1.5"])
    assert given == {
        "sampling.stop": ((".",), ("!", "a, b"), ()),
        "speculation.choices": (((0,), (0, 1)),),
        "build.x": ("auto", "a,b", 1.5),
    }
    tried = candidates(axes(["""sampling.stop=["."],["!","a, b"],[]""", "concurrency=1"]), recipe)
    assert [each.settings for each in tried] == [(), (("sampling.stop", (".",)),), (("sampling.stop", ("!", "a, b")),)]
    assert tried[2].label == "sampling.stop=[!,a, b] concurrency=1"
    settings = dict(tried[2].settings)
    assert reader.read(applied(TEXT, settings), "tried").sampling.stop == ("!", "a, b")
    written = stated(TEXT, settings, "why")
    assert 'stop = ["!", "a, b"]' in written
    assert reader.read(written, "tried").sampling.stop == ("!", "a, b")


def test_too_many_combinations_are_refused_with_their_number(recipe: Recipe) -> None:
    with pytest.raises(BenchError, match="100 combinations"):
        candidates(
            axes([f"build.max_batch_size={','.join(map(str, range(1, 11)))}", f"rate={','.join(map(str, range(1, 11)))}"]),
            recipe,
        )


@pytest.mark.parametrize(("figure", "limits"), [("tokens", []), ("input_tokens_mean", []), ("ttft_p95", ["ttft_p95<1.2x"])])
def test_a_goal_that_nobody_can_measure_is_refused(figure: str, limits: list[str]) -> None:
    with pytest.raises(BenchError):
        goal(figure, limits)


def test_the_evidence_stands_at_the_end_and_nothing_else_changes(recipe: Recipe) -> None:
    told = found(Model(), recipe, goal("tokens_per_s", ["ttft_p95<180ms"]), *GRID)
    assert told.better
    text = stated(TEXT, {**told.best.settings, "serve.instances": 2}, note(told, "2026-11-27"))
    assert text.startswith(TEXT.replace("max_batch_size = 4 ", "max_batch_size = 8 "))  # its comment too
    assert "\n[serve]\ninstances = 2\n" in text
    evidence = text.splitlines()[-1]
    assert evidence.startswith("# forge tune 2026-11-27: build.max_batch_size = 8: output_tokens_per_s 105")
    assert "at concurrency 8, ttft_p95 1" in evidence


SPELLINGS = {
    "inline": 'name = "a"\nbuild = { max_batch_size = 1, max_input_len = 64 }  # small\nserve = { stream = true }\n',
    "dotted": 'name = "a"\nbuild.max_batch_size = 1  # small\nbuild.max_seq_len = 64\nserve.stream = true\n',
    "apart": 'name = "a"\n[build]\nmax_batch_size = 1\n[serve]\nstream = true\n[build.args]\nq = 1\n',
    "with a mark": '\ufeffname = "a"\n[build]\nmax_batch_size = 1\n',
    "without an end": 'name = "a"\n[build]\nmax_batch_size = 1',
}


@pytest.mark.parametrize(
    "key", ["build.max_batch_size", "build.args.q", "serve.vllm.max_num_batched_tokens", "serve.instances"]
)
@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
def test_any_spelling_of_a_recipe_takes_the_finding_or_stays(text: str, key: str) -> None:
    def said(of: str) -> dict[str, Any]:
        return tomli.loads(of.removeprefix("\ufeff"))

    def taken(whole: dict[str, Any]) -> object:
        *folders, name = key.split(".")
        for part in folders:
            whole = whole[part]
        return whole.pop(name)

    assert taken(said(applied(text, {key: 7}))) == 7
    refused = ""
    written = text
    try:
        written = stated(text, {key: 7}, "why")
    except BenchError as error:
        refused = error.hint
    if refused:
        assert f"{key} = 7" in refused
        return
    whole = said(written)
    assert taken(whole) == 7
    assert written.endswith("# why\n")
    for name, each in said(text).items():
        if name != key.partition(".")[0]:
            assert whole[name] == each
    assert ("# small" in written) == ("# small" in text)
    assert written.startswith("\ufeff") == text.startswith("\ufeff")


def test_a_measurable_setting_beats_a_recipe_that_cannot_be_measured(recipe: Recipe) -> None:
    told = found(Model(broken=4), recipe, goal("tokens_per_s", []), "build.max_batch_size=2,8", "concurrency=4")
    assert (told.better, told.best.settings, told.before.failed) == (True, {"build.max_batch_size": 8}, "it does not fit")
    assert "output_tokens_per_s - -> 105" in note(told, "today")


class Idle:
    """A Forge that never gets to work."""

    home = Path()

    def __init__(self, shop: Forge) -> None:
        self._shop = shop
        self.read = shop.read
        self.plan, self.build, self.serve, self.stop, self.bench = (self._never,) * 5

    def _never(self, *_: object, **__: object) -> None:
        raise AssertionError(NO_WORD)


def test_forbidden_settings_are_refused_before_anything_is_built(shop: Forge, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TEXT)
    idle = Idle(shop)
    idle.home = tmp_path / "home"
    tuner = Tuner(idle, lambda _: None)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="max_batchsize"):
        tuner.tune(tmp_path / "tiny.toml", Asked(goal("tokens_per_s", []), axes(["build.max_batchsize=4"])))
    with pytest.raises(RecipeError, match="without brackets"):
        tuner.tune(tmp_path / "tiny.toml", Asked(goal("tokens_per_s", []), axes(["build.max_batch_size=[4,8]"])))
    assert [each.name for each in tmp_path.glob("*tiny*")] == ["tiny.toml"]


ENGINE = """# mine
name = "tiny"
family = "llama"
variant = "draft-target"  # guesses

[source]
hub = "acme/tiny"

# small
[draft]
hub = "acme/small"

[speculation]
max_draft_len = 5

[runtime]
kind = "engine"
gpus = "none"
"""


def test_another_variant_takes_away_what_it_does_not_read(recipe: Recipe) -> None:
    drafted = reader.read(ENGINE, "tiny.toml")
    given = candidates(axes(["variant=none,lookahead,draft-target", "speculation.max_draft_len=5,8", "concurrency=1"]), drafted)
    assert [dict(each.settings) for each in given] == [
        {},
        {"variant": "none"},
        {"variant": "lookahead"},
        {"speculation.max_draft_len": 8},
    ]
    texts = [stated(ENGINE, dict(each.settings), "why") for each in given]
    assert [reader.read(text, "").variant for text in texts] == ["draft-target", None, "lookahead", "draft-target"]
    assert [reader.read(text, "").draft is None for text in texts] == [False, True, True, False]
    assert all(reader.read(applied(ENGINE, dict(each.settings)), "") for each in given)
    assert texts[1].startswith('# mine\nname = "tiny"\nfamily = "llama"\n\n[source]\n')
    assert "[speculation]" not in texts[2]


def test_a_variant_and_its_draft_come_together(recipe: Recipe) -> None:
    given = candidates(axes(["variant=none,draft-target", "draft.hub=acme/small", "concurrency=1"]), recipe)
    assert [dict(each.settings) for each in given] == [{}, {"variant": "draft-target", "draft.hub": "acme/small"}]
    written = stated(TEXT, dict(given[1].settings), "why")
    assert reader.read(written, "").draft is not None
    assert written.startswith(TEXT.partition("[source]")[0].rstrip())
    told = msgspec.structs.replace(
        found(Model(), recipe, goal("tokens_per_s", []), "concurrency=1"), best=msgspec.convert(LEFT, Trial)
    )
    assert note(told, "today").startswith("forge tune today: no variant, serve.instances = 2: output_tokens_per_s 39")


LEFT = {
    "settings": {"variant": "none", "serve.instances": 2},
    "load": {"concurrency": 1},
    "requests": 4,
    "figures": {"output_tokens_per_s": {"value": 50, "unit": "tokens/s"}},
}


@dataclass
class InMiniature:
    """Builds over fakes, serves nothing, and measures what the recipe's variant would bring."""

    shop: Forge
    world: World
    home: Path
    ran: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])
    """The programs that each build ran."""

    def read(self, path: str | Path, runtime: RuntimeKind | None = None) -> Recipe:
        return self.shop.read(path, runtime)

    def plan(self, recipes: Sequence[str | Path], options: BuildOptions = BuildOptions()) -> Plan:  # noqa: B008 - it is frozen
        return self.shop.plan(recipes, options)

    def build(self, recipes: Sequence[str | Path], options: BuildOptions, *, repository: str | Path | None = None) -> Built:
        before = len(self.world.containers.ran)
        built = self.shop.build(recipes, options, repository=repository)
        self.built = replace(built, findings=())  # an engine of a line of text is not sound
        self.ran.append(tuple(run.command.argv[0] for run in self.world.containers.ran[before:]))
        return self.built

    def serve(self, *_: object) -> None:
        pass

    stop = serve

    def bench(self, *_: object) -> tuple[Any, Path]:
        pace = 1.0 + 0.5 * (Role.DRAFT in self.built.models[0].roles)
        figures = {"output_tokens_per_s": Figure(value=pace, unit="tokens/s", better="higher", values=(pace, pace))}
        return SimpleNamespace(points=(SimpleNamespace(figures=figures, quality=None),)), Path()


def test_a_change_builds_again_what_it_asks_for_alone(world: World, tmp_path: Path) -> None:
    shop = world.shop(tmp_path / "home")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(ENGINE)
    shop.lock(recipe)
    verbs = InMiniature(shop, world, tmp_path / "home")
    asked = Asked(
        goal("tokens_per_s", []),
        axes(["variant=none,lookahead,draft-target", "serve.kv_cache_free_gpu_mem_fraction=0.8", "concurrency=1"]),
        turns=2,
    )
    tuned, _ = Tuner(verbs, lambda _: None).tune(recipe, asked)  # type: ignore[arg-type]
    assert [trial.failed for trials in tuned.rounds for trial in trials] == [""] * sum(map(len, tuned.rounds))
    convert, build = "python3", "trtllm-build"
    assert verbs.ran[:4] == [(convert, convert, build, build), (convert, build), (build,), ()]
    assert set(verbs.ran[4:]) == {()}  # later rounds find everything in the store
    assert tuned.best.settings.get("variant", "draft-target") == "draft-target"


def test_an_unknown_variant_is_refused_before_anything_is_built(world: World, tmp_path: Path) -> None:
    shop = world.shop(tmp_path / "home")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(ENGINE)
    verbs = InMiniature(shop, world, tmp_path / "home")
    asked = Asked(goal("tokens_per_s", []), axes(["variant=none,nosuch"]))
    with pytest.raises(RecipeError, match="nosuch"):
        Tuner(verbs, lambda _: None).tune(recipe, asked)  # type: ignore[arg-type]
    assert verbs.ran == []


def test_variants_are_not_tuned_where_they_are_all_the_same(shop: Forge, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TEXT)
    asked = Asked(goal("tokens_per_s", []), axes(["variant=none,ngram"]), runtime=RuntimeKind.TWIN)
    with pytest.raises(BenchError, match="the twin guesses nothing ahead"):
        Tuner(shop, lambda _: None).tune(tmp_path / "tiny.toml", asked)


@pytest.mark.slow
def test_sampling_is_tuned_by_the_quality_of_answers(tiny: Tiny, shop: Forge, tmp_path: Path) -> None:
    recipe = tiny.recipe.with_name("asked.toml")
    recipe.write_text(tiny.recipe.read_text().replace('"tiny"', '"asked"').replace("top_k = 1", "temperature = 9.0"))
    with Client(tiny.address, timeout=PATIENCE) as client:
        greedy = client.ask(Request(tiny.target.model.front, "hello", 12, top_k=1)).text
    exam = tmp_path / "exam.toml"
    exam.write_text(f'[[prompt]]\nname = "it"\ntext = "hello"\nmax_tokens = 12\ncheck = [{{ exact = {json.dumps(greedy)} }}]\n')
    options = BenchOptions(input_tokens=8, output_tokens=2, quality=exam)
    held = {each.key for each in shop.store.artifacts()}
    asked = Asked(goal("quality", []), axes(["sampling.top_k=1,300", "concurrency=2"]), 2, 2, options)
    tuner = Tuner(shop, lambda _: None)
    told, _ = tuner.tune(recipe, asked)
    assert told.better
    assert told.best.settings == {"sampling.top_k": 1}
    assert [told.best.figures["quality"].value, told.before.figures["quality"].value] == [1.0, 0.0]
    made = {each.manifest.provenance.step for each in shop.store.artifacts() if each.key not in held}
    assert made == {"asked: entry"}  # once: how a model is asked is part of no artifact
    assert tuner.write(recipe, told)
    assert reader.read(recipe.read_text(), "").sampling.top_k == 1
    assert "sampling.top_k = 1: quality 0.0% -> 100.0%" in recipe.read_text()


@pytest.mark.slow
def test_a_real_server_is_tuned_and_the_recipe_says_why(tiny: Tiny, shop: Forge, tmp_path: Path) -> None:
    recipe = tiny.recipe.with_name("tuned.toml")
    recipe.write_text(tiny.recipe.read_text().replace('name = "tiny"', 'name = "tuned"'))
    before = shop.servers()
    asked = Asked(
        goal("tokens_per_s", ["ttft_p95<600s"]),
        axes(["serve.instances=1,4", "concurrency=4"]),
        4,
        1,
        BenchOptions(input_tokens=8, output_tokens=8),
    )
    tuner = Tuner(shop, lambda _: None)
    told, kept = tuner.tune(recipe, asked)
    assert shop.servers() == before
    assert {trial.settings.get("serve.instances") for trial in told.rounds[0]} == {None, 1, 4}
    assert all(trial.figures["output_tokens_per_s"].value > 0 for trial in (*told.rounds[0], told.best, told.before))
    assert msgspec.json.decode(kept.read_bytes(), type=Tuned) == told
    assert sorted(each.name for each in recipe.parent.glob("*tuned*")) == ["tuned.toml"]
    won = msgspec.structs.replace(told, better=True, best=told.rounds[0][-1])
    assert tuner.write(recipe, won)
    assert reader.read(recipe.read_text(), "").serve.instances == won.best.settings["serve.instances"]
    assert "# forge tune" in recipe.read_text()
