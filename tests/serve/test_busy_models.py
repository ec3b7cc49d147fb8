"""Who is only busy is told from who is dead: engines that are no process, models whose children compute, full queues."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from busy_triton import ANSWERED, BEGUN, ITERATIONS, Busy
from forge.machine import processes
from forge.serve import pulse
from forge.serve.vitals import Pulse, judged
from patience import soon

MARKER = f"forge-busy-test-{os.getpid()}-"
BLS, ENGINE = "tensorrt_llm_bls", "tensorrt_llm"
CALLS = {BLS: (ENGINE,)}
FULL = (
    "Exceeds maximum queue size",
    "Encountered error: Maximum queue size of 4 has been reached, please try again later",
    "4096 requests wait already (limits.max_queued)",
)
SPIN = "while True: pass"


@contextmanager
def stub(folder: Path, model: str, code: str = "input()") -> Generator[int]:
    """A process with the arguments of a stub of ``model``, which runs ``code``."""
    file = folder / model / "1" / "model.py"
    file.parent.mkdir(parents=True)
    file.write_text(f"import subprocess\nprint('here', flush=True)\n{code}\n")
    words = ["/opt/triton_python_backend_stub", str(file), f"{MARKER}-region"]
    with subprocess.Popen(words, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline()
            yield process.pid
        finally:
            for pid in processes.offspring((process.pid,)):
                os.kill(pid, signal.SIGKILL)


def found(busy: Busy, *models: str, seconds: float = 2.5) -> dict[str, Pulse]:
    with busy.up(MARKER) as place:
        return {each.model: each for each in judged(pulse.ask(place, models, seconds), CALLS)}


def test_an_iterating_engine_and_who_waits_for_it_are_busy(tmp_path: Path) -> None:
    with stub(tmp_path, BLS):
        states = found(Busy(counts=ITERATIONS), ENGINE, BLS)
    assert {model: (each.answers, each.busy) for model, each in states.items()} == {ENGINE: (True, True), BLS: (True, True)}


def test_an_engine_whose_count_stands_still_is_not_busy(tmp_path: Path) -> None:
    with stub(tmp_path, BLS):
        states = found(Busy(standing=ITERATIONS), ENGINE, BLS)
    assert not any(each.answers for each in states.values())


def test_an_engine_that_ends_answers_is_busy(tmp_path: Path) -> None:
    """A bls that only begins some is not at work."""
    with stub(tmp_path, BLS):
        assert found(Busy(counts=ANSWERED, standing=ITERATIONS), ENGINE)[ENGINE].busy
        assert not found(Busy(counts=BEGUN, standing=ITERATIONS), BLS)[BLS].answers


def test_who_waits_for_an_engine_working_for_others_is_busy(tmp_path: Path) -> None:
    with stub(tmp_path, BLS):
        assert found(Busy(quick=frozenset({ENGINE}), counts=ITERATIONS), ENGINE, BLS)[BLS].busy
        assert not found(Busy(quick=frozenset({ENGINE}), standing=ITERATIONS), ENGINE, BLS)[BLS].answers


@pytest.mark.parametrize("said", FULL)
def test_a_full_queue_is_dead_only_if_the_engine_stands(said: str) -> None:
    refusing = {ENGINE: said}
    assert found(Busy(refusing=refusing, counts=ITERATIONS), ENGINE)[ENGINE].busy
    state = found(Busy(refusing=refusing, standing=ITERATIONS), ENGINE)[ENGINE]
    assert (state.answers, state.why) == (False, said)


def test_a_full_queue_before_a_stub_is_watched_long_enough(tmp_path: Path) -> None:
    with stub(tmp_path, BLS, SPIN):
        assert found(Busy(refusing={BLS: FULL[0]}), BLS)[BLS].busy
    with stub(tmp_path / "other", BLS):
        assert not found(Busy(refusing={BLS: FULL[0]}), BLS)[BLS].answers


def test_a_model_with_computing_children_is_busy_until_stopped(tmp_path: Path) -> None:
    code = f"subprocess.run([{sys.executable!r}, '-c', {SPIN!r}])"
    with stub(tmp_path, "vllm", code) as pid:
        assert soon(lambda: len(processes.offspring((pid,))) > 1)
        assert found(Busy(), "vllm")["vllm"].busy
        os.kill(pid, signal.SIGSTOP)
        state = found(Busy(), "vllm")["vllm"]
    assert not state.answers
    assert state.why.endswith("its process is stopped")


def test_one_that_is_stopped_is_dead_though_its_engine_works(tmp_path: Path) -> None:
    with stub(tmp_path, BLS) as pid:
        os.kill(pid, signal.SIGSTOP)
        states = found(Busy(counts=ITERATIONS), ENGINE, BLS)
    assert (states[ENGINE].busy, states[BLS].answers) == (True, False)


def test_only_a_models_own_work_is_read_from_the_metrics() -> None:
    text = "\n".join(
        (
            "# HELP nv_inference_request_success Number of successful inference requests",
            'nv_inference_request_success{model="bls",version="1"} 5',
            'nv_inference_request_failure{model="engine",reason="OTHER",version="1"} 5',
            'nv_inference_pending_request_count{model="engine",version="1"} 5',
            'nv_trt_llm_request_metrics{model="engine",request_type="waiting",version="1"} 3',
            'nv_trt_llm_general_metrics{general_type="iteration_counter",model="engine",version="1"} 12',
            'vllm:generation_tokens_total{model="opt",version="1"} 40',
            'vllm:num_requests_waiting{model="opt",version="1"} 9',
            "nv_cpu_utilization 0.5",
        )
    )
    counts = {model: list(each.values()) for model, each in pulse.work(text).items()}
    assert counts == {"engine": [12.0], "opt": [40.0]}
