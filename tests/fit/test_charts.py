"""The pictures of `forge plan --graph` and `forge fit --page`: they show what the verbs say, and ask for nothing."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as Tree

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from browser import Browser, chromium
from fakes import LLAMA, tiny_checkpoint
from fit_kit import LARGE, TEXT
from forge.cli import main
from forge.cli.charts import fit, plan
from forge.fit.memory import GIB
from forge.fit.verdict import Verdict
from forge.plan.preview import Outlook, Prospect, State
from forge.plan.steps import Plan

EVIL = '</svg><script>window.pwned = 1</script>&"'
SVG = "{http://www.w3.org/2000/svg}"


def step(name: str, *needs: str, state: State = State.MISS, seconds: float | None = None) -> Outlook:
    return Outlook(name, name, "Run", state is State.LOCAL, "first build", None, state, needs=needs, seconds=seconds)


STEPS = (
    step("image", state=State.LOCAL, seconds=90.0),
    step("a: model", seconds=30.0),
    step("a: checkpoint", "image", "a: model", seconds=60.0),
    step("a: engine", "image", "a: checkpoint", seconds=400.0),
    step("b: model", state=State.REMOTE),
    step("b: entry", "b: model", state=State.SPARED),
    step(f"{EVIL}: entry", "a: engine", "image"),
)
FOUND = Prospect(Plan(()), STEPS, None)


def forge(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with recipes of a checkpoint of seven billion parameters, of which only config.json counts."""
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    for folder, config in (("large", LARGE), ("small", LLAMA)):
        (tmp_path / folder).mkdir()
        for path, content in tiny_checkpoint(config).items():
            (tmp_path / folder / path).write_bytes(content)
        (tmp_path / f"{folder}.toml").write_text(TEXT.format(name=folder, source=f'path = "{folder}"'))
    return tmp_path


def test_a_graph_has_a_box_per_step_edges_per_need() -> None:
    drawn = Tree.fromstring(plan.picture_of(FOUND))
    boxes = drawn.findall(f"{SVG}g/{SVG}rect")
    states = [box.get("class", "").removeprefix("box ") for box in boxes if "box" in box.get("class", "")]
    assert states == [str(each.state) for each in STEPS]
    titles = [title.text or "" for title in drawn.findall(f"{SVG}g/{SVG}title")]
    assert all(title.startswith(each.name) for title, each in zip(titles, STEPS, strict=True))
    assert len(drawn.findall(f"{SVG}path")) == 5  # the image reaches the engine, and that the entry, by the checkpoint already


def test_the_longest_way_counts_known_times_held_steps_are_free() -> None:
    assert [each.name for each in plan.longest(STEPS)] == ["a: model", "a: checkpoint", "a: engine", f"{EVIL}: entry"]
    assert plan.summary(STEPS) == (
        "1 here, 1 in the shared store, 4 to be made, 1 not needed; the longest way through them took 8 min 10 s when last "
        "made, and 1 of its 4 steps were never made here"
    )
    held = tuple(replace(each, state=State.LOCAL) for each in STEPS)
    assert (plan.longest(held), plan.summary(held)) == ((), "7 here: nothing is left to be made")
    new = tuple(replace(each, seconds=None) for each in STEPS)
    assert plan.summary(new).endswith("how long that takes nobody knows here yet")
    drawn = Tree.fromstring(plan.picture_of(FOUND))
    assert [path.get("class") for path in drawn.findall(f"{SVG}path")].count("edge way") == 3


def test_a_plan_is_drawn_beside_what_is_said_of_it(place: Path) -> None:
    for name in ("plan.svg", "plan.html"):
        told = forge("plan", place / "small.toml", "--graph", place / name)
        assert told.exit_code == 0, told.output
        assert "STEP" in told.stdout
        text = (place / name).read_text()
        assert text.count('class="box miss"') >= 4
        assert "engine" in text
    assert "first build" in (place / "plan.html").read_text()
    refused = forge("plan", place / "small.toml", "--graph", place / "plan.png")
    assert (refused.exit_code, ".svg or .html" in refused.output) == (2, True)


def test_an_unwritable_picture_is_told_by_its_own_name(place: Path) -> None:
    told = forge("plan", place / "small.toml", "--graph", place / "none" / "plan.svg")
    assert told.exit_code == 1
    assert f"{place / 'none'}: there is no folder for the picture" in told.output
    assert "mkdir -p" in told.output
    assert ".plan.svg." not in told.output
    told = forge("fit", place / "small.toml", "--gpu", "H100", "--page", place / "none" / "fit.html")
    assert (told.exit_code, "there is no folder for the picture" in told.output) == (1, True)


def test_what_fits_is_drawn_with_what_would_help(place: Path) -> None:
    told = forge("fit", place / "large.toml", "--gpu", "RTX 3060", "--page", place / "fit.html")
    assert told.exit_code == 11
    text = (place / "fit.html").read_text()
    assert "does not fit" in text
    assert 'class="missing"' in text
    helps = [line.strip() for line in told.stdout.splitlines() if re.match(r" +(convert|build)\.\w+ = ", line)]
    assert len(helps) >= 3
    assert all(each.partition(":")[0] in text for each in helps)
    together = forge("fit", place / "large.toml", place / "small.toml", "--gpu", "H100", "--page", place / "two.html")
    assert together.exit_code == 0
    assert "Together on this GPU" in (place / "two.html").read_text()


def test_a_bars_parts_are_the_reports_bytes(place: Path) -> None:
    from forge.api.forge import Forge

    found = Forge.here().fit([place / "large.toml"], gpu="RTX 4090")
    (each,) = found.fits
    assert each.judgement is not None
    parts = {part.kind: part.size for part in fit.parts(each, found)}
    assert parts["weights"] == each.weight_ranks[0]
    assert parts["cache"] == min(each.kv_whole, each.judgement.room)
    assert sum(parts.values()) < 24 * GIB
    refused = replace(each, judgement=replace(each.judgement, verdict=Verdict.NO, short=GIB, room=0))
    assert {part.kind: part.size for part in fit.parts(refused, found)}["cache"] == each.kv_sequence


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.mark.slow
def test_a_browser_shows_them_whole_and_runs_nothing(browser: Browser, place: Path) -> None:
    (place / "plan.html").write_text(plan.page_of(FOUND))
    (place / "plan.svg").write_text(plan.picture_of(FOUND))
    forge("fit", place / "large.toml", "--gpu", "RTX 3060", "--page", place / "fit.html")
    for name in ("plan.html", "plan.svg", "fit.html"):
        browser.visit((place / name).as_uri(), phone=name != "plan.svg")
        assert browser.ask("return window.pwned ?? document.querySelectorAll('script').length") == 0
        assert browser.logged() == []
        if name != "plan.svg":
            assert browser.ask("return document.documentElement.scrollWidth <= innerWidth")
