"""`forge tune --offline`: what AIConfigurator is asked, what it answers, what is refused; and the program itself
(`make test-offline`)."""

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import tomli
from click.testing import CliRunner, Result
from msgspec.structs import replace

from fake_wiring import World
from fakes import FakeExecutor, tiny_checkpoint
from forge.api.forge import Forge
from forge.api.tune import Asked, card
from forge.api.wiring import Wiring
from forge.bench.aiconfigurator import known
from forge.bench.aiconfigurator.environment import run
from forge.bench.aiconfigurator.proposals import Answer, Predicted, predicted, read
from forge.bench.aiconfigurator.question import FAR, Question, question
from forge.bench.options import BenchOptions
from forge.bench.tune.goal import goal
from forge.bench.tune.space import axes
from forge.build.builder import Builder
from forge.cli import main
from forge.errors import BenchError, HostError
from forge.machine.containers import Job
from forge.plan.families import Family
from forge.plan.resolved import Resolved
from forge.plan.steps import MakeEnvironment, Step
from forge.recipe import reader
from forge.schema.values import MIB, Checkpoint, Facts, Gpu, Host, Pinned, SourceKind
from forge.trtllm.image_table import toolchain

RECORDED = Path(__file__).parents[1] / "data" / "aiconfigurator" / "answer.json"
"""Of AIConfigurator 0.12.0: ``CONFIG`` on vLLM 0.24.0 and h100_sxm, 128 tokens in, 64 out, TTFT within 200 ms, tp 1 and 2."""
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}
"""As Qwen2.5 7B's."""
TEXT = """# mine
name = "asked"

[source]
path = "model"

[runtime]
kind = "vllm"

[build]
max_batch_size = 8
"""
LENGTHS = (128, 64)
VARIED = ("convert.tp=1,2", "build.max_batch_size=64,128,256")


def resolved(text: str = TEXT, config: dict[str, Any] | None = None) -> Resolved:
    recipe = reader.read(text, "asked.toml")
    checkpoint = Checkpoint(CONFIG if config is None else config)
    facts = Facts(
        Pinned(SourceKind.PATH, "model", "", ()), checkpoint, Host("3.11", "python3", "linux-x86_64"), toolchain("25.08")
    )
    return Resolved(recipe, Family(recipe, checkpoint, None), facts)


def asked(*vary: str, of: Resolved | None = None, on: str = "H100 SXM", best: str = "tokens_per_s", **limits: str) -> Question:
    texts = [f"{figure}{limit}" for figure, limit in limits.items()]
    return question(of or resolved(), on, goal(best, texts), axes(vary), LENGTHS)[0]


def found(*vary: str, best: str = "tokens_per_s", limits: tuple[str, ...] = ()) -> Predicted:
    aim, given = goal(best, limits), axes(vary)
    put, note = question(resolved(), "h100_sxm", aim, given, LENGTHS)
    return predicted(read(RECORDED.read_bytes(), "there"), put, note, aim, given, resolved().recipe)


def test_a_recipe_is_asked_with_its_shape_backend_and_lengths() -> None:
    put = asked("convert.tp=1,2", ttft_p95="<200ms", itl_mean="<20ms")
    assert (put.config, put.system, put.backend) == (CONFIG, "h100_sxm", "vllm")
    assert (put.input_tokens, put.output_tokens, put.ttft_ms, put.tpot_ms) == (128, 64, 200.0, 20.0)
    assert (put.parallel, put.max_seq_len, put.fraction) == (((1, 1), (2, 1)), 2048, None)


def test_the_recipes_memory_parallelism_and_quantization_go_along() -> None:
    text = TEXT.replace('"vllm"', '"llmapi"') + '[convert]\ntp = 2\nquantization = "fp8"\n'
    put = asked(of=resolved(text + "[serve]\nkv_cache_free_gpu_mem_fraction = 0.5\n"))
    assert (put.backend, put.parallel, put.fraction) == ("trtllm", ((2, 1),), 0.5)
    assert put.config["quantization_config"] == {"quant_method": "modelopt", "quant_algo": "FP8"}
    assert (put.ttft_ms, put.tpot_ms) == (FAR, FAR)
    share = TEXT + "[serve]\nvllm = { gpu_memory_utilization = 0.6 }\n"
    assert asked(of=resolved(share)).fraction == 0.6


@pytest.mark.parametrize(
    ("wanted", "taken"), [("0.27.0", "0.27.0"), ("0.20.0", "0.24.0"), ("0.25.1", "0.24.0"), ("1.0", "0.27.0"), ("", "0.24.0")]
)
def test_of_a_version_that_it_lacks_the_nearest_is_predicted(wanted: str, taken: str) -> None:
    assert known.nearest(("0.24.0", "0.27.0"), wanted) == taken


def test_a_version_it_lacks_is_refused_with_those_it_has() -> None:
    _, note = question(resolved(), "h100_sxm", goal("tokens_per_s", ["ttft_p95<1s"]), {}, LENGTHS)
    assert "no data of vllm 0.20.0 on h100_sxm, only of 0.24.0, 0.27.0: 0.24.0 is predicted" in note
    assert "ttft_p95 may be worse" in note
    engine = replace(resolved(), recipe=reader.read(TEXT.replace('"vllm"', '"engine"'), ""))
    assert "PyTorch backend" in question(engine, "h100_sxm", goal("tokens_per_s", []), {}, LENGTHS)[1]
    held = TEXT.replace('kind = "vllm"', 'kind = "vllm"\npackages = ["vllm==0.27.0"]')
    assert question(resolved(held), "h100_sxm", goal("tokens_per_s", []), {}, LENGTHS)[1] == ""


@pytest.mark.parametrize(
    ("name", "system"),
    [
        ("H100 SXM", "h100_sxm"),
        ("NVIDIA H100 80GB HBM3", "h100_sxm"),
        ("NVIDIA H200", "h200_sxm"),
        ("gb200", "gb200"),
        ("NVIDIA A100-SXM4-80GB", "a100_sxm"),
        ("NVIDIA L40S", "l40s"),
    ],
)
def test_a_card_is_known_by_each_of_its_names(name: str, system: str) -> None:
    assert known.system(name) == system


@pytest.mark.parametrize("name", ["RTX 4090", "NVIDIA H100 PCIe", "A100 40GB", "H100"])
def test_a_card_it_lacks_is_refused_with_those_it_has(name: str) -> None:
    with pytest.raises(HostError, match="no data of this card") as told:
        known.system(name)
    assert "h100_sxm" in told.value.hint


GEMMA = {**CONFIG, "architectures": ["GemmaForCausalLM"]}
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "Gemma": ({"of": resolved(config=GEMMA)}, "no data of GemmaForCausalLM", "of Gemma only the fourth"),
    "GGUF": ({"of": resolved(config={})}, "a checkpoint without a config.json", "LlamaForCausalLM"),
    "backend": ({"of": resolved(TEXT.replace("vllm", "llmapi")), "on": "b60"}, "no data of trtllm on b60", "vllm"),
    "packed": ({"of": resolved(TEXT + '[convert]\nquantization = "int4_weight_only"\n')}, "int4_weight_only", "none and fp8"),
    "cache": ({"of": resolved(TEXT + '[serve]\nvllm = { kv_cache_dtype = "fp8" }\n')}, "kv_cache_dtype fp8", "none and fp8"),
    "long": ({"of": resolved(TEXT + "max_seq_len = 100\n")}, "more than build.max_seq_len", ""),
    "figure": ({"best": "goodput_share"}, "predicts no goodput_share", "ttft_mean"),
    "limit": ({"error_share": "<1%"}, "predicts no error_share", "ttft_mean"),
    "quality": ({"best": "quality"}, "predicts no quality", "without --offline"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_answer_is_refused_with_what_it_can(case: str) -> None:
    put, what, hint = REFUSED[case]
    with pytest.raises(BenchError, match=what) as told:
        asked(**put)
    assert hint in told.value.hint


def test_the_twin_is_refused() -> None:
    with pytest.raises(BenchError, match="the twin is neither"):
        asked(of=replace(resolved(), recipe=reader.read(TEXT.replace("vllm", "twin"), "")))


@pytest.mark.parametrize("vary", ["sampling.temperature=0.5,1", "rate=3", "convert.tp=0", "build.max_batch_size=1.5"])
def test_a_key_that_no_prediction_speaks_of_is_refused(vary: str) -> None:
    with pytest.raises(BenchError):
        asked(vary)


def test_the_best_setting_comes_first_and_would_be_written() -> None:
    told = found(*VARIED, limits=("ttft_p95<200ms", "itl_mean<10ms"))
    assert [(row.tp, row.batch) for row in told.rows[:2]] == [(2, 128), (2, 64)]
    assert told.kept
    assert told.settings == {"convert.tp": 2, "build.max_batch_size": 128}
    assert told.by == "AIConfigurator 0.12.0 for vllm 0.24.0 on h100_sxm"


def test_each_setting_stands_there_once() -> None:
    rows = found("convert.tp=1", limits=("itl_mean<9ms",)).rows
    assert len({(row.tp, row.batch) for row in rows}) == len(rows) == 5


def test_a_goal_of_latency_takes_the_fastest() -> None:
    first = found(best="itl_mean").rows[0]
    assert (first.tp, first.batch) == (2, 9)  # of all that was recorded


def test_what_is_not_varied_is_not_written() -> None:
    assert found("concurrency=64").settings == {}
    assert found("convert.tp=1").settings == {}  # as the recipe has it


def test_where_nothing_keeps_the_goal_it_says_so() -> None:
    assert not found(limits=("ttft_mean<1ms",)).kept
    none = predicted(Answer(version="0.12.0", rows=()), asked(), "", goal("tokens_per_s", []), {}, resolved().recipe)
    assert (none.kept, none.rows, none.settings) == (False, (), {})


def test_a_batch_missing_from_the_answer_is_refused_with_others() -> None:
    with pytest.raises(BenchError, match="none of these settings") as told:
        found("build.max_batch_size=5")
    assert "1, 2, 3, 9" in told.value.hint


def test_a_parallelism_without_an_answer_is_said() -> None:
    assert "answers nothing for tp 3 with pp 1" in found("convert.tp=1,3").note
    assert "answers nothing" not in found("convert.tp=1,2").note


def test_an_answer_that_is_none_is_told_with_its_place() -> None:
    with pytest.raises(BenchError, match="cannot be read") as told:
        read(b'{"rows": []}', "there.log")
    assert told.value.where == "there.log"


@pytest.mark.parametrize(("names", "said"), [((), "no GPU is here"), (("L40S", "B200"), "several kinds")])
def test_a_card_must_be_named_unless_one_kind_is_here(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(HostError, match=said):
        card([Gpu(name, MIB, "9.0") for name in names])
    assert card([Gpu("L40S", MIB, "8.9")] * 2) == "L40S"


@dataclass
class Recorded(FakeExecutor):
    """AIConfigurator, as it answered once."""

    jobs: list[Job] = field(default_factory=list[Job])
    question: dict[str, Any] = field(default_factory=dict[str, Any])

    def run(self, job: Job, line: object) -> None:
        self.jobs.append(job)
        self.question = json.loads(job.mounts["question"].read_bytes())
        (job.mounts["out"] / "answer.json").write_bytes(RECORDED.read_bytes())


def _laid(place: Path) -> Path:
    recipe = place / "asked.toml"
    recipe.write_text(TEXT.replace('path = "model"', 'hub = "acme/asked"'))
    return recipe


def test_a_prediction_is_written_as_one_and_only_where_asked(tmp_path: Path) -> None:
    world = World(executor=(executor := Recorded()))
    world.origin.files = tiny_checkpoint(CONFIG)
    shop = world.shop(tmp_path / "home")
    recipe = _laid(tmp_path)
    before = recipe.read_text()
    aim = goal("tokens_per_s", ["itl_mean<10ms"])
    plain = shop.predict(
        recipe, Asked(aim, axes(["concurrency=128"]), options=BenchOptions(input_tokens=128, output_tokens=64)), "h100_sxm"
    )
    assert not plain.write(recipe)
    assert recipe.read_text() == before
    told = shop.predict(recipe, Asked(aim, axes(VARIED), options=BenchOptions(input_tokens=128, output_tokens=64)), "h100_sxm")
    assert told.write(recipe)
    written = recipe.read_text()
    assert tomli.loads(written)["convert"] == {"tp": 2}
    assert tomli.loads(written)["build"] == {"max_batch_size": 128}
    line = written.splitlines()[-1]
    assert line.startswith("# forge tune --offline 20")
    assert "predicted, not measured, by AIConfigurator 0.12.0 for vllm 0.24.0 on h100_sxm: 1.639e+04 tokens/s" in line
    assert executor.question["parallel"] == [[1, 1], [2, 1]]
    assert world.made().count("aiconfigurator") == 1
    (made,) = world.environments.made
    assert made.bare == known.pins()
    assert any(known.SIZE in event.text for event in world.events)


def _typed(monkeypatch: pytest.MonkeyPatch, place: Path, *words: str) -> Result:
    world = World(executor=Recorded())
    world.origin.files = tiny_checkpoint(CONFIG)

    def here(_: type[Forge], *__: object, **___: object) -> Forge:
        return world.shop(place / "home")

    monkeypatch.setattr(Forge, "here", classmethod(cast("Any", here)))
    return CliRunner().invoke(main, ["tune", str(_laid(place)), *words])


def test_what_is_shown_says_that_it_is_predicted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = _typed(
        monkeypatch, tmp_path, "--offline", "--gpu", "h100_sxm", "--vary", "convert.tp=1,2", "--goal", "itl_mean<10ms"
    )
    assert said.exit_code == 0, said.output
    assert "predicted, not measured: AIConfigurator 0.12.0 for vllm 0.24.0 on h100_sxm, 128 tokens in and 64 out" in said.output
    assert "note: it has no data of vllm 0.20.0" in said.output
    assert "as a prediction: convert.tp" in said.output
    assert "tp = 2" in (tmp_path / "asked.toml").read_text()


@pytest.mark.parametrize("more", [(), ("--no-write", "--vary", "convert.tp=1,2")], ids=["nothing varied", "no-write"])
def test_a_recipe_nobody_asked_to_change_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: tuple[str, ...]) -> None:
    before = _laid(tmp_path).read_text()
    said = _typed(monkeypatch, tmp_path, "--offline", "--gpu", "h100_sxm", *more)
    assert "stays as it is" in said.output
    assert (tmp_path / "asked.toml").read_text() == before


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (("--offline", "--gpu", "h100_sxm", "--goal", "ttft_mean<1ms"), 16, "no setting is predicted to keep ttft_mean<1ms"),
        (("--offline", "--gpu", "RTX 4090"), 11, "no data of this card"),
        (("--offline",), 11, "no GPU is here"),
        (("--offline", "--gpu", "h100_sxm", "--runtime", "twin"), 15, "the twin is neither"),
        (("--gpu", "h100_sxm"), 2, "--gpu names a card for --offline"),
        (("--offline", "--quality", __file__), 2, "lengths alone"),
    ],
)
def test_what_cannot_be_predicted_has_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], code: int, what: str
) -> None:
    said = _typed(monkeypatch, tmp_path, *words)
    assert (said.exit_code, what in said.output) == (code, True), said.output


def test_a_python_that_it_has_no_packages_for_is_refused() -> None:
    with pytest.raises(HostError, match=r"3\.11, 3\.12, 3\.13, and this is 3\.14"):
        known.environment(Host("3.14", "/usr/bin/python3.14", "linux-x86_64"))


def test_every_pin_is_exact() -> None:
    assert all("==" in pin for pin in known.pins())
    assert known.version() == "0.12.0"


# -- the real one


real = [
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.skipif(
        os.environ.get("FORGE_TEST_OFFLINE") != "1",
        reason="AIConfigurator itself takes 0.75 GB: `make test-offline` runs it",
    ),
]


@pytest.fixture(scope="module")
def installed(shop: Forge) -> Path:
    """AIConfigurator's real environment, of the session's home."""
    wiring = Wiring(shop.home, dict(os.environ), lambda _: None)
    there = wiring.host()
    step = Step("aiconfigurator", MakeEnvironment(known.environment(there), there.interpreter))
    return Builder(shop.store, wiring.tools, lambda _: None).realise([step])[step.key].path


class TestReal:
    """AIConfigurator from PyPI."""

    pytestmark = real

    def test_it_answers_as_was_recorded(self, installed: Path, tmp_path: Path, shop: Forge) -> None:
        wiring = Wiring(shop.home, dict(os.environ), lambda _: None)
        answer = run(asked("convert.tp=1,2", ttft_p95="<200ms"), installed, wiring.tools.executor, tmp_path)
        recorded = read(RECORDED.read_bytes(), "")
        assert answer.version == known.version()
        for got, kept in zip(answer.rows, recorded.rows, strict=True):
            assert msgspec.structs.astuple(got) == pytest.approx(msgspec.structs.astuple(kept), rel=1e-3)

    def test_it_answers_nothing_where_nothing_keeps_the_goal(self, installed: Path, tmp_path: Path, shop: Forge) -> None:
        wiring = Wiring(shop.home, dict(os.environ), lambda _: None)
        assert run(asked(ttft_p95="<1ms"), installed, wiring.tools.executor, tmp_path).rows == ()

    def test_its_data_is_what_forge_says_of_it(self, installed: Path) -> None:
        told = json.loads(_said(installed))
        assert tuple(sorted(told["architectures"])) == tuple(sorted(known.architectures()))
        have = {
            system: {name: tuple(versions) for name, versions in backends.items() if name != "sglang"}
            for system, backends in told["systems"].items()
        }
        assert have == known.data().versions


ASK = """
import json
from aiconfigurator_core.sdk import common
from aiconfigurator_core.sdk.perf_database import get_supported_databases
print(json.dumps({"architectures": list(common.ARCHITECTURE_TO_MODEL_FAMILY), "systems": get_supported_databases()}))
"""


def _said(environment: Path) -> str:
    done = subprocess.run([environment / "bin" / "python3", "-c", ASK], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]
