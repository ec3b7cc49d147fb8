"""How long a text a checkpoint was trained for: as vLLM and TensorRT-LLM count it, and only what is sure."""

import pytest

from forge.schema.positions import beyond

LLAMA = {"model_type": "llama", "max_position_embeddings": 4096}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (LLAMA, 4096),
        ({"text_config": LLAMA}, 4096),
        ({**LLAMA, "rope_scaling": None}, 4096),
        ({**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({**LLAMA, "rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}}, 8192),
        ({**LLAMA, "rope_scaling": {**YARN, "type": "llama3"}}, 4096),
        ({**LLAMA, "rope_scaling": {"type": "longrope", "factor": 8.0}}, 4096),
        ({**LLAMA, "rope_scaling": YARN}, 16384),
        ({**LLAMA, "rope_scaling": {"type": "linear", "factor": float("inf")}}, 4096),
        ({**LLAMA, "rope_scaling": {"type": "linear", "factor": float("nan")}}, 4096),
        ({"max_position_embeddings": 131072, "rope_scaling": YARN}, 131072),
        ({**LLAMA, "model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 4096),
        ({**LLAMA, "model_max_length": 8192}, 8192),
        ({**LLAMA, "model_max_length": 8192, "rope_scaling": {"type": "linear", "factor": 2.0}}, 16384),
        ({"model_type": "gpt2", "n_positions": 1024, "n_ctx": 512}, 1024),
        ({"max_position_embeddings": 2048, "rotary_scaling": {"type": "linear", "factor": 2}}, 4096),
    ],
)
def test_the_longest_text_counts_what_rope_is_scaled_by(config: dict[str, object], most: int) -> None:
    assert beyond(config, most) is None
    found = beyond(config, most + 1)
    assert found is not None
    assert found.tokens == most


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_position_embeddings": "many"},
        {"n_positions": 512, "relative_attention_num_buckets": 32},
        {"rope_scaling": [1]},
    ],
)
def test_nothing_is_said_where_nothing_is_sure(config: dict[str, object]) -> None:
    assert beyond(config, 10**6) is None


def test_learned_positions_are_told_apart_from_computed_ones() -> None:
    for config in ({"model_type": "gpt2", "n_positions": 9}, {"position_embedding_type": "learned_absolute", "n_positions": 9}):
        found = beyond(config, 10)
        assert found is not None
        assert found.told(10) == "is 10, and the checkpoint has 9 positions, each learned (n_positions)"
    scaled = beyond({**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}}, 10**6)
    assert scaled is not None
    assert scaled.told(10**6).endswith("trained for 16384 tokens (max_position_embeddings 4096, rope scaled by 4)")
