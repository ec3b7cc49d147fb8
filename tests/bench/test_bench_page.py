"""The page of a benchmark: it holds what was measured, a real browser draws it, it asks for nothing and believes nothing."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from bokeh.plotting import figure
from click.testing import CliRunner
from msgspec.structs import replace

from browser import Browser, chromium
from forge.bench import drawing, results, tables
from forge.bench.page import DISTRIBUTIONS, MOST_BARS, numbered, plots, timeline
from forge.bench.results import Results
from forge.cli import main
from forge.errors import BenchError

SAMPLE = Path(__file__).parents[1] / "data" / "bench_results.json"
EVIL = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>\"'&{{7*7}}$$\\LaTeX$$"
DATA = """
const held = Bokeh.documents[0].get_model_by_name(arguments[0]);
const plain = each => Array.from(each, value => Number.isNaN(value) ? null : value);
return Object.fromEntries(Object.keys(held.data).map(name => [name, plain(held.data[name])]));
"""
"""The columns that Bokeh itself holds under a name."""
CANVAS = """
const view = [...Bokeh.index.roots].find(each => each.model.name === arguments[0]);
const canvas = view.canvas_view.primary.canvas;
const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
copy.drawImage(canvas, 0, 0);
const pixels = copy.getImageData(0, 0, canvas.width, canvas.height).data;
"""
COLOURS = f"""{CANVAS}
const found = new Map();
for (let at = 0; at < pixels.length; at += 4) {{
  const colour = pixels.slice(at, at + 3);
  if (Math.max(...colour) - Math.min(...colour) > 60) found.set(colour.join(), (found.get(colour.join()) ?? 0) + 1);
}}
return [...found].filter(([_, count]) => count > 20).map(([colour]) => colour);
"""
"""What has been painted that is no grey: axes, grids and text are."""
LIGHTNESS = f"""{CANVAS}
const seen = [];
for (let at = 0; at < pixels.length; at += 4) seen.push((pixels[at] + pixels[at + 1] + pixels[at + 2]) / 3);
seen.sort((one, other) => one - other);
return [seen[Math.floor(seen.length * 0.001)], seen[seen.length >> 1], seen[Math.floor(seen.length * 0.999)]];
"""
"""Of a plot's pixels, from 0 to 255: nearly the darkest, the middle, nearly the lightest."""
SPOT = """
const view = [...Bokeh.index.roots].find(each => each.model.name === "throughput");
const data = Bokeh.documents[0].get_model_by_name("throughput-data").data;
view.el.scrollIntoView({block: "center"});
const box = view.canvas_view.events_el.getBoundingClientRect();
return [box.x + view.frame.x_scale.compute(data.x[0]), box.y + view.frame.y_scale.compute(data.y[0])];
"""
"""Where the first dot of a plot is."""
TIPS = """
const find = root => [...root.querySelectorAll("*")].flatMap(each => [
  ...(each.className === "bk-tooltip-content" ? [each.textContent] : []), ...(each.shadowRoot ? find(each.shadowRoot) : [])]);
return find(document).join("\\n");
"""


@pytest.fixture(scope="module")
def sample() -> Results:
    return results.read(SAMPLE.read_bytes(), str(SAMPLE))


@pytest.fixture(scope="module")
def drawn(sample: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawing.leave(sample, tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as made:
        yield made


def is_dark(seen: list[float]) -> bool:
    """Of LIGHTNESS."""
    return seen[1] < 60


def is_light(seen: list[float]) -> bool:
    return seen[1] > 200


def hostile(found: Results) -> Results:
    """The same, with markup, a template and TeX wherever a text may stand."""
    point = found.points[0]
    assert point.quality is not None
    verdicts = tuple(replace(each, name=EVIL, answer=EVIL, passed=False, failed=(EVIL,)) for each in point.quality.verdicts)
    record = replace(point.repeats[0].records[0], error=EVIL)
    repeat = replace(point.repeats[0], records=(record, *point.repeats[0].records[1:]), errors={EVIL: 1}, triton={})
    bad = replace(
        point,
        model=EVIL,
        values={**point.values, EVIL: EVIL},
        repeats=(repeat,),
        quality=replace(point.quality, verdicts=verdicts),
    )
    subject = replace(found.subjects[0], name=EVIL, front=EVIL, keys={EVIL: EVIL})
    return replace(
        found,
        made=EVIL, command=(EVIL,), driver=EVIL, triton=EVIL, notes=(EVIL,),
        subjects=(subject,), points=(bad, *found.points[1:]),
        machine=replace(found.machine, cpu=EVIL, gpus=(EVIL,)), settings=replace(found.settings, dataset=EVIL),
    )  # fmt: skip


# -- what goes onto it


def held(plot: figure, name: str) -> dict[str, list[Any]]:
    """The columns of one of a plot's data sources."""
    source: Any = plot.select_one({"name": name})
    return cast("dict[str, list[Any]]", source.data)


def test_the_plots_hold_the_figures_of_every_point(sample: Results) -> None:
    made = {plot.drawn.name: plot.drawn for plot in plots(numbered(sample))}
    assert [*made] == ["throughput", "quality", *DISTRIBUTIONS]
    throughput = held(made["throughput"], "throughput-data")
    assert throughput["y"] == [each.figures["output_tokens_per_s"].value for each in sample.points]
    assert throughput["x"] == [each.figures["latency_p95"].value * 1000 for each in sample.points]
    assert held(made["quality"], "quality-data")["y"] == [50.0] * 4
    repeats = [repeat for point in sample.points for repeat in point.repeats]
    bars = held(timeline(repeats), "timeline-data")
    assert len(bars["row"]) == sum(len(repeat.records) for repeat in repeats)


def test_points_that_differ_in_their_load_only_are_one_line(sample: Results) -> None:
    cold, warm, cold_again, warm_again = numbered(sample)
    assert (cold.line, warm.line) == (cold_again.line, warm_again.line)
    assert cold.line != warm.line
    assert [each.load for each in (cold, cold_again)] == [1.0, 4.0]


def test_without_quality_or_single_times_those_plots_are_left_out(sample: Results) -> None:
    point = replace(sample.points[0], quality=None, distributions={"latency": (1.0, 2.0)})
    assert [plot.drawn.name for plot in plots(numbered(replace(sample, points=(point,))))] == ["throughput", "latency"]
    assert "quality" not in tables.chief([(1, "", point)]).header


def test_a_long_timeline_shows_the_first_requests_and_says_so(sample: Results, tmp_path: Path) -> None:
    repeat = sample.points[0].repeats[0]
    many = replace(repeat, records=repeat.records * 200)
    assert len(held(timeline([many]), "timeline-data")["row"]) == MOST_BARS
    made = replace(sample, points=(replace(sample.points[0], repeats=(many,)),))
    file = drawing.leave(made, tmp_path / "page.html")
    assert f"(the first {MOST_BARS} of {len(many.records)} requests)" in file.read_text(encoding="utf-8")


def test_every_setting_and_key_is_on_the_page(sample: Results, drawn: Path) -> None:
    text = drawn.read_text(encoding="utf-8")
    for value in (sample.subjects[0].entry, sample.subjects[0].tokenizer, sample.settings.prompts, sample.machine.cpu):
        assert value in text
    rows = {row[0]: row[1] for table in tables.about(sample) for row in table.rows}
    assert rows["goodput"] == "ttft=0.1, itl=0.02"
    assert rows["sweep"] == "concurrency=1 | 4, temperature=0.2 | 0.7"
    assert rows["tokens counted by the"] == "request, which fixes them"


# -- in a browser


@pytest.mark.slow
def test_the_page_is_drawn_silently_and_asks_for_nothing(browser: Browser, drawn: Path) -> None:
    browser.open(drawn)
    assert browser.ask("return Bokeh.documents[0].roots().map(root => root.name).filter(name => name)") == [
        "throughput", "quality", *DISTRIBUTIONS, "timeline",
    ]  # fmt: skip
    assert browser.logged() == []
    assert [each for each in browser.requests() if not each.startswith("data:")] == [drawn.as_uri()]
    for name in ("throughput", "quality", *DISTRIBUTIONS, "timeline"):
        assert len(browser.ask(COLOURS, name)) >= 3, f"{name} shows no data"


@pytest.mark.slow
def test_the_browser_itself_refuses_whatever_would_be_fetched(browser: Browser, drawn: Path) -> None:
    browser.open(drawn)
    browser.ask("const image = new Image(); image.src = 'http://127.0.0.1:9/x.png'; document.body.append(image)")
    browser.until("return document.images.length === 1 && document.images[0].complete")
    assert any("Content Security Policy" in each for each in browser.logged())


@pytest.mark.slow
def test_what_is_plotted_is_what_was_measured(browser: Browser, drawn: Path, sample: Results) -> None:
    browser.open(drawn)
    throughput: dict[str, list[Any]] = browser.ask(DATA, "throughput-data")
    assert throughput["y"] == pytest.approx([each.figures["output_tokens_per_s"].value for each in sample.points])
    assert throughput["x_high"] == pytest.approx([(each.figures["latency_p95"].high or 0) * 1000 for each in sample.points])
    assert throughput["label"] == [each.label for each in sample.points]
    assert browser.ask(DATA, "quality-data")["y_low"] == pytest.approx([9.5] * 4)
    for name in DISTRIBUTIONS:
        for number, point in enumerate(sample.points, 1):
            curve = browser.ask(DATA, f"{name}-{number}")
            assert curve["x"] == pytest.approx([value * 1000 for value in point.distributions[name]])
            assert curve["share"] == list(range(101))
    records = [record for point in sample.points for repeat in point.repeats for record in repeat.records]
    bars = browser.ask(DATA, "timeline-data")
    assert bars["sent"] == pytest.approx([each.sent for each in records])
    assert bars["first"] == [None if each.error else pytest.approx(each.first) for each in records]
    assert bars["end"] == pytest.approx([each.end for each in records])
    assert bars["fate"].count("failed") == sum(bool(each.error) for each in records) > 0


@pytest.mark.slow
def test_the_timeline_shows_the_repeat_that_is_chosen(browser: Browser, drawn: Path, sample: Results) -> None:
    browser.open(drawn)
    choose = "const it = document.getElementById('group'); it.value = arguments[0]; it.dispatchEvent(new Event('change'))"
    reach = """
    const plot = Bokeh.documents[0].get_model_by_name("timeline");
    return [plot.x_range.end, Bokeh.documents[0].get_model_by_name("timeline-filter").group]
    """
    lengths = [max(record.end for record in repeat.records) for point in sample.points for repeat in point.repeats]
    ends: list[float] = []
    for group, last in enumerate(lengths):
        browser.ask(choose, str(group))
        browser.until(f"{reach.replace('return', 'const found =')}; return found[0] >= {last} && found[0] < {last * 1.2}")
        ends.append(browser.ask(reach)[0])
        assert browser.ask(reach)[1] == str(group)
    assert browser.ask("return document.getElementById('group').options.length") == len(lengths)
    assert len(set(ends)) > 1


@pytest.mark.slow
def test_it_is_dark_where_wished_and_follows_a_change(browser: Browser, drawn: Path) -> None:
    for first, then in ((False, True), (True, False)):
        browser.open(drawn, dark=first)
        for dark in (first, then):
            browser.scheme(dark=dark)
            ground = "rgb(18, 21, 26)" if dark else "rgb(255, 255, 255)"
            browser.until("return getComputedStyle(document.body).backgroundColor === arguments[0]", ground)
            light = browser.settled(LIGHTNESS, "throughput", wish=is_dark if dark else is_light)
            # Texts and dots stand out against the ground.
            assert (light[2] - light[1] if dark else light[1] - light[0]) > 90
    assert browser.logged() == []


@pytest.mark.slow
def test_on_a_phone_nothing_scrolls_sideways(browser: Browser, drawn: Path, sample: Results, tmp_path: Path) -> None:
    long = drawing.leave(hostile(sample), tmp_path / "long.html")
    for file in (drawn, long):
        browser.open(file, phone=True)
        assert browser.ask("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
        widths = browser.ask("return [...document.querySelectorAll('.plot > div > *')].map(each => each.offsetWidth)")
        assert len(widths) == 7
        assert all(250 < width < 390 for width in widths)
        # A finger that begins on a plot scrolls the page.
        views = "[...Bokeh.index.roots].filter(each => each.canvas_view)"
        assert (
            browser.ask(f"return {views}.map(each => getComputedStyle(each.canvas_view.events_el).touchAction)") == ["auto"] * 7
        )


@pytest.mark.slow
def test_texts_of_the_results_are_shown_and_never_run(browser: Browser, sample: Results, tmp_path: Path) -> None:
    file = drawing.leave(hostile(sample), tmp_path / "evil.html")
    browser.open(file)
    assert browser.ask("return document.title") == f"{EVIL} - forge bench"
    assert browser.ask("return document.querySelector('h1').textContent") == EVIL
    browser.point(*browser.ask(SPOT))
    assert EVIL in browser.until(TIPS)
    assert browser.ask("return window.pwned ?? null") is None
    assert browser.ask("return document.images.length") == 0
    assert browser.logged() == []
    assert [each for each in browser.requests() if not each.startswith("data:")] == [file.as_uri()]


# -- by the command line


def test_results_are_drawn_later_beside_themselves_or_where_one_says(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_bytes(SAMPLE.read_bytes())
    said = CliRunner().invoke(main, ["bench", "page", str(kept)])
    assert said.output == f"page: {tmp_path / 'kept.html'}\n"
    done = CliRunner().invoke(main, ["bench", "page", str(kept), "-o", str(tmp_path / "other.html"), "--json"])
    assert json.loads(done.output) == {"page": str(tmp_path / "other.html")}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["kept.html", "kept.json", "other.html"]


def test_what_are_no_results_is_said_and_leaves_no_page(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    done = CliRunner().invoke(main, ["bench", "page", str(tmp_path / "other.json")])
    assert done.exit_code == BenchError.exit_code
    assert [each.name for each in tmp_path.iterdir()] == ["other.json"]


def test_results_without_a_point_are_an_error(sample: Results, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="nothing was measured"):
        drawing.leave(replace(sample, points=()), tmp_path / "page.html")


def test_a_page_without_bokeh_is_an_error_naming_the_install(tmp_path: Path) -> None:
    for words in (
        ["page", str(SAMPLE), "-o", str(tmp_path / "a.html")],
        ["run", "nothing", "--page", str(tmp_path / "a.html")],
    ):
        code = f"import sys; sys.modules['bokeh'] = None; from forge.cli import main; main({['bench', *words]!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == BenchError.exit_code
        assert "bokeh is not installed" in done.stderr
        assert "pip install 'triton-forge[bench]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bokeh_is_imported_only_for_a_page() -> None:
    code = "import sys; import forge.bench.drawing, forge.cli.bench, forge.api.forge; print('bokeh' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_results_of_an_h100_are_what_the_docs_say() -> None:
    docs = Path(__file__).parents[2] / "docs"
    told = (docs / "benchmarks.md").read_text(encoding="utf-8")
    for point in results.read((docs / "bench-h100.json").read_bytes(), "bench-h100.json").points:
        first, between = point.figures["ttft_p50"].value * 1000, point.figures["itl_p50"].value * 1000
        row = next(line for line in told.splitlines() if f"| {first:.3g} ms" in line)
        assert row.startswith(f"| {point.concurrency} | ")
        assert f"| {between:.2f} ms" in row
