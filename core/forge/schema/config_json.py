"""What a checkpoint's config.json says: how long a text the model knows, and who packed its weights into how many bits.

Facts: transformers writes ``quantization_config`` with a ``quant_method`` (GPTQ, AWQ, fbgemm_fp8, fp8, bitsandbytes,
compressed-tensors, mxfp4); NVIDIA's Model Optimizer writes ``quant_method`` modelopt with a ``quant_algo`` there, or leaves
``hf_quant_config.json`` beside it.
"""

from collections.abc import Collection, Mapping
from typing import cast

from msgspec import Struct

SIDECAR = "hf_quant_config.json"
PACKED = ("gptq", "awq")
"""Methods that put several weights into one integer, under tensor names of their own: other readers find no weights."""
GPTQ = ("int8_gptq", "int4_gptq")
"""A recipe's words, and the conversion scripts', for a checkpoint that GPTQ has packed."""
_EIGHT = frozenset({"fp8", "fbgemm_fp8"})
_FOUR = frozenset({"nvfp4", "mxfp4"})
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
"""Keys of the longest text, as architectures name them."""


class Quantized(Struct, frozen=True):
    """``method`` in small letters; ``bits`` of a weight and ``group``, weights that share a scale, 0 where nobody says them.

    ``reordered`` is GPTQ's ``desc_act``: columns in the order of their activations.
    """

    method: str
    bits: int = 0
    group: int = 0
    reordered: bool = False

    def __str__(self) -> str:
        bits = f", {self.bits} bits" if self.bits else ""
        return f"{self.method}{bits}" + (f" in groups of {self.group}" if self.group > 0 else "")

    @property
    def like(self) -> str:
        """The recipe's quantization that stores weights in as many bytes; empty where that is not known."""
        match self.bits:
            case 4:
                return "int4_awq"
            case 8:
                return "fp8"
            case _:
                return ""


def longest(config: Mapping[str, object]) -> tuple[str, int]:
    """The name and the tokens of the shortest length that ``config`` states; an empty name where it states none."""
    stated = ((name, config.get(name)) for name in LENGTHS)
    known = [(name, value) for name, value in stated if isinstance(value, int) and not isinstance(value, bool) and value > 1]
    return min(known, key=lambda pair: pair[1], default=("", 0))


def quantized(config: Mapping[str, object], files: Collection[str] = ()) -> Quantized | None:
    """What is said of a checkpoint with this config.json and these files; None where its weights are as they were trained."""
    stated = config.get("quantization_config")
    said: Mapping[str, object] = cast("Mapping[str, object]", stated) if isinstance(stated, Mapping) else {}
    method = str(said.get("quant_method") or "").lower()
    if not method:
        return Quantized("modelopt") if SIDECAR in files else None
    algorithm = str(said.get("quant_algo") or "").lower()
    bits = _whole(said, "bits") or _whole(said, "w_bit") or _bits(algorithm or method, said)
    name = f"{method} {algorithm}" if algorithm else method
    return Quantized(name, bits, _whole(said, "group_size") or _whole(said, "q_group_size"), said.get("desc_act") is True)


def _bits(name: str, said: Mapping[str, object]) -> int:
    if name in _FOUR or said.get("load_in_4bit") is True:
        return 4
    return 8 if name in _EIGHT or said.get("load_in_8bit") is True else 0


def _whole(said: Mapping[str, object], key: str) -> int:
    value = said.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
