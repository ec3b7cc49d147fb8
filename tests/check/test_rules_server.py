"""Rules held against a real Triton: what a check finds, the server trips over, in the words that docs/rules.md promises."""

import os
import shutil
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

import check_kit as kit
import tiny_checkpoints
from breaking import Break, by_hand, edited, parameters, pbtxt, step
from forge.check import repository_reader, rules
from forge.check.rules import all_rules
from forge.client.grpc import TritonClient
from forge.client.types import Request
from forge.errors import InferenceError, ServerError
from forge.repository import publish
from forge.schema.values import RuntimeKind
from patience import PATIENCE
from triton_fixture import Serving

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoints.make("llama", folder, vocab_size=kit.VOCABULARY, max_position_embeddings=2048)
    return folder


@pytest.fixture
def root(tmp_path: Path, weights: Path) -> Path:
    """A repository that a real server can load."""
    made = kit.lay(tmp_path / "repository", kind=RuntimeKind.TWIN)
    for file in weights.iterdir():
        shutil.copy(file, made / "_assets" / kit.NAME / "engines" / file.name)
    return made


def broken(root: Path) -> set[str]:
    """The rules that a check finds broken."""
    held = publish.inventory(root) if (root / "forge.json").exists() else None
    return {each.rule for each in rules.examine(repository_reader.read(root, held))}


def promised(rule: str, words: str) -> bool:
    return words in next(each.fails for each in all_rules() if each.id == rule).replace("\n", " ")


ALONE = ("postprocessing",)
REFUSALS: tuple[tuple[str, str, tuple[str, ...], Break], ...] = (
    ("name", "directory name must equal model name", ALONE, pbtxt("postprocessing", 'name: "postprocessing"', 'name: "post"')),
    ("placeholder", "Expected integer, got: $", ALONE, pbtxt("postprocessing", "size: 8", "size: ${triton_max_batch_size}")),
    ("unreadable", "failed to read text proto", ALONE, pbtxt("postprocessing", "max_batch_size", "max_batchsize")),
    (
        "tokenizer-path",
        "tokenizer.json is missing",
        ALONE,
        lambda root: shutil.rmtree(root / "_assets" / kit.NAME / "tokenizer"),
    ),
    (
        "ensemble-model",
        "contains models that are not available or ambiguous: x-pre",
        (),
        step(0, lambda one: setattr(one, "model_name", "x-pre")),
    ),
    (
        "ensemble-type",
        "TYPE_INT32 is inferred from model tensorrt_llm while TYPE_INT64 is inferred from model postprocessing",
        (),
        edited("postprocessing", lambda message: setattr(kit.tensor(message, "TOKENS_BATCH"), "data_type", 9)),
    ),
    (
        "ensemble-flow",
        "is not written: at least one of its depending tensors, '_NOBODY', is not connected",
        (),
        step(2, lambda one: one.input_map.update({"SEQUENCE_LENGTH": "_NOBODY"})),
    ),
    (
        "version-folder",
        "at least one version must be available under the version policy of model",
        (),
        lambda root: shutil.rmtree(root / "ensemble" / "1"),
    ),
)


def test_what_breaks_no_rule_is_served(serving: Serving, root: Path) -> None:
    assert not broken(root)
    with serving.server(root) as running:
        answer = TritonClient().generate(f"127.0.0.1:{running.ports.grpc}", Request("tensorrt_llm_bls", "hello", 4))
        assert list(answer)[-1].final


@pytest.mark.parametrize(("rule", "words", "models", "change"), REFUSALS, ids=[each[0] for each in REFUSALS])
def test_the_server_refuses_what_a_rule_finds_in_promised_words(
    serving: Serving, root: Path, rule: str, words: str, models: tuple[str, ...], change: Break
) -> None:
    change(root)
    assert broken(root) == {rule}
    with pytest.raises(ServerError) as caught, serving.server(root, *models):
        pass
    log = Path(caught.value.hint.rpartition(": ")[2]).read_text(encoding="utf-8")
    assert words in log.replace("\\n", " ")
    assert promised(rule, words)


ANSWERS: tuple[tuple[str, str, Break], ...] = (
    ("bls-target", "is not ready", parameters("tensorrt_llm_bls", preprocessing_model_name="x-preprocessing")),
    ("decoupled-pair", "the decoupled transaction policy", pbtxt("tensorrt_llm_bls", "decoupled: true", "decoupled: false")),
)


@pytest.mark.parametrize(("rule", "words", "change"), ANSWERS, ids=[each[0] for each in ANSWERS])
def test_what_a_rule_finds_loads_and_every_request_fails(
    serving: Serving, root: Path, rule: str, words: str, change: Break
) -> None:
    change(root)
    assert broken(root) == {rule}
    with serving.server(root) as running, pytest.raises(InferenceError) as caught:
        list(TritonClient().generate(f"127.0.0.1:{running.ports.grpc}", Request("tensorrt_llm_bls", "hello", 4, stream=False)))
    assert words in str(caught.value)
    assert promised(rule, words)


def test_assets_among_models_stop_a_start_in_default_control_mode(serving: Serving, root: Path) -> None:
    by_hand(root)
    assert broken(root) == {"not-a-model"}
    with default_mode(serving, root) as (status, log):
        assert status != 0
    words = "Poll failed for model directory '_assets': failed to open text file for read"
    assert words in log
    assert promised("not-a-model", words)


@contextmanager
def default_mode(serving: Serving, root: Path) -> Generator[tuple[int | None, str]]:
    """tritonserver as people start it: every folder is a model. Its exit status and its log."""
    command = serving.triton().command(serving.launch(root))
    argv = [word for word in command.argv if not word.startswith(("--model-control-mode", "--load-model"))]
    file = root.with_name("default.log")
    with file.open("w") as log:
        server = subprocess.Popen(argv, env=dict(command.env), stdout=log, stderr=log, start_new_session=True)
    try:
        try:
            status = server.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            status = None
        yield status, file.read_text()
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
