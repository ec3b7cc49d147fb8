"""The stand-in refuses to load what NVIDIA's backend refuses, in its words, and loads what that only warns of.

One repository, built by forge's real steps with the stand-in's scripts and served by a real Triton, is changed in one place
at a time. `forge check` has to have said it before.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tensorrt_llm._standin.engine import opened
from tensorrt_llm._standin.executor import Place, RefusedError, terms
from tensorrt_llm._standin.tensors import CheckpointError

from forge.check.config import read as read_config
from forge.errors import ServerError
from forge.serve.server_types import Launch, Running
from patience import free_ports
from standin import checkpoints
from standin.inside import Insider, insider
from triton_fixture import Serving

pytestmark = pytest.mark.slow

RECIPE = """
name = "tiny"
family = "llama"
[source]
path = "{model}"
[runtime]
kind = "engine"
gpus = "none"
[convert]
dtype = "float32"
[build]
max_batch_size = 4
max_input_len = 60
max_seq_len = 100
[serve]
instances = 1
[sampling]
max_tokens = 16
"""
GUIDED = {"guided_decoding_backend": "xgrammar", "xgrammar_tokenizer_info_path": "{assets}/info.json"}
SIZES = {"lookahead_window_size": "4", "lookahead_ngram_size": "3", "lookahead_verification_set_size": "4"}
WORKER = {"executor_worker_path": sys.executable}
ALONE = {"TRTLLM_ORCHESTRATOR": "1", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": "0"}
INFO = {"encoded_vocab": ["a"], "tokenizer_str": "{}", "stop_token_ids": [0]}
REFUSED: tuple[tuple[dict[str, str | None], str, str], ...] = (
    ({"gpt_model_type": None}, "Cannot find parameter with name: gpt_model_type", "parameter-missing"),
    ({"gpt_model_type": "inflight"}, "Invalid gpt_model_type. Must be v1/inflight_batching/inflight_fused", "batching-type"),
    ({"gpt_model_type": "${batching_strategy}"}, "Invalid gpt_model_type", "placeholder"),
    ({"decoding_mode": "lookahead"}, "lookahead parameters are not specified", "lookahead-sizes"),
    ({"decoding_mode": "lookahead", **SIZES, "lookahead_ngram_size": "none"}, "lookahead parameters", "lookahead-sizes"),
    ({"decoding_mode": "lookahead", **SIZES, "lookahead_ngram_size": "1"}, "lookahead parameters", "lookahead-sizes"),
    ({"decoding_mode": "lookahead", **SIZES}, "Speculative decoding module is not set to decoder domain", "decoding-mode"),
    ({"decoding_mode": "medusa"}, "Speculative decoding module is not set to decoder domain", "decoding-mode"),
    ({**GUIDED, "xgrammar_tokenizer_info_path": "{assets}/none"}, "Xgrammar's tokenizer info path at", "guided-decoding"),
    ({**GUIDED, "guided_decoding_backend": "outlines"}, "currently supported with 'xgrammar' backend", "guided-decoding"),
    ({"tokenizer_dir": None}, "Cannot find parameter with name: tokenizer_dir", "parameter-missing"),
    ({"xgrammar_tokenizer_info_path": None}, "Cannot find parameter with name: xgrammar_tok", "parameter-missing"),
    ({"guided_decoding_backend": None}, "Cannot find parameter with name: guided_decoding_backend", "parameter-missing"),
    ({"gpt_model_path": None}, "Both encoder and decoder model paths are empty", "parameter-missing"),
    ({"gpt_model_path": "{assets}/nowhere"}, "Both encoder and decoder model paths are empty", "engine-path"),
    ({"max_beam_width": "4"}, r"max beam width \(4\) must not exceed engine max beam width \(1\)", "engine-beam"),
    ({"kv_cache_free_gpu_mem_fraction": "1.0"}, "freeGpuMemoryFraction < 1.F", "cache-size"),
    ({"kv_cache_free_gpu_mem_fraction": "0"}, "freeGpuMemoryFraction > 0.F", "cache-size"),
    ({"max_tokens_in_paged_kv_cache": "0"}, "maxTokens > 0", "cache-size"),
    ({"max_tokens_in_paged_kv_cache": "64"}, "large enough to process at least 1 sequence to completion", "kv-tokens"),
    ({"cross_kv_cache_fraction": "0.5"}, "Do not set crossKvCacheFraction for decoder-only model", "cross-cache"),
    ({"gpu_device_ids": "0,1"}, r"deviceIds size must be equal to tp\*pp\*cp", "device-ids"),
    ({"participant_ids": "0,1"}, r"participantIds size \(2\) must be equal to tp\*pp\*cp", "device-ids"),
)
"""What is changed of tensorrt_llm's parameters (None: taken away) -> what the load says -> the rule that knew."""
WARNED: tuple[dict[str, str | None], ...] = (
    {"decoding_mode": "greedy"},
    {"medusa_choices": "{0, x}"},
    {"eagle_choices": "none"},
    {"encoder_model_path": "{assets}/nowhere"},
    {"batch_scheduler_policy": "best"},
    {"worker_path": "/nowhere"},
    {"kv_cache_free_gpu_mem_fraction": "much"},
    {"guided_decoding_backend": "outlines"},
    dict(GUIDED),
)
"""What the original only warns of, or takes as it is."""


@dataclass
class Bench:
    """The repository, its server, and what its configs say before anything is changed."""

    insider: Insider
    folder: Path
    running: Running
    launch: Launch
    text: str

    @property
    def config(self) -> Path:
        return self.folder / "models" / "tensorrt_llm" / "config.pbtxt"

    def change(self, **parameters: str | None) -> None:
        """``parameters`` of tensorrt_llm, in the place of those that forge filled."""
        text = self.text
        for name, value in parameters.items():
            text = re.sub(rf'parameters \{{\s*key: "{name}"\s*value \{{\s*(string_value: "[^"]*")?\s*\}}\s*\}}\n?', "", text)
            if value is not None:
                stated = value.replace("{assets}", str(self.folder / "models" / "_assets" / "tiny"))
                text += f'\nparameters {{ key: "{name}" value {{ string_value: "{stated}" }} }}\n'
        assert text != self.text
        self.config.write_text(text)

    def load(self) -> None:
        self.insider.load(self.running, self.launch, "tensorrt_llm")

    def open(self, environ: Mapping[str, str], parameters: Mapping[str, str]) -> None:
        """Open the engine as the backend does, in another environment than the server's."""
        config = read_config(self.text)
        place = Place.of(environ)
        opened(terms({**config.parameters, **parameters}, place), place)

    def rules(self) -> set[str]:
        return {each.rule for each in self.insider.shop.check(self.folder / "models").findings}


@pytest.fixture(scope="module")
def bench(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("refusals")
    model = checkpoints.llama(folder / "model")
    (folder / "tiny.toml").write_text(RECIPE.format(model=model))
    inside = insider(folder, serving)
    shop = inside.shop
    shop.build([folder / "tiny.toml"], repository=folder / "models")
    (folder / "models" / "_assets" / "tiny" / "info.json").write_text(json.dumps(INFO))
    ports = free_ports()
    running = shop.serve(folder / "models", ports, restart=False)
    text = (folder / "models" / "tensorrt_llm" / "config.pbtxt").read_text()
    yield Bench(inside, folder, running, shop.launch(folder / "models", ports), text)
    shop.stop(running)


@pytest.fixture
def changed(bench: Bench) -> Iterator[Bench]:
    """Put back afterwards."""
    yield bench
    bench.config.write_text(bench.text)


@pytest.mark.parametrize(("parameters", "said", "rule"), REFUSED, ids=[" ".join(each) for each, _, _ in REFUSED])
def test_what_the_original_refuses_is_not_loaded_as_check_knew(
    changed: Bench, parameters: dict[str, str | None], said: str, rule: str
) -> None:
    changed.change(**parameters)
    with pytest.raises(ServerError, match=said) as caught:
        changed.load()
    assert "unexpected error when creating modelInstanceState" in str(caught.value)
    assert rule in changed.rules()


@pytest.mark.parametrize("parameters", WARNED, ids=[" ".join(each) for each in WARNED])
def test_what_the_original_only_warns_of_is_loaded(changed: Bench, parameters: dict[str, str | None]) -> None:
    changed.change(**parameters)
    changed.load()


def test_what_forge_builds_breaks_no_rule_and_is_loaded(bench: Bench) -> None:
    assert bench.rules() <= {"placeholder-unset"}
    bench.load()


@pytest.mark.parametrize(
    ("environ", "parameters", "said"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}, r"MPI worldSize is expected to be equal to tp\*pp\*cp"),
        ({"TRTLLM_ORCHESTRATOR": "1", "OMPI_COMM_WORLD_SIZE": "2"}, {}, "expect MPI worldSize to be 1"),
        ({"TRTLLM_ORCHESTRATOR": "1"}, {"executor_worker_path": "/none"}, "unable to find the specified executable file /none"),
        ({"TRTLLM_ORCHESTRATOR": "1"}, {"participant_ids": "1", **WORKER}, "Participant ids should not be set"),
        (ALONE, {}, "Spawning of processes was disabled in orchestrator mode, but participant IDs is missing"),
        (ALONE, {"participant_ids": "${participant_ids}"}, "participant IDs is missing"),
        ({**ALONE, "OMPI_COMM_WORLD_SIZE": "2"}, {"participant_ids": "0"}, "Rank 0 is reserved for the orchestrator"),
        (ALONE, {"participant_ids": "1"}, "Not enough ranks in world"),
    ],
)
def test_ranks_that_are_not_the_engines_are_refused(
    bench: Bench, environ: dict[str, str], parameters: dict[str, str], said: str
) -> None:
    with pytest.raises(RefusedError, match=said):
        bench.open(environ, parameters)


@pytest.mark.parametrize(
    ("environ", "parameters"),
    [
        ({}, {}),
        ({"TRTLLM_ORCHESTRATOR": "0"}, {}),
        ({"TRTLLM_ORCHESTRATOR": "yes"}, {}),
        ({"TRTLLM_ORCHESTRATOR": "1"}, {"worker_path": "/none", **WORKER}),
        ({**ALONE, "OMPI_COMM_WORLD_SIZE": "2"}, {"participant_ids": "1"}),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {"participant_ids": "1"}),
    ],
)
def test_ranks_that_are_the_engines_are_taken(bench: Bench, environ: dict[str, str], parameters: dict[str, str]) -> None:
    bench.open(environ, parameters)


def test_an_engine_in_parts_takes_exactly_its_ranks(bench: Bench, tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    shutil.copytree(bench.folder / "models" / "_assets" / "tiny" / "engines", engines)
    text = (engines / "config.json").read_text()
    (engines / "config.json").write_text(text.replace('"tp_size": 1', '"tp_size": 2'))
    path = {"gpt_model_path": str(engines)}
    with pytest.raises(RefusedError, match="MPI worldSize is expected"):
        bench.open({}, path)
    with pytest.raises(CheckpointError, match=r"Error opening engine file: .*rank1\.engine"):
        bench.open({"OMPI_COMM_WORLD_SIZE": "2"}, path)
    shutil.copyfile(engines / "rank0.engine", engines / "rank1.engine")
    bench.open({"OMPI_COMM_WORLD_SIZE": "2"}, path)
    (engines / "config.json").write_text(text.replace('"version": "0.21.0"', '"version": "0.20.0"'))
    with pytest.raises(RefusedError, match="Version tag does not match"):
        bench.open({}, path)
