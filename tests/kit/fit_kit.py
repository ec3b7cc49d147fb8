"""A large Llama, and recipes of it, for `forge fit`."""

from fakes import LLAMA

LARGE = {
    **LLAMA,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "torch_dtype": "bfloat16",
}


TEXT = """
name = "{name}"
[source]
{source}
[runtime]
kind = "engine"
[build]
max_batch_size = 8
max_seq_len = 4096
"""
