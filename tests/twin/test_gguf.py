"""From a GGUF file to a Hugging Face checkpoint: names, tokenizers, and files that are none."""

# transformers and torch leave half of their signatures untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import io
import json
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import forge.twin
from checkpoints import gguf
from forge.twin.gguf import convert, main
from forge.twin.gguf_header import GgufError, read_header

Fields = dict[str, object]
Weights = dict[str, NDArray[np.float32]]

# -- checkpoints: what transformers made, written as llama.cpp would, and converted back

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA2_NAMES = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 50000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def rotary(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows as llama.cpp's converter orders them for its own rotary embedding."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def as_gguf(weights: Weights, architecture: str, kind: int = 0, extra: Mapping[str, object] | None = None) -> bytes:
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]] = {}
    names = GEMMA2_NAMES if architecture == "gemma2" else NAMES
    for name, stated in weights.items():
        weight = stated
        stem, _, suffix = name.rpartition(".")
        if stem in OUTER:
            target = f"{OUTER[stem]}.{suffix}"
        else:
            _, _, layer, inner = stem.split(".", 3)
            target = f"blk.{layer}.{names[inner]}.{suffix}"
            if architecture == "llama" and inner.endswith(("q_proj", "k_proj")):
                weight = rotary(weight, 4 if inner.endswith("q_proj") else 2)
        if architecture.startswith("gemma") and "norm" in stem:
            weight = weight + np.float32(1)
        whole = weight.ndim == 1 or kind == 0
        data = weight.astype("<f4" if whole else "<f2").tobytes()
        tensors[target] = (0 if whole else kind, weight.shape, data)
    fields: Fields = {
        "general.architecture": architecture,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["<e>", "<s>", "</s>", *(chr(33 + place) for place in range(45))],
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * 45,
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
    }
    numbers = {
        "embedding_length": 32,
        "feed_forward_length": 64,
        "block_count": 2,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "context_length": 64,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 50000.0,
        **(extra or {}),
    }
    return gguf(fields | {f"{architecture}.{key}": value for key, value in numbers.items()}, tensors)


def weights_of(model: torch.nn.Module) -> Weights:
    tied = getattr(model, "config").tie_word_embeddings  # noqa: B009 - transformers' models are untyped
    named = model.state_dict().items()
    return {name: tensor.float().numpy() for name, tensor in named if not (tied and name == "lm_head.weight")}


MODELS: dict[str, tuple[Fields, Fields]] = {  # what the config says, and what the GGUF says
    "llama": ({"rms_norm_eps": 1e-6, "tie_word_embeddings": False}, {}),
    "qwen2": ({"rms_norm_eps": 1e-6, "tie_word_embeddings": True}, {}),
    "gemma": ({"head_dim": 16}, {"attention.key_length": 16}),
    "gemma2": (
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
        {"attention.key_length": 16, "attention.sliding_window": 8, "attn_logit_softcapping": 50.0},
    ),
}


def random_model(architecture: str) -> torch.nn.Module:
    config = transformers.AutoConfig.for_model(architecture, **SIZES, **MODELS[architecture][0])
    model: torch.nn.Module = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model.train(mode=False)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MODELS)
def test_a_converted_model_is_the_one_that_was_written(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = random_model(architecture)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    (tmp_path / "model.gguf").write_bytes(as_gguf(weights_of(model), architecture, extra=MODELS[architecture][1]))
    convert(tmp_path / "model.gguf", tmp_path / "out")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert type(back) is type(model)
    before, after = weights_of(model), weights_of(back)
    assert sorted(before) == sorted(after)
    tolerance = 1e-6 if architecture.startswith("gemma") else 0  # 1 was added to norms and taken away again
    assert all(np.abs(before[name] - after[name]).max() <= tolerance for name in before)
    prompt = torch.tensor([[1, 5, 9, 30, 31, 7, 8, 44, 3, 11, 20, 21]])
    with torch.no_grad():
        assert torch.allclose(model(prompt).logits, back(prompt).logits, atol=1e-4)


@pytest.mark.slow
def test_half_precision_stays_as_it_is(tmp_path: Path) -> None:
    model = random_model("llama")
    weights = {name: weight.astype(np.float16).astype(np.float32) for name, weight in weights_of(model).items()}
    (tmp_path / "model.gguf").write_bytes(as_gguf(weights, "llama", kind=1))
    convert(tmp_path / "model.gguf", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert back.dtype == torch.float16
    assert all(np.array_equal(weights[name], value) for name, value in weights_of(back).items())


def test_llama_3s_rotary_factors_become_its_settings(tmp_path: Path) -> None:
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes().items()}
    config = transformers.AutoConfig.for_model("llama", **SIZES, head_dim=8)
    plain = 1 / 50000.0 ** (np.arange(4) / 4)
    config.rope_parameters = {"rope_theta": 50000.0, **LLAMA3}
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    factors = (plain / scaled.numpy()).astype("<f4")
    assert factors.max() > 1
    data = as_gguf(weights, "llama")
    assert convert_with_factors(data, factors, tmp_path)["rope_scaling"] == LLAMA3
    with pytest.raises(GgufError, match="rotary factors"):
        convert_with_factors(data, factors + np.array([0, 0, 0.5, 0], np.float32), tmp_path)


LLAMA3: Fields = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of the tiny Llama of these tests."""
    inner = {"q_proj": (32, 32), "k_proj": (16, 32), "v_proj": (16, 32), "o_proj": (32, 32)}
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (48, 32), "model.norm.weight": (32,)}
    for layer in range(2):
        stem = f"model.layers.{layer}"
        found |= {f"{stem}.self_attn.{name}.weight": shape for name, shape in inner.items()}
        found |= {f"{stem}.mlp.{name}.weight": (64, 32) for name in ("gate_proj", "up_proj")}
        found |= {f"{stem}.mlp.down_proj.weight": (32, 64)}
        found |= {f"{stem}.{name}.weight": (32,) for name in ("input_layernorm", "post_attention_layernorm")}
    return found


def convert_with_factors(data: bytes, factors: NDArray[np.float32], folder: Path) -> Fields:
    """Convert with one more tensor; its entry goes to the header's end, its bytes to the file's."""
    (folder / "plain.gguf").write_bytes(data)
    header = read_header(folder / "plain.gguf")
    tensors = {
        name: (0, tensor.shape, data[tensor.start : tensor.start + tensor.size]) for name, tensor in header.tensors.items()
    }
    tensors["rope_freqs.weight"] = (0, factors.shape, factors.tobytes())
    (folder / "scaled.gguf").write_bytes(gguf(header.fields, tensors))
    convert(folder / "scaled.gguf", folder / "out")
    made: Fields = json.loads((folder / "out" / "config.json").read_text())
    return made


# -- tokenizers

TEXTS = [
    "The year 2024 had 366 days, didn't it?",
    "def f(x):\n\n    return x  # déjà vu — naïve 東京 🦙\r\n",
    "  leading, trailing and\ttabs   ",
    "WE'LL see 1234567 things… ½ of ①",
    "",
]
SAMPLE = [*TEXTS, "the quick brown fox jumps over the lazy dog " * 3, "banana bandana cabana 0123456789", "don't can't won't"]
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SPLITS: dict[str, pre_tokenizers.PreTokenizer] = {
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated"), BYTES]),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3_WORDS.replace("{1,3}", "")), "isolated"), BYTES]),
}


def tokenizer_of(fields: Fields, folder: Path) -> Tokenizer:
    """Convert a model that is all zeros around a vocabulary; the tokenizer that came out."""
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes().items()}
    (folder / "plain.gguf").write_bytes(as_gguf(weights, "llama"))
    header = read_header(folder / "plain.gguf")
    zeros = {name: (0, tensor.shape, bytes(tensor.size)) for name, tensor in header.tensors.items()}
    kept = {key: value for key, value in header.fields.items() if not key.startswith("tokenizer.")}
    (folder / "model.gguf").write_bytes(gguf(kept | fields, zeros))
    convert(folder / "model.gguf", folder / "out")
    return Tokenizer.from_file(str(folder / "out" / "tokenizer.json"))


@pytest.mark.parametrize("before", SPLITS)
def test_a_byte_level_vocabulary_gives_its_trained_ids(before: str, tmp_path: Path) -> None:
    known = Tokenizer(models.BPE())
    known.pre_tokenizer = SPLITS[before]
    known.decoder = decoders.ByteLevel()
    if before == "qwen2":
        known.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    known.train_from_iterator(SAMPLE, trainer)
    model = json.loads(known.to_str())["model"]
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    fields: Fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": before,
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": [3] + [1] * (len(vocabulary) - 1),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    made = tokenizer_of(fields, tmp_path)
    for text in [*TEXTS, "stop<|end|>here"]:
        assert made.encode(text).ids == known.encode(text).ids
        assert made.decode(made.encode(text).ids, skip_special_tokens=False) == known.decode(
            known.encode(text).ids, skip_special_tokens=False
        )


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_sentencepiece_vocabulary_gives_the_ids_that_sentencepiece_gives(prefixed: bool, tmp_path: Path) -> None:
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SAMPLE * 5),
        model_writer=trained,
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefixed,
        minloglevel=2,
    )
    known = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    ids = range(known.get_piece_size())
    fields: Fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [known.id_to_piece(number) for number in ids],
        "tokenizer.ggml.scores": [float(known.get_score(number)) for number in ids],
        "tokenizer.ggml.token_type": [
            2 if known.is_unknown(n) else 3 if known.is_control(n) else 6 if known.is_byte(n) else 1 for n in ids
        ],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": prefixed,
    }
    made = tokenizer_of(fields, tmp_path)
    for text in filter(None, TEXTS):
        expected = known.encode(text)
        assert made.encode(text).ids == [1, *expected]
        assert made.decode(expected) == known.decode(expected)


def test_an_unknown_pre_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    fields: Fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "deepseek-llm",
        "tokenizer.ggml.tokens": ["a"],
        "tokenizer.ggml.token_type": [1],
        "tokenizer.ggml.merges": [],
    }
    with pytest.raises(GgufError, match="'deepseek-llm' is not known"):
        tokenizer_of(fields, tmp_path)


def test_the_chat_template_and_the_marks_reach_transformers(tmp_path: Path) -> None:
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes().items()}
    (tmp_path / "model.gguf").write_bytes(as_gguf(weights, "llama"))
    convert(tmp_path / "model.gguf", tmp_path / "out")
    made = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (made.bos_token, made.eos_token, made.pad_token) == ("<s>", "</s>", "</s>")
    assert made.chat_template == "{{ messages }}"
    assert made.convert_tokens_to_ids("</s>") == 2


# -- files that cannot be converted


@pytest.mark.parametrize("size", [0, 3, 20, 200, 1500, 3000])
def test_a_file_cut_anywhere_ends_in_one_line_exit_1(size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes().items()}
    (tmp_path / "cut.gguf").write_bytes(as_gguf(weights, "llama")[:size])
    assert main([str(tmp_path / "cut.gguf"), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cut.gguf" in said


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_header_never_ends_in_anything_but_an_answer(seed: int, tmp_path: Path) -> None:
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes().items()}
    whole = as_gguf(weights, "llama")
    places = np.random.default_rng(seed).integers(4, 3500, 60)
    for place in map(int, places):
        (tmp_path / "bad.gguf").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        assert main([str(tmp_path / "bad.gguf"), str(tmp_path / "out")]) in (0, 1), place


@pytest.mark.parametrize("kind", ["nested", "values", "tensors"])
def test_a_header_that_would_fill_memory_or_stack_is_refused(kind: str, tmp_path: Path) -> None:
    """A byte of an array takes eight in a list of Python's, and arrays in arrays as deep as they like."""
    deep, wide = struct.pack("<IQ", 9, 1) * 100_000, struct.pack("<IQ", 0, 1 << 25) + bytes(1 << 25)
    counts = (1 << 40, 0) if kind == "tensors" else (0, 1)
    body = struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9) + (deep if kind == "nested" else wide)
    (tmp_path / "bomb.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + body)
    with pytest.raises(GgufError, match=r"damaged header: (an array of|1,0)"):
        read_header(tmp_path / "bomb.gguf")


def test_a_quantization_that_forge_does_not_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = gguf({"general.architecture": "llama"}, {"token_embd.weight": (10, (1, 256), bytes(84))})
    (tmp_path / "q2.gguf").write_bytes(data)
    assert main([str(tmp_path / "q2.gguf"), str(tmp_path / "out")]) == 1
    assert "quantized as Q2_K" in capsys.readouterr().err


def test_a_missing_file_and_wrong_arguments_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing.gguf"), str(tmp_path / "out")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert main([]) == 2


@pytest.mark.slow
def test_it_runs_as_a_program_under_its_triton_name(tmp_path: Path) -> None:
    (tmp_path / "twin").symlink_to(Path(forge.twin.__file__).parent)
    (tmp_path / "bad.gguf").write_bytes(b"not a gguf, but long enough for one")
    argv = [sys.executable, "-m", "twin.gguf", str(tmp_path / "bad.gguf"), str(tmp_path / "out")]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no GGUF file" in done.stderr
    assert "Traceback" not in done.stderr
