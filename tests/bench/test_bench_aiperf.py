"""AIPerf as a driver: what it is told, what its records say, how it ends; and both drivers on one real server."""

import json
import os
import stat
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

import aiperf_checks
import fake_aiperf
from bench_kit import Letters
from fake_wiring import FakeWiring, World
from forge.api.forge import Forge
from forge.api.wiring import Wiring
from forge.bench.aiperf import records as aiperf
from forge.bench.aiperf.driver import EXPORT, LOG, Aiperf, AiperfDriver
from forge.bench.aiperf.environment import aiperf_driver
from forge.bench.driver import Answer, Ask, Drive, Load
from forge.bench.options import BenchOptions
from forge.bench.results import Results
from forge.bench.workload import Counter
from forge.build.builder import Builder
from forge.client.tokenizer import TokenizerFolder
from forge.client.types import ModelMetadata, Request, TensorMetadata
from forge.errors import BenchError
from forge.events import Event
from forge.machine import processes
from forge.machine.interrupt import Halt
from forge.plan.steps import MakeEnvironment, Step
from forge.serve.lookup import Target
from forge.store.store import Store
from live_kit import chat
from openai_front import front

pytestmark = pytest.mark.long
RECORDED = Path(__file__).parents[1] / "data" / "aiperf" / EXPORT
"""Of AIPerf 0.13.0 and SmolLM2: five requests at 3 a second, the third refused, after a warm-up of one."""
PROMPTS = (("The capital of France is", 4), ("Größe: 🙂 ist ein", 5), ("A prompt whose answer is too long", 100000))
INPUTS = {
    name: TensorMetadata(name, kind, (-1, 1))
    for name, kind in (("text_input", "BYTES"), ("max_tokens", "INT32"), ("stream", "BOOL"), ("seed", "UINT64"))
}

FAKE = """#!/bin/sh
while [ "$1" != --output-artifact-dir ]; do shift; done
into="$2"
env > "$into/environment"
echo 'NOTICE   Phase warmup (warmup) started'
echo 'NOTICE   Phase profiling (profiling) started | target: 5 requests'
{body}
"""
WHOLE = f"""cp '{RECORDED}' "$into/"
sleep 0.3
echo 'NOTICE   Phase profiling (profiling) complete | completed=5'
sleep 0.2"""


def drive(**more: object) -> Drive:
    asks = [Ask(Request("bls", text, max_tokens=length, seed=7), 5) for text, length in PROMPTS]
    cycled = [asks[number % 3] for number in range(5)]
    given = {"load": Load(rate=3.0), "asks": cycled, "warm": cycled[:1], "seed": 9, "patience": 30.0, **more}
    return Drive("127.0.0.1:1", "127.0.0.1:2", **given)  # type: ignore[arg-type]


def recorded(lines: Sequence[str] | None = None) -> tuple[Answer, ...]:
    kept = RECORDED.read_text(encoding="utf-8").splitlines() if lines is None else lines
    return aiperf.answers("\n".join(kept), drive(), "there")


def test_records_become_answers_in_the_order_they_were_due() -> None:
    found = recorded()
    assert [answer.ask.request.prompt for answer in found] == [PROMPTS[number % 3][0] for number in range(5)]
    assert [len(answer.marks) for answer in found] == [4, 5, 0, 4, 5]
    assert [answer.tokens for answer in found] == [4, 5, 0, 4, 5]
    assert [answer.input_tokens for answer in found] == [5, 9, 0, 5, 9]
    assert found[0].due == 0


def test_moments_are_those_that_aiperf_measured() -> None:
    first = recorded()[0]
    assert first.sent - first.due == pytest.approx(0.001009368)  # request_start - credit_issued
    assert first.marks[0] - first.sent == pytest.approx(0.245016072)  # time_to_first_token
    gaps = [later - earlier for earlier, later in zip(first.marks, first.marks[1:], strict=False)]
    assert gaps == pytest.approx([0.082350606, 0.190887288, 0.20383413])  # inter_chunk_latency
    assert first.end - first.due == pytest.approx(0.723097464)


def test_a_closed_loop_counts_from_the_sending() -> None:
    found = aiperf.answers(RECORDED.read_bytes(), drive(load=Load(concurrency=2)), "there")
    assert all(answer.due == answer.sent for answer in found)


def test_a_refused_request_says_what_triton_said() -> None:
    (refused,) = (answer for answer in recorded() if answer.error)
    assert refused.error == "prompt length (7) + request_output_len (100000) exceeds the model's max_seq_len (4096)"
    assert not refused.marks


def test_what_a_server_does_not_count_aiperfs_tokenizer_does() -> None:
    lines = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["metrics"].pop("usage_completion_tokens", None)
        line["metrics"].pop("usage_prompt_tokens", None)
    counter = Counter(Letters(), {})
    records = [counter.record(answer) for answer in recorded([json.dumps(line) for line in lines])]
    assert [record.output_tokens for record in records] == [3, 5, 0, 3, 5]  # without the end's own token
    assert [record.input_tokens for record in records] == [5, 9, 5, 5, 9]  # of the refused one: what forge counted
    assert counter.ways == {"tokenizer"}


@pytest.mark.parametrize("text", ["no JSON", '{"metadata": {}}', '{"records": []}'])
def test_what_aiperf_did_not_write_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="no records of AIPerf"):
        recorded([text])


def test_a_request_that_nobody_asked_for_is_refused() -> None:
    strange = RECORDED.read_text(encoding="utf-8").replace("ask-4", "ask-5").splitlines()
    with pytest.raises(BenchError, match="not given: ask-5"):
        recorded(strange)


def test_a_load_is_told_in_aiperfs_options() -> None:
    told = " ".join(aiperf.arguments(drive(), "asks.jsonl", "into"))
    assert "--request-rate 3 --arrival-pattern poisson --warmup-request-count 1 --request-count 5" in told
    assert "--url http://127.0.0.1:2/v2/models/bls" in told
    assert "--random-seed 9" in told
    assert "--request-timeout-seconds 30" in told
    assert "--streaming" in told
    timed = aiperf.arguments(drive(load=Load(concurrency=4), duration=2.5, warm=()), "asks.jsonl", "into")
    assert "--concurrency 4 --benchmark-duration 2.5 --benchmark-grace-period inf" in " ".join(timed)
    assert not {"--request-count", "--warmup-request-count", "--request-rate"} & set(timed)


class Place:
    """The driver over a program that plays AIPerf."""

    def __init__(self, folder: Path, body: str) -> None:
        python = folder / "python3"
        python.write_text(FAKE.format(body=body))
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        self.said: list[str] = []
        self.looks: list[float] = []
        self.folder = folder / "kept"
        tool = Aiperf(python, nullcontext, lambda _, model: ModelMetadata(model, INPUTS, {}), lambda _: Letters(opening=2))
        environ = {"PATH": os.environ["PATH"], "HF_TOKEN": "secret", "https_proxy": "http://proxy"}
        self.driver = AiperfDriver(tool, self.folder, environ, Halt(), self.said.append)

    @contextmanager
    def watch(self) -> Generator[None]:
        began = time.monotonic()
        yield
        self.looks.append(time.monotonic() - began)

    def run(self, wanted: Drive) -> tuple[Answer, ...]:
        return self.driver.drive(wanted, self.watch)


def test_the_server_is_watched_from_warm_up_to_last_answer(tmp_path: Path) -> None:
    place = Place(tmp_path, WHOLE)
    assert len(place.run(drive())) == 5
    assert len(place.looks) == 1
    assert place.looks[0] >= 0.2


def test_the_last_warm_up_request_waits_until_watching_begins(tmp_path: Path) -> None:
    held = "touch $FORGE_AIPERF_GATE/warm-0; while [ ! -e $FORGE_AIPERF_GATE/open ]; do sleep 0.01; done"
    place = Place(tmp_path, f"{held}\n{WHOLE}")
    python = tmp_path / "python3"
    python.write_text(python.read_text().replace("Phase profiling (profiling) started", "nothing of the kind"))
    assert len(place.run(drive())) == 5
    assert len(place.looks) == 1


def test_each_run_keeps_its_artifacts_in_its_own_folder(tmp_path: Path) -> None:
    place = Place(tmp_path, WHOLE)
    place.run(drive())
    place.run(drive())
    assert sorted(each.name for each in place.folder.iterdir()) == ["bls-001", "bls-002"]
    assert place.said == [f"AIPerf's own files: {place.folder / name}" for name in ("bls-001", "bls-002")]


def test_aiperf_sees_no_secret_or_network_and_knows_special_tokens(tmp_path: Path) -> None:
    place = Place(tmp_path, WHOLE)
    place.run(drive(tokenizer=tmp_path))
    seen = {
        line.split("=")[0]: line.partition("=")[2]
        for line in (place.folder / "bls-001" / "environment").read_text().splitlines()
    }
    assert seen["HF_HUB_OFFLINE"] == "1"
    assert seen["FORGE_AIPERF_SPECIAL"] == "2"
    assert not {"HF_TOKEN", "https_proxy"} & set(seen)


def test_a_failure_shows_where_aiperfs_log_is_and_its_end(tmp_path: Path) -> None:
    place = Place(tmp_path, "for n in $(seq 40); do echo line $n; done; echo '│ Reason: no such tokenizer │'; exit 3")
    with pytest.raises(BenchError, match=r"code 3(.|\n)*line 40\nReason: no such tokenizer") as caught:
        place.run(drive())
    assert caught.value.where == str(place.folder / "bls-001" / LOG)
    assert "line 20\n" not in str(caught.value)


def test_a_load_with_no_answer_is_no_failure_of_aiperf(tmp_path: Path) -> None:
    failed = next(line for line in RECORDED.read_text(encoding="utf-8").splitlines() if "Bad Request" in line)
    (tmp_path / EXPORT).write_text(f"{failed}\n")
    (answer,) = Place(tmp_path, f"cp '{tmp_path / EXPORT}' \"$into/\"; exit 1").run(drive())
    assert "exceeds" in answer.error


def test_an_interrupt_ends_aiperf_and_all_it_has_started(tmp_path: Path) -> None:
    place = Place(tmp_path, 'sleep 100 & echo $! > "$into/child"; echo $$ > "$into/leader"; sleep 100')

    def interrupted() -> AbstractContextManager[None]:
        leader = place.folder / "bls-001" / "leader"
        while not leader.is_file() or not leader.read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.driver.drive(drive(), interrupted)
    for name in ("leader", "child"):
        process = Path("/proc") / (place.folder / "bls-001" / name).read_text().strip() / "stat"
        assert not process.exists() or process.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_the_environment_is_announced_made_once_and_pinned(tmp_path: Path) -> None:
    world, events = World(), list[Event]()
    wiring, store = FakeWiring(tmp_path, world), Store(tmp_path / "store", clock=lambda: 0.0)
    names = [
        aiperf_driver(wiring, store, lambda: Builder(store, wiring.tools, events.append), events.append).name for _ in range(2)
    ]
    assert names == [f"aiperf {aiperf.version()}"] * 2
    assert [event.kind for event in events if event.kind in ("note", "made", "held")] == ["note", "made", "held"]
    assert "1.2 GB" in events[0].text
    (made,) = world.environments.made
    assert made.bare == aiperf.pins()
    assert all("==" in pin for pin in made.bare)


# -- the real one


@pytest.fixture(scope="module")
def python(shop: Forge) -> Path:
    """AIPerf's real environment, of the session's home."""
    wiring = Wiring(shop.home, dict(os.environ), lambda _: None)
    there = wiring.host()
    step = Step("aiperf", MakeEnvironment(aiperf.environment(there), there.interpreter))
    return Builder(shop.store, wiring.tools, lambda _: None).realise([step])[step.key].path / "bin" / "python3"


@pytest.mark.parametrize("check", aiperf_checks.CHECKS, ids=lambda check: check.__name__)
def test_the_plugin(monkeypatch: pytest.MonkeyPatch, check: Callable[[Any], None]) -> None:
    for name in ("SPECIAL", "REPEATED", "GATE", "WARM"):
        monkeypatch.delenv(f"FORGE_AIPERF_{name}", raising=False)
    check(fake_aiperf.endpoint(monkeypatch))


@pytest.mark.slow
@pytest.mark.network
def test_the_plugin_does_the_same_over_aiperf_itself(python: Path, tmp_path: Path) -> None:
    for text in aiperf.plugin():
        (tmp_path / text.path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / text.path).write_text(text.content)
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([python, aiperf_checks.__file__], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [check.__name__ for check in aiperf_checks.CHECKS]


@pytest.mark.slow
@pytest.mark.network
def test_both_drivers_measure_the_same_on_one_server(shop: Forge, served: Target) -> None:
    common = {"requests": 6, "repeats": 1, "concurrency": 2, "input_tokens": 24, "output_tokens": 8}
    own, _ = shop.bench(served.model.name, served.repository, BenchOptions(**common))  # type: ignore[arg-type]
    theirs, _ = shop.bench(served.model.name, served.repository, BenchOptions(**common, driver="aiperf"))  # type: ignore[arg-type]
    assert (own.driver, theirs.driver) == ("forge", f"aiperf {aiperf.version()}")
    assert own.settings == theirs.settings  # the same prompts, counted by the server
    assert _lengths(own) == _lengths(theirs) == [(24, 8)] * 6
    for figure in ("ttft", "itl"):
        assert (
            _median(theirs, figure) > 0
        )  # how large it is beside forge's is the machine's: AIPerf's processes take it from the twin
        assert _median(own, figure) > 0
    (repeat,) = theirs.points[0].repeats
    assert repeat.triton[served.model.front].requests == 6  # the warm-up not among them


CHAT = (
    *("profile", "--endpoint-type", "chat", "--streaming", "--use-server-token-count", "--per-chunk-usage"),
    *("--extra-inputs", "ignore_eos:true", "--request-count", "3", "--concurrency", "2", "--random-seed", "1"),
    *("--synthetic-input-tokens-mean", "16", "--synthetic-input-tokens-stddev", "0"),
    *("--output-tokens-mean", "6", "--output-tokens-stddev", "0", "--request-timeout-seconds", "60"),
    *("--export-level", "raw", "--ui", "none", "--no-gpu-telemetry", "--no-server-metrics"),
)


@pytest.mark.slow
@pytest.mark.network
def test_aiperfs_own_chat_endpoint_measures_openais_api(shop: Forge, served: Target, python: Path, tmp_path: Path) -> None:
    """AIPerf as it comes, without forge's plugin."""
    with (
        front(served.address, served.repository) as address,
        tempfile.TemporaryDirectory(prefix="forge-aiperf-") as home,  # a short path, as the driver's
    ):
        snapshot = Path(home, "hf", aiperf.SNAPSHOT)
        for file in (snapshot, Path(home, "hf", aiperf.REFERENCE.path)):
            file.parent.mkdir(parents=True)
        snapshot.symlink_to(served.tokenizer.absolute(), target_is_directory=True)
        Path(home, "hf", aiperf.REFERENCE.path).write_text(aiperf.REFERENCE.content)
        places = {"HOME": home, "TMPDIR": home, "HF_HOME": f"{home}/hf", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        where = ("--url", address.removesuffix("/v1"), "--model", served.model.name, "--tokenizer", aiperf.MODEL)
        argv = (str(python), "-m", "aiperf", *CHAT, *where, "--output-artifact-dir", str(tmp_path))
        done = subprocess.run(
            argv, env={**processes.inherited(os.environ), **places}, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads(line) for line in (tmp_path / "profile_export_raw.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = [json.loads(line)["metrics"] for line in (tmp_path / EXPORT).read_text(encoding="utf-8").splitlines()]
    assert [each["usage_completion_tokens"]["value"] for each in metrics] == [6] * 3
    assert all(each["time_to_first_token"]["value"] > 0 and each["inter_token_latency"]["value"] > 0 for each in metrics)
    prompts = [chat(shop, served, each["payload"]["messages"][0]["content"]) for each in told]
    counted = [TokenizerFolder(served.tokenizer).count(prompt) for prompt in prompts]
    assert sorted(each["usage_prompt_tokens"]["value"] for each in metrics) == sorted(counted)
    assert [each["status"] for each in told] == [200] * 3
    assert all(each["payload"]["max_completion_tokens"] == 6 for each in told)  # as AIPerf asks it by itself


def _lengths(found: Results) -> list[tuple[int, int]]:
    (repeat,) = found.points[0].repeats
    assert not repeat.errors
    return [(record.input_tokens, record.output_tokens) for record in repeat.records]


def _median(found: Results, figure: str) -> float:
    (repeat,) = found.points[0].repeats
    return statistics.median(float(getattr(record, figure)) for record in repeat.records)
