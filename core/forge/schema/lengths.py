"""How long a text a model knows, by the names that architectures have for it in config.json."""

from collections.abc import Mapping

LENGTHS = (
    "max_position_embeddings",  # Llama and most that came after it
    "n_positions",  # GPT-2, GPT-J, T5
    "max_sequence_length",  # OLMo
    "max_seq_len",  # MPT, DBRX
    "seq_length",  # ChatGLM, Falcon
    "model_max_length",  # Baichuan
    "max_seq_length",
    "max_target_positions",  # the decoder of an encoder-decoder
    "n_ctx",
    "seq_len",
)


def longest(config: Mapping[str, object]) -> tuple[str, int]:
    """The name and the tokens of the shortest length that ``config`` states; an empty name where it states none."""
    stated = ((name, config.get(name)) for name in LENGTHS)
    known = [(name, value) for name, value in stated if isinstance(value, int) and not isinstance(value, bool) and value > 1]
    return min(known, key=lambda pair: pair[1], default=("", 0))
