"""forge's vllm backend on a real Triton, over a stand-in of vLLM's API: what a client sees, and what is left of dead engines.

The same with vLLM itself: test_vllm_real.py (`make test-vllm`).
"""

import http.client
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from forge.client import Request
from forge.errors import InferenceError, ServerError
from forge.machine import processes
from patience import soon
from triton_fixture import Serving
from vllm_kit import Bench, Served, bench
from vllm_models import lay

pytestmark = [pytest.mark.slow, pytest.mark.network]

LONG = 20_000
"""Tokens of an answer that ends with the test."""


@pytest.fixture(scope="module")
def kit(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench(serving, tmp_path_factory.mktemp("vllm"))


@pytest.fixture(scope="module")
def served(kit: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("repository")
    lay(root, "one")
    lay(root, "two")
    with kit.server(root) as found:
        yield found


def counted(first: int, count: int) -> str:
    return "".join(f" {number}" for number in range(first, first + count))


def ready(served: Served, model: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", served.running.ports.http, timeout=60)
    try:
        connection.request("GET", f"/v2/models/{model}/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    finally:
        connection.close()


def test_a_stream_comes_in_pieces_with_counts_and_end(served: Served) -> None:
    """vLLM joins tokens that come faster than they are read."""
    with served.client() as client:
        chunks = list(client.generate(Request("one", "a b c", 100, return_token_counts=True)))
    assert "".join(chunk.text for chunk in chunks) == counted(0, 100)
    assert len([chunk for chunk in chunks if chunk.text]) > 1
    assert (chunks[0].input_tokens, sum(chunk.output_tokens or 0 for chunk in chunks)) == (3, 100)
    assert chunks[-1].final
    assert [chunk.finish for chunk in chunks if chunk.finish] == ["length"]


@pytest.mark.parametrize("stream", [True, False])
def test_several_answers_are_told_apart_and_each_has_its_probabilities(served: Served, stream: bool) -> None:
    with served.client() as client:
        answer = client.ask(Request("one", "a", 3, temperature=1.0, seed=1, n=2, return_log_probs=True, stream=stream))
    assert [reply.text for reply in answer.replies] == [counted(0, 3), counted(1000, 3)]
    assert [reply.log_probs for reply in answer.replies] == [(-0.5, -0.5, -0.5)] * 2
    assert [reply.tokens for reply in answer.replies] == [(0, 1, 2), (1000, 1001, 1002)]
    assert answer.output_tokens == 6


def test_a_whole_answer_begins_with_the_prompt_where_wanted(served: Served) -> None:
    with served.client() as client:
        asked = Request("one", "a b", 2, stream=False, inputs={"exclude_input_in_output": "false"})
        assert client.ask(asked).text == "a b 0 1"


@pytest.mark.parametrize(
    ("sampling", "inputs", "said"),
    [
        ('{"temprature": 1}', {}, "did you mean 'temperature'?"),
        ('{"temperature": -1}', {}, "temperature must be non-negative"),
        ('{"n": "many"}', {}, "n is 'many'"),
        ('{"lora_name": "x"}', {}, "no LoRA adapters"),
        ('{"structured_outputs": {"grammarr": "x"}}', {}, "structured_outputs"),
        ('{"logit_bias": [1]}', {}, "logit_bias is .1.; an object of token ids and numbers"),
        ('{"logit_bias": {"x": 1}}', {}, "an object of token ids and numbers"),
        ("{}", {"exclude_input_in_output": "false"}, "exclude_input_in_output must not be false"),
        ("{}", {"image": "abc"}, "image 1 is no base64"),
    ],
)
def test_a_request_that_cannot_be_served_says_why(served: Served, sampling: str, inputs: dict[str, str], said: str) -> None:
    with served.client() as client, pytest.raises(InferenceError, match=said.replace("?", r"\?")):
        client.ask(Request("one", "a", 2, inputs={"sampling_parameters": sampling, **inputs}))


def test_a_response_that_cannot_be_made_is_an_error(served: Served) -> None:
    with served.client() as client:
        with pytest.raises(InferenceError, match="a response could not be sent"):
            client.ask(Request("one", "half a pair", LONG))
        assert client.ask(Request("one", "a", 2)).text == counted(0, 2)


def test_values_of_sampling_parameters_may_be_texts(served: Served) -> None:
    with served.client() as client:
        sampling = '{"max_tokens": "2", "ignore_eos": "True", "stop": "1"}'
        assert client.ask(Request("one", "a", 9, inputs={"sampling_parameters": sampling})).text == counted(0, 2)


def test_many_are_answered_side_by_side_by_two_models(served: Served) -> None:
    with served.client() as client, ThreadPoolExecutor(16) as threads:
        asked = [Request(("one", "two")[number % 2], "a", 20 + number) for number in range(16)]
        answers = list(threads.map(client.ask, asked))
    assert [answer.text for answer in answers] == [counted(0, 20 + number) for number in range(16)]


def test_a_client_that_leaves_is_not_worked_for_any_longer(served: Served) -> None:
    before = served.log.count(" aborted.")
    with served.client() as client:
        chunks = client.generate(Request("one", "a", LONG))
        next(chunks)
        chunks.close()
        assert soon(lambda: served.log.count(" aborted.") > before)
        assert client.ask(Request("one", "a", 2)).text == counted(0, 2)


@pytest.mark.parametrize("whom", ["engine", "worker"])
def test_a_dead_engine_fails_its_requests_and_unloads_itself_alone(kit: Bench, tmp_path: Path, whom: str) -> None:
    lay(tmp_path, "dies")
    lay(tmp_path, "lives")
    with kit.server(tmp_path) as served, served.client() as client:
        chunks = client.generate(Request("dies", "a", LONG))
        next(chunks)
        (dying,) = [pid for pid in served.engines() if b"dies" in _stub(pid)]
        worker = next(child for child in served.workers() if _parent(child) == dying)
        os.kill(dying if whom == "engine" else worker, signal.SIGKILL)
        with pytest.raises(InferenceError, match="was not finished"):
            list(chunks)
        assert soon(lambda: not ready(served, "dies"))
        assert soon(lambda: processes.started(worker) is None and processes.started(dying) is None)
        assert ready(served, "lives")
        assert client.ask(Request("lives", "a", 2)).text == counted(0, 2)


def test_vllm_hears_what_people_say_and_no_keys(kit: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, "one", gpus="1,3")
    driver = str(tmp_path / "driver")
    said = {"LD_LIBRARY_PATH": driver, "CC": "/opt/gcc/bin/gcc", "VLLM_LOGGING_LEVEL": "DEBUG"}
    for name, value in {**said, "VLLM_API_KEY": "sk-secret", "HF_TOKEN": "hf_secret"}.items():
        monkeypatch.setenv(name, value)
    with kit.server(tmp_path) as served:
        (engine,) = served.engines()
        words = Path(f"/proc/{engine}/environ").read_bytes().decode().split("\0")
    heard = dict(word.split("=", 1) for word in words if "=" in word)
    assert heard.pop("LD_LIBRARY_PATH").split(":")[-1] == said.pop("LD_LIBRARY_PATH")
    assert said.items() <= heard.items()
    assert heard["VLLM_HOST_IP"] == "127.0.0.1", "its processes meet on this machine's outward address"
    assert (heard["CUDA_VISIBLE_DEVICES"], heard["CUDA_DEVICE_ORDER"]) == ("1,3", "PCI_BUS_ID"), "the recipe's runtime.gpus"
    assert not {"VLLM_API_KEY", "HF_TOKEN"} & heard.keys()


def test_an_engine_ends_when_its_stub_is_killed(kit: Bench, tmp_path: Path) -> None:
    lay(tmp_path, "one")
    with kit.server(tmp_path) as served:
        (engine,), (worker,) = served.engines(), served.workers()
        os.kill(_parent(engine), signal.SIGKILL)
        assert soon(lambda: processes.started(engine) is None and processes.started(worker) is None)
        assert not [name for name in served.left() if "-run" in name]


def test_a_stop_leaves_neither_processes_nor_shared_memory(kit: Bench, tmp_path: Path) -> None:
    lay(tmp_path, "one")
    with kit.server(tmp_path) as served, served.client() as client:
        next(client.generate(Request("one", "a", LONG)))
        held = [*served.engines(), *served.workers()]
        assert len(held) == 2
        assert len(served.left()) > 1
    assert [pid for pid in held if processes.started(pid) is not None] == []
    assert served.left() == []


def test_a_killed_server_leaves_nothing_either(kit: Bench, tmp_path: Path) -> None:
    lay(tmp_path, "one")
    with kit.server(tmp_path) as served:
        held = [*served.engines(), *served.workers()]
        stub = _parent(held[0])
        for pid in held:  # nobody is left to end anything but `forge stop`
            os.kill(pid, signal.SIGSTOP)
        for pid in (served.running.pid, stub):
            os.kill(pid, signal.SIGKILL)
    assert [pid for pid in held if processes.started(pid) is not None] == []
    assert served.left() == []


def test_what_vllm_refuses_at_the_start_is_shown(kit: Bench, tmp_path: Path) -> None:
    lay(tmp_path, "one", max_modle_len=5)
    with pytest.raises(ServerError, match="unexpected keyword argument 'max_modle_len'"), kit.server(tmp_path):
        pass


def test_a_model_that_is_not_decoupled_is_refused(kit: Bench, tmp_path: Path) -> None:
    lay(tmp_path, "one")
    config = tmp_path / "one" / "config.pbtxt"
    config.write_text(config.read_text().replace("decoupled: true", "decoupled: false"))
    with pytest.raises(ServerError, match="decoupled: true"), kit.server(tmp_path):
        pass


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _stub(engine: int) -> bytes:
    """The command line of the stub that started an engine: it names the model."""
    return Path(f"/proc/{_parent(engine)}/cmdline").read_bytes()
