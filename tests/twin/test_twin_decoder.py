"""The numpy decoder says what transformers says, and what it says of one sequence never depends on the others."""

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_checkpoints
from forge.twin.architectures import knows, objection
from forge.twin.arrays import Floats, Ints
from forge.twin.checkpoint import Weights, read_json
from forge.twin.cores import Cores
from forge.twin.decoder import Decoder, NumpyDecoder
from forge.twin.faults import CheckpointFault
from forge.twin.loading import load
from forge.twin.projection import ByKernel, ByNumpy, Projector, Weight
from forge.twin.shape import Rotary, read_shape
from tiny_checkpoints import torch, transformers

save_file: Any = importlib.import_module("safetensors.numpy").save_file
PROMPT = [int(token) for token in np.random.default_rng(0).integers(2, tiny_checkpoints.VOCABULARY, 40)]


WAYS: Mapping[str, Callable[[Cores], Projector]] = {
    "machine code": lambda cores: ByKernel(cores, cores),
    "numpy": lambda cores: ByNumpy(cores=cores),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[[Cores], Projector]:
    return WAYS[str(request.param)]


def greedy(decoder: Decoder, prompt: Sequence[int], count: int, end: int = 1) -> list[int]:
    """What a decoder says after a prompt, the end token included."""
    memory = decoder.start()
    said = [int(decoder.prompt(memory, np.array(prompt)).argmax())]
    while len(said) < count and said[-1] != end:
        said.append(int(decoder.step([memory], said[-1:]).argmax()))
    return said


@pytest.mark.parametrize("family", tiny_checkpoints.FAMILIES)
def test_greedy_output_is_what_transformers_generates(family: str, tmp_path: Path) -> None:
    model = tiny_checkpoints.make(family, tmp_path)
    decoder = load(tmp_path)
    assert isinstance(decoder, NumpyDecoder)
    assert greedy(decoder, PROMPT, 24) == tiny_checkpoints.says(model, PROMPT, 24)


@pytest.mark.parametrize("family", tiny_checkpoints.FAMILIES)
def test_logits_are_transformers_for_whole_and_cut_prompts(family: str, tmp_path: Path) -> None:
    model = tiny_checkpoints.make(family, tmp_path)
    with torch.no_grad():
        wanted = model(torch.tensor([PROMPT])).logits[0].numpy()
    decoder = load(tmp_path)
    np.testing.assert_allclose(decoder.prompt(decoder.start(), np.array(PROMPT), every=True), wanted, atol=2e-3)
    memory = decoder.start()
    first = decoder.prompt(memory, np.array(PROMPT[:11]), every=True)
    second = decoder.prompt(memory, np.array(PROMPT[11:30]), every=True)
    steps = [decoder.step([memory], [token]) for token in PROMPT[30:]]
    np.testing.assert_allclose(np.concatenate([first, second, *steps]), wanted, atol=2e-3)


@pytest.mark.slow
def test_smollm2_says_what_transformers_says(smollm2_checkpoint: Path) -> None:
    prompt = [1, 4093, 198, 1780, 314, 260, 6376, 4461, 47, 2, 198, 1, 520, 9531, 198]
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2_checkpoint, dtype=torch.float32)
    assert greedy(load(smollm2_checkpoint), prompt, 32, end=2) == tiny_checkpoints.says(model, prompt, 32)


@pytest.mark.slow
def test_smollm2s_logits_are_the_same_bits_alone_and_among_others(smollm2_checkpoint: Path) -> None:
    decoder = load(smollm2_checkpoint)
    prompts = [np.arange(5, 9 + 7 * row) * 31 % 49000 for row in range(3)]
    assert_company_changes_nothing(decoder, prompts, turns=2)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen2"])
def test_logits_are_the_same_bits_alone_and_among_others(
    family: str, tmp_path: Path, way: Callable[[Cores], Projector]
) -> None:
    tiny_checkpoints.make(family, tmp_path, hidden_size=320, intermediate_size=1500)
    prompts = [np.array(PROMPT[: 3 + 5 * row]) for row in range(7)]
    decoder = NumpyDecoder(read_shape(read_json(tmp_path / "config.json")), Weights(tmp_path), way(Cores()))
    assert_company_changes_nothing(decoder, prompts, turns=6)


def test_prompts_read_together_have_their_bits_alone(tmp_path: Path, way: Callable[[Cores], Projector]) -> None:
    tiny_checkpoints.make("gemma3", tmp_path, hidden_size=320, intermediate_size=1500)
    decoder = NumpyDecoder(read_shape(read_json(tmp_path / "config.json")), Weights(tmp_path), way(Cores()))
    pieces = [np.array(PROMPT[:length]) for length in (9, 1, 30, 2, 1)]
    every = [False, False, True, False, True]
    together, alone = [decoder.start() for _ in pieces], [decoder.start() for _ in pieces]
    for _ in range(2):  # the second piece of a prompt looks back on the first
        among = decoder.prompts(together, pieces, every)
        for memory, piece, whole, said in zip(alone, pieces, every, among, strict=True):
            np.testing.assert_array_equal(decoder.prompt(memory, piece, every=whole), said)
    for row, said in enumerate(decoder.step(together, [7] * len(pieces))):
        np.testing.assert_array_equal(decoder.step([alone[row]], [7])[0], said)


def assert_company_changes_nothing(decoder: Decoder, prompts: Sequence[Ints], turns: int) -> None:
    together, alone = [decoder.start() for _ in prompts], [decoder.start() for _ in prompts]
    for prompt, one, other in zip(prompts, together, alone, strict=True):
        decoder.prompt(one, prompt)
        decoder.prompt(other, prompt)
    for turn in range(turns):
        tokens = [(17 * turn + 5 * row) % 190 for row in range(len(prompts))]
        among = decoder.step(together, tokens)
        for row, (memory, token) in enumerate(zip(alone, tokens, strict=True)):
            np.testing.assert_array_equal(decoder.step([memory], [token])[0], among[row])


def drawn(*shape: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(("outputs", "inputs"), [(7, 5), (1, 16), (997, 576), (1024, 576), (3001, 1536)])
def test_rows_of_a_projection_keep_bits_in_any_blocks(outputs: int, inputs: int, way: Callable[[Cores], Projector]) -> None:
    weight, rows = drawn(outputs, inputs), drawn(11, inputs, seed=2)
    project = way(Cores(1))(Weight(weight))
    among = project(rows, [1] * 11)
    for row in range(11):
        np.testing.assert_array_equal(project(rows[row : row + 1], [1])[0], among[row])
    np.testing.assert_allclose(among, rows @ weight.T, rtol=1e-3, atol=1e-3)


def test_several_rows_of_a_sequence_keep_bits_beside_others(way: Callable[[Cores], Projector]) -> None:
    project, rows, counts = way(Cores(1))(Weight(drawn(997, 320))), drawn(20, 320, seed=2), (1, 7, 1, 3, 8)
    among = project(rows, counts)
    for count, end in zip(counts, np.cumsum(counts), strict=True):
        np.testing.assert_array_equal(project(rows[end - count : end], [count]), among[end - count : end])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_several_cores_change_no_bit_of_any_projection(count: int, way: Callable[[Cores], Projector]) -> None:
    weights = [Weight(drawn(outputs, 96), drawn(outputs)) for outputs in (7, 997, 3001)]
    for some in (weights, weights[:1], weights[2:]):
        several, single = way(Cores(count, worth=1))(*some), way(Cores(1))(*some)
        for rows in (1, 2, 5):
            x = drawn(rows, 96, seed=rows)
            np.testing.assert_array_equal(several(x, [1] * rows), single(x, [1] * rows))


class Failing:
    """A product whose last part fails."""

    parts, size = 4, 1

    def multiply(self, first: int, last: int) -> None:
        if last == self.parts:
            raise ValueError("no room")


def test_a_failure_on_another_core_is_raised_here() -> None:
    cores = Cores(2, worth=1)
    with pytest.raises(ValueError, match="no room"):
        cores.multiply([Failing()])
    x, out = drawn(2, 96), np.empty((2, 997), np.float32)
    by_kernel = ByKernel(cores, cores)(Weight(np.ones((997, 96), np.float32)))
    np.testing.assert_allclose(by_kernel(x, [1, 1]), np.broadcast_to(x.sum(axis=1, keepdims=True), out.shape), atol=1e-4)


def test_a_forked_memory_goes_its_own_way(tmp_path: Path) -> None:
    tiny_checkpoints.make("llama", tmp_path)
    decoder = load(tmp_path)
    memory = decoder.start()
    decoder.prompt(memory, np.array(PROMPT))
    fork = memory.fork()
    decoder.step([memory], [3])
    after = decoder.step([memory], [4])
    decoder.step([fork], [3])
    np.testing.assert_array_equal(decoder.step([fork], [4]), after)


def test_a_sequence_outgrows_its_first_room(tmp_path: Path) -> None:
    model = tiny_checkpoints.make("llama", tmp_path)
    prompt = (PROMPT * 8)[:300]
    assert greedy(load(tmp_path), prompt, 8) == tiny_checkpoints.says(model, prompt, 8)


def test_float32_weights_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    stored = np.arange(12, dtype=np.float32).reshape(3, 4)
    save_file({"a": stored}, tmp_path / "model.safetensors")
    found = Weights(tmp_path)["a"]
    np.testing.assert_array_equal(found, stored)
    assert not found.flags.writeable
    assert not found.flags.owndata


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_width_weights_are_widened(dtype: str, tmp_path: Path) -> None:
    model = tiny_checkpoints.make("llama", tmp_path / "whole").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "half")
    wanted = model.float().state_dict()
    for name, weight in Weights(tmp_path / "half").items():
        np.testing.assert_array_equal(weight, wanted[name].numpy())


def test_a_checkpoint_in_several_files_reads_as_one(tmp_path: Path) -> None:
    model = tiny_checkpoints.make("llama", tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="60KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert greedy(load(tmp_path / "many"), PROMPT, 8) == greedy(load(tmp_path / "one"), PROMPT, 8)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    tiny_checkpoints.make("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointFault, match=r"model\.safetensors is truncated"):
        load(tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tiny_checkpoints.make("llama", tmp_path)
    save_file({"model.embed_tokens.weight": np.zeros((199, 48), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointFault, match=r"no tensor model\.norm\.weight"):
        load(tmp_path)


def test_configs_of_transformers_4_and_5_mean_the_same_shape(tmp_path: Path) -> None:
    tiny_checkpoints.make("gemma3", tmp_path)
    new = read_json(tmp_path / "config.json")
    old = {key: value for key, value in new.items() if key not in {"rope_parameters", "layer_types"}}
    old |= {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 4,
    }
    assert read_shape(old) == read_shape(new)
    llama = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 9}
    llama |= {"num_hidden_layers": 1, "max_position_embeddings": 32}
    spelled_old = read_shape({**llama, "rope_theta": 500000.0, "rope_scaling": None})
    spelled_new = read_shape({**llama, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}})
    assert spelled_old == spelled_new
    assert spelled_old.layers[0].rotary == Rotary(500000.0)


FIELDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gemma, untied": ("gemma", {"tie_word_embeddings": False}),
    "gemma, silu": ("gemma", {"hidden_act": "silu", "hidden_activation": "silu"}),
    "gemma, as it was first released": ("gemma", {"hidden_act": "gelu"}),
    "gemma2, untied, silu": ("gemma2", {"tie_word_embeddings": False, "hidden_activation": "silu"}),
    "gemma2, another key for its activation": ("gemma2", {"hidden_act": "silu"}),
    "gemma2, without caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3, untied, silu": ("gemma3", {"tie_word_embeddings": False, "hidden_activation": "silu"}),
    "gemma3, with a cap and biases": (
        "gemma3",
        {"final_logit_softcapping": 3.0, "attention_bias": True},
    ),
    "llama, tanh gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama, gelu_new": ("llama", {"hidden_act": "gelu_new"}),
    "llama, keys of others": (
        "llama",
        {
            "hidden_activation": "gelu_pytorch_tanh",
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 3,
            "layer_types": ["sliding_attention"] * 4,
            "sliding_window": 4,
        },
    ),
    "mistral, all attention": ("mistral", {"sliding_window": None}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3, biases": ("qwen3", {"attention_bias": True}),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_config_json_is_obeyed_where_its_architecture_reads_it(kind: str, tmp_path: Path) -> None:
    family, changes = FIELDS[kind]
    model = tiny_checkpoints.make(family, tmp_path, **changes)
    with torch.no_grad():
        wanted = model(torch.tensor([PROMPT])).logits[0].numpy()
    decoder = load(tmp_path)
    assert isinstance(decoder, NumpyDecoder)
    np.testing.assert_allclose(decoder.prompt(decoder.start(), np.array(PROMPT), every=True), wanted, atol=2e-3)


@pytest.mark.parametrize("name", ["q_proj.bias", "q_norm.weight"])
def test_a_tensor_the_architecture_lacks_counts_for_nothing(name: str, tmp_path: Path) -> None:
    model = tiny_checkpoints.make("llama", tmp_path)
    extra = {f"model.layers.{layer}.self_attn.{name}": np.ones(64 if "bias" in name else 16, np.float32) for layer in range(4)}
    extra |= {name.replace("q_norm", "k_norm"): tensor for name, tensor in extra.items()}
    stored = {name: np.array(tensor) for name, tensor in Weights(tmp_path).items()}
    save_file({**stored, **extra}, tmp_path / "model.safetensors")
    assert greedy(load(tmp_path), PROMPT, 8) == tiny_checkpoints.says(model, PROMPT, 8)


def test_an_untied_checkpoint_without_an_output_matrix_is_refused(tmp_path: Path) -> None:
    tiny_checkpoints.make("gemma", tmp_path)
    stated = read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps({**stated, "tie_word_embeddings": False}))
    with pytest.raises(CheckpointFault, match=r"tie_word_embeddings = false, and the checkpoint has no lm_head\.weight"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("Gemma2", {"hidden_activation": "gelu"}, "activation gelu"),
        ("Gemma3", {"hidden_activation": "relu"}, "activation relu"),
        ("Gemma", {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "silu"}, "hidden_activation"),
        ("Gemma", {"hidden_activation": "silu"}, "hidden_activation"),
        ("Gemma3", {"attn_logit_softcapping": 30.0}, "soft cap"),
        ("Llama", {"hidden_act": "relu2"}, "activation relu2"),
        ("Qwen2", {"layer_types": ["chunked_attention"]}, "layers of the kind chunked_attention"),
        ("Llama", {"is_causal": False}, "bidirectional attention"),
    ],
)
def test_a_field_that_nobody_here_computes_is_refused_by_name(name: str, changes: Mapping[str, object], said: str) -> None:
    assert said in objection({"architectures": [f"{name}ForCausalLM"], **changes})


def test_what_the_numpy_decoder_does_not_know_is_named() -> None:
    llama = {"architectures": ["LlamaForCausalLM"]}
    assert knows(llama)
    assert objection({"architectures": ["FalconForCausalLM"]}) == "architecture FalconForCausalLM"
    assert "yarn" in objection({**llama, "rope_scaling": {"type": "yarn", "factor": 4.0}})
    assert "quantized" in objection({**llama, "quantization_config": {"bits": 4}})
    assert "gelu" in objection({**llama, "hidden_act": "gelu"})
    assert not knows({})
