"""What the OpenAI port counts, and that the board of examples/ asks for what there is."""

import http.client
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families as families

import paced_triton
from forge.serve.openai.metrics import Meter, Outcome
from openai_front import front
from paced_triton import Paced
from patience import PATIENCE, soon
from tiny_served import Tiny

BOARD = Path(__file__).parents[2] / "examples" / "grafana" / "forge-openai.json"
TRITONS = {"nv_inference_queue_duration_us", "nv_inference_request_success"}
ASKED = [{"role": "user", "content": "hello world"}]
Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def paced(tiny: Tiny) -> Iterator[Paced]:
    with paced_triton.before(tiny.address) as server:
        yield server


@pytest.fixture
def address(paced: Paced, tiny: Tiny) -> Iterator[str]:
    paced.settle()
    with front(paced.address, tiny.target.repository) as api:
        yield api


def read(text: str) -> Figures:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value for family in families(text) for sample in family.samples
    }


def seen(api: str) -> Figures:
    with urllib.request.urlopen(f"{api.removesuffix('/v1')}/metrics", timeout=PATIENCE) as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return read(answer.read().decode())


def of(figures: Figures, name: str, **labels: str) -> float:
    return figures.get((name, frozenset({"model": "tiny", **labels}.items())), 0.0)


@pytest.mark.slow
def test_answers_are_counted_with_their_tokens_and_their_times(address: str, tiny: Tiny) -> None:
    with openai.OpenAI(base_url=address, api_key="none", timeout=PATIENCE) as client:
        usages = [client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=7).usage for _ in range(2)]  # type: ignore[arg-type]
        for _ in client.completions.create(model="tiny", prompt="hello", max_tokens=5, stream=True):
            pass
    figures = seen(address)
    known = [usage for usage in usages if usage is not None]
    assert of(figures, "forge_answers_total", outcome="ok") == 3
    assert of(figures, "forge_answers_under_way") == 0
    assert of(figures, "forge_completion_tokens_total") >= sum(usage.completion_tokens for usage in known) + 1
    assert of(figures, "forge_prompt_tokens_total") > sum(usage.prompt_tokens for usage in known)
    for name in ("forge_time_to_first_token_seconds", "forge_answer_seconds", "forge_queue_seconds"):
        assert of(figures, f"{name}_count") == 3
    assert 0 < of(figures, "forge_time_to_first_token_seconds_sum") <= of(figures, "forge_answer_seconds_sum")
    assert of(figures, "forge_inter_token_seconds_count") >= 3


@pytest.mark.slow
def test_errors_and_clients_that_leave_are_counted_as_such(address: str, paced: Paced) -> None:
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=PATIENCE) as client:
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="nobody", prompt="x")
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="tiny", prompt="x", temperature=9)
        paced.let(1)
        with client.completions.create(model="tiny", prompt="hello", max_tokens=9, stream=True) as stream:
            next(iter(stream))
            assert of(seen(address), "forge_answers_under_way") == 1
        assert soon(lambda: of(seen(address), "forge_answers_total", outcome="left") == 1)
        paced.release()
    figures = seen(address)
    assert of(figures, "forge_answers_under_way") == 0
    errors = {labels: value for (name, labels), value in figures.items() if name == "forge_error_responses_total"}
    assert errors == {
        frozenset({("status", "404"), ("code", "model_not_found")}): 1.0,
        frozenset({("status", "400"), ("code", "invalid_value")}): 1.0,
    }


@pytest.mark.slow
def test_they_are_under_the_key_where_there_is_one(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("correct-horse-battery")
    with front(tiny.address, tiny.target.repository, key_file=str(tmp_path / "key")) as api:
        connection = http.client.HTTPConnection(api.split("/")[2], timeout=PATIENCE)
        for shown, status in (({}, 401), ({"authorization": "Bearer correct-horse-battery"}, 200)):
            connection.request("GET", "/metrics", headers=shown)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status
        connection.close()


def test_the_board_asks_for_metrics_that_there_are() -> None:
    meter = Meter(lambda: 0.0)
    course = meter.course("tiny", 0.0)
    course.piece()
    course.piece()
    course.end(Outcome.OK, 3, 2)
    meter.refused(404, "model_not_found")
    there = {name for name, _ in read(meter.text().decode())} | TRITONS
    panels = json.loads(BOARD.read_text())["panels"]
    asked = {
        name for panel in panels for target in panel["targets"] for name in re.findall(r"\b(?:forge|nv)_\w+", target["expr"])
    }
    assert asked <= there
    own = {name for name in there if name.endswith(("_bucket", "_total")) or name == "forge_answers_under_way"}
    assert own <= asked
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
