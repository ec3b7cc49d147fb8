"""Loads forge's own model skeletons as Triton does: each a lone file, with Triton's module in miniature."""

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import resources, util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import fake_triton

Array = NDArray[np.generic]
DOOR = "triton_python_backend_utils"
TEXTS = ["Hello, how are you today?", "hello hello world, the END of the world\n\n", "naïve café 你好 🎉"]


def load(role: str, door: ModuleType) -> Any:
    """The skeleton as module ``model``, with ``door`` as Triton's module."""
    spec = util.spec_from_file_location(
        f"forge.repository.skeletons.model_{role}", str(resources.files("forge.repository.skeletons") / f"{role}.py")
    )
    assert spec
    assert spec.loader
    module = util.module_from_spec(spec)
    before = sys.modules.get(DOOR)
    sys.modules[DOOR], sys.modules[spec.name] = door, module
    try:
        spec.loader.exec_module(module)
    finally:
        if before is None:
            del sys.modules[DOOR]
        else:
            sys.modules[DOOR] = before
    return module


def strings(array: Array) -> list[str]:
    return [bytes(each).decode() for each in array.astype(np.object_).reshape(-1).tolist()]


def byte_level() -> Tokenizer:
    """As GPT-2's and SmolLM2's: bytes spelled as letters, no token put in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def sentence_piece() -> Tokenizer:
    """As Llama 2's: a space at the start of every text, bytes for what has no token, <s> in front."""
    letters = "▁abcdefghijklmnopqrstuvwxyzHEND,.?0"
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁h", "▁w", "EN", "END", "▁END"]
    vocabulary = {name: number for number, name in enumerate(names)}
    merges = [("▁", "h"), ("▁", "w"), ("E", "N"), ("EN", "D"), ("▁", "END")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])  # pyright: ignore[reportUnknownMemberType]
    return tokenizer


TOKENIZERS = {"byte_level": byte_level(), "sentence_piece": sentence_piece()}
ENDS = {"byte_level": ("<|im_start|>", "<|im_end|>"), "sentence_piece": ("<s>", "</s>")}


def lay(folder: Path, kind: str, generation: Mapping[str, object] | None = None) -> Path:
    begin, end = ENDS[kind]
    TOKENIZERS[kind].save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": begin, "eos_token": {"content": end}}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def model(role: str, folder: Path, door: ModuleType = fake_triton, *, decoupled: bool = True, **parameters: str) -> Any:
    stated = {"tokenizer_dir": str(folder), **parameters}
    config = {
        "parameters": {key: {"string_value": value} for key, value in stated.items()},
        "model_transaction_policy": {"decoupled": decoupled},
    }
    made = load(role, door).TritonPythonModel()
    made.initialize({"model_config": json.dumps(config)})
    return made


def texts(*rows: Sequence[str | bytes]) -> Array:
    return np.array([[each.encode() if isinstance(each, str) else each for each in row] for row in rows], dtype=object)


def ask(made: Any, **inputs: Array) -> tuple[dict[str, Array], str]:
    """The outputs of one answer, and the error's text where there is one."""
    (answer,) = made.execute([fake_triton.InferenceRequest(inputs)])
    return {one.name(): one.as_numpy() for one in answer.output_tensors()}, answer.error.message() if answer.error else ""


def prepared(made: Any, *prompts: str, **inputs: Array) -> dict[str, Array]:
    lengths = np.full((len(prompts), 1), 5, np.int32)
    found, error = ask(made, QUERY=texts(*([each] for each in prompts)), REQUEST_OUTPUT_LEN=lengths, **inputs)
    assert not error
    return found


def words(lists: Array) -> list[list[int]]:
    """One row of word lists, [2, L], read as TensorRT-LLM reads them."""
    flat, ends = lists.tolist()
    found: list[list[int]] = []
    start = 0
    for end in (end for end in ends if end >= 0):
        found.append(flat[start:end])
        start = end
    return found
