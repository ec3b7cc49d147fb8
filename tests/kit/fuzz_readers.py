"""The readers of what others write, each with what it may refuse by and what guessing begins with."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

import fuzz_unpackers as unpackers

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Reader:
    """``read`` may raise ``refuses`` and nothing else, and write in the folder that it is given and nowhere else.

    ``seeds`` are files and texts to begin with.
    """

    read: Callable[[bytes, Path], object]
    refuses: tuple[type[BaseException], ...]
    seeds: tuple[bytes, ...] = ()


def readers() -> Mapping[str, Reader]:
    """Every reader by its name."""
    return _recipes() | _documents() | _checkpoints() | _archives() | _told()


def _npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


_NPYS = (
    _npy(b"{'descr': '<i4', 'fortran_order': False, 'shape': (1, 1, 3)}\n") + bytes(12),
    *(_npy(head) for head in (b"-" * 60_000 + b"1", b"1+" * 30_000 + b"1", b"{'descr': '<f2', 'shape': (1e999,)}")),
)


def _recipes() -> dict[str, Reader]:
    from forge import errors, protobuf
    from forge.plan import lock
    from forge.recipe import deployment, reader, verify_prompts

    recipes, deployments = (_files(f"{folder}/*.toml") for folder in ("recipes", "deployments"))
    configs = tuple(re.sub(rb"\$\{\w+\}", b"1", each) for each in _files("core/forge/repository/skeletons/*.pbtxt"))
    locks = (filled(lock.Lock).replace(b'"git":"', b'"git":"https://'),)
    refuses = (errors.RecipeError,)
    return {
        "recipe": Reader(_text(lambda text: reader.read(text, "it")), refuses, recipes),
        "deployment": Reader(_text(lambda text: deployment.read(text, "it")), refuses, deployments),
        "tuned recipe": Reader(_text(_tuned), (*refuses, errors.BenchError), recipes[:2]),
        "lock": Reader(_text(lambda text: lock.read(text, "it")), (errors.LockError,), locks),
        "prompts": Reader(
            _text(lambda text: verify_prompts.parse(text, "it")), (errors.ForgeError,), (filled(verify_prompts.Prompt),)
        ),
        "config.pbtxt": Reader(_text(protobuf.parse), (protobuf.Unreadable,), configs),
    }


def _documents() -> dict[str, Reader]:
    from forge import errors
    from forge.bench import quality, results
    from forge.schema import manifest
    from forge.serve.openai import requests
    from forge.serve.openai.api_errors import Fault
    from forge.verify import transcripts

    held = filled(manifest.Manifest).replace(b'"format":1', b'"format":%d' % manifest.FORMAT)
    chats = (_CHAT, _CALLS, filled(requests.ChatAsk))
    return {
        "manifest": Reader(_bytes(manifest.read), (errors.RepositoryError,), (b'{"format": 3, "models": []}', held)),
        "reference": Reader(
            _bytes(lambda given: transcripts.read(given, "it")), (errors.ForgeError,), (filled(transcripts.Reference),)
        ),
        "bench results": Reader(
            _bytes(lambda given: results.read(given, "it")), (errors.BenchError,), (filled(results.Results),)
        ),
        "quality": Reader(_text(lambda text: quality.read(text, "it")), (errors.BenchError,), (_EXAM,)),
        "openai chat": Reader(_bytes(lambda given: requests.read(given, requests.ChatAsk).conversation), (Fault,), chats),
        "openai text": Reader(
            _bytes(lambda given: requests.read(given, requests.TextAsk)), (Fault,), (filled(requests.TextAsk),)
        ),
    }


def _checkpoints() -> dict[str, Reader]:
    from forge import errors
    from forge.build.sources import checkpoint_files, lookups
    from forge.client import lora
    from forge.files import safetensors
    from forge.fit import model_shape
    from forge.twin import checkpoint, faults, gguf_header, shape

    tensors = (_TENSORS, len(_TENSORS).to_bytes(8, "little") + _TENSORS + bytes(24))
    index = b'{"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}'
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    configs = (errors.SourceError, faults.CheckpointFault)
    return {
        "config.json": Reader(
            _bytes(lambda given: shape.read_shape(lookups.checkpoint(given, "it").config)), configs, (_LLAMA, _GEMMA)
        ),
        "shape for fit": Reader(
            _bytes(lambda given: model_shape.read(lookups.checkpoint(given, "it").config)),
            (errors.SourceError, model_shape.UnknownShapeError),
            (_LLAMA, b'{"model_type": "t5", "d_model": 8, "num_heads": 2, "num_layers": 2, "is_encoder_decoder": true}'),
        ),
        "safetensors": Reader(_bytes(lambda given: [each.size for each in safetensors.parse(given)]), (ValueError,), tensors),
        "weights of the twin": Reader(
            _file(lambda file: [*checkpoint.Weights(file.parent).values()], "model.safetensors"),
            (faults.CheckpointFault,), tensors[1:],
        ),
        "weights as fetched": Reader(_file(checkpoint_files.fault, "model.safetensors"), (), (*tensors, pointer)),
        "index of weights": Reader(_file(checkpoint_files.fault, "model.safetensors.index.json"), (), (index, pointer)),
        "array of an adapter": Reader(_file(lora.array, "model.lora_config.npy"), (errors.InferenceError,), _NPYS),
        "gguf": Reader(_file(gguf_header.read_header), (gguf_header.GgufError,), (b"GGUF\x03\0\0\0" + bytes(16),)),
        "tokenizer.json": Reader(_file(_tokenizer, "tokenizer.json"), (errors.InferenceError,), (_TOKENIZER,)),
        "tokenizer_config.json": Reader(
            _file(_tokenizer, "tokenizer_config.json"), (errors.InferenceError,), (_SETTINGS,)
        ),
    }  # fmt: skip


def _archives() -> dict[str, Reader]:
    from forge import errors
    from forge.remote import record
    from forge.twin import gguf_header

    whole = unpackers.tar({f"files/ab/{'ab' * 32}": b"x", "bundle.json": b"{}"})
    records = (_RECORD, b'{"format": 1, "manifest": "{}", "listing": "[]"}')
    envelope = b'{"payload": "e30=", "payloadType": "a", "signatures": []}'
    return {
        "bundle": Reader(_file(unpackers.bundle), (errors.StoreError,), (whole,)),
        "contents of a bundle": Reader(unpackers.sealed, (errors.StoreError,), (unpackers.CONTENTS,)),
        "artifact": Reader(unpackers.artifact, (record.Rotten, OSError), (unpackers.LISTING,)),
        "wheel": Reader(_file(unpackers.wheel), (errors.SourceError,), (unpackers.zipped(),)),
        "gguf converted": Reader(_file(unpackers.converted), (*gguf_header.DAMAGE, OSError), unpackers.ggufs()),
        "record": Reader(_bytes(lambda given: record.decode("a" * 64, given)), (record.Rotten,), records),
        "signature": Reader(_text(_envelope), (errors.StoreError,), (envelope, _SIGNATURE)),
    }


def _told() -> dict[str, Reader]:
    from google.protobuf.message import DecodeError

    from forge import errors
    from forge.bench import instruments
    from forge.trtllm import help_texts

    def helped(text: str) -> object:
        return help_texts.options(text), help_texts.complaints(["--a", "1"], text)

    return {
        "help text": Reader(_text(helped), (), (_HELP,)),
        "metrics": Reader(_text(instruments.parse), (ValueError,), (b'a{b="c"} 1.5\n# TYPE a gauge\n',)),
        "answer": Reader(_bytes(_answer), (DecodeError, errors.InferenceError), _answers()),
    }


_LLAMA = b"""{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "vocab_size": 128,
"max_position_embeddings": 512, "rope_theta": 1e4, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}, "hidden_act": "silu"}"""
_GEMMA = b'{"architectures": ["Gemma2ForCausalLM"], "sliding_window": 8, "layer_types": ["full_attention"]}'
_TENSORS = b'{"__metadata__": {"a": "b"}, "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}'
_TOKENIZER = b"""{"added_tokens": [{"id": 0, "content": "<s>"}], "post_processor": {"type": "TemplateProcessing",
"single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}], "special_tokens": {"<s>": {"tokens": ["<s>"]}}},
"model": {"type": "BPE", "vocab": {"a": 1}, "merges": []}, "decoder": {"type": "ByteLevel"}}"""
_SETTINGS = b"""{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "added_tokens_decoder": {"0": {"content": "<s>"}},
"eos_token_id": [0, 1], "add_bos_token": true, "chat_template": [{"name": "default", "template": "{{ messages }}"}]}"""
_PLAIN = b'{"bos_token": "<s>", "eos_token": {"content": "</s>"}}'
_HELP = b"""usage: convert_checkpoint.py [-h] [--dtype {auto,float16}]

options:
  -h, --help            show this help message and exit
  --dtype {auto,float16}
                        of the weights (default: auto)
  --a N                 a number
"""
_RECORD = b'{"format": 1, "by": {"forge": "0", "plugins": "0"}, "manifest": "{}", "listing": "[]"}'
_SIGNATURE = (
    b'{"payload": "e30=", "payloadType": "application/vnd.in-toto+json", "signatures": [{"keyid": "a", "sig": "YQ=="}]}'
)
_EXAM = b'[[prompt]]\nname = "a"\ntext = "b"\ncheck = [{ regex = "c+" }, { json_schema = { type = "object" }, not = true }]\n'
_CHAT = b"""{"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "max_tokens": 3,
"stream": true, "stop": ["x"], "logprobs": true, "top_logprobs": 2, "response_format": {"type": "json_object"}}"""
_CALLS = b"""{"model": "m", "tools": [{"type": "function", "function": {"name": "f", "parameters": {"$defs": {"a": {}}}}}],
"tool_choice": "required", "logit_bias": {"5": -1.5}, "messages": [{"role": "assistant", "tool_calls": [{"id": "1",
"function": {"name": "f", "arguments": "{\\"a\\": 1}"}}]}, {"role": "tool", "tool_call_id": "1", "content": "x"}]}"""


def filled(kind: object) -> bytes:
    """A document of a type in which every field has a value."""
    return msgspec.json.encode(_value(inspect.type_info(kind)))


def _value(kind: Any) -> object:  # noqa: C901, PLR0911  # one line for each kind of type
    match kind:
        case inspect.StructType() | inspect.DataclassType() | inspect.TypedDictType():
            tag = {kind.tag_field: kind.tag} if isinstance(kind, inspect.StructType) and kind.tag_field else {}
            return tag | {field.encode_name: _value(field.type) for field in kind.fields}
        case inspect.UnionType():
            return _value(next(each for each in kind.types if not isinstance(each, inspect.NoneType)))
        case inspect.VarTupleType() | inspect.ListType() | inspect.SetType() | inspect.FrozenSetType():
            return [_value(kind.item_type)]
        case inspect.TupleType():
            return [_value(each) for each in kind.item_types]
        case inspect.DictType():
            return {str(_value(kind.key_type)): _value(kind.value_type)}
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.Metadata():
            return _value(kind.type)
        case inspect.EnumType():
            return next(iter(kind.cls)).value
        case inspect.BoolType():
            return True
        case inspect.IntType() | inspect.FloatType():
            return 1
        case inspect.StrType():
            return "0" * 32 if kind.pattern else "a"
        case _:
            return None


def _files(pattern: str) -> tuple[bytes, ...]:
    return tuple(file.read_bytes() for file in sorted(ROOT.glob(pattern)))


def _tuned(text: str) -> object:
    from forge.bench.tune import evidence
    from forge.recipe import reader

    reader.read(text, "")
    return evidence.applied(text, {"build.max_batch_size": 3}), evidence.stated(text, {"serve.instances": 3}, "why")


def _tokenizer(file: Path) -> object:
    """All that asks a tokenizer's folder, of which the other file is as it should be."""
    from forge.check.repository_reader import _Paths, _tokenizer as checked  # pyright: ignore[reportPrivateUsage]
    from forge.client.chat_template import ChatTemplate
    from forge.serve.lookup import further

    other, text = ("tokenizer_config.json", _PLAIN) if file.name == "tokenizer.json" else ("tokenizer.json", _TOKENIZER)
    if not file.with_name(other).exists():
        file.with_name(other).write_bytes(text)
        file.with_name("generation_config.json").write_bytes(b'{"eos_token_id": [0, 1]}')
    said = file.read_text(encoding="utf-8", errors="replace")
    if "template" not in said and "\\u" not in said:  # that would be rendered, in a process of its own
        checked(file.parent, _Paths(file.parent, ""))
    return further(file.parent, file.parent), ChatTemplate.of(file.parent)


def _envelope(text: str) -> object:
    from forge.remote.signature import Trust

    return Trust((), needed=False).about(text, ())


def _answer(given: bytes) -> object:
    """A model's response, heard by clients that asked for all that there is to ask."""
    from forge.client.response import Ear
    from forge.client.types import ModelMetadata, Request, TensorMetadata

    response = _messages().ModelInferResponse.FromString(given)
    asked = Request("m", "a", 3, return_log_probs=True, top_log_probs=2, return_token_counts=True, return_perf_metrics=True)
    models = (
        ModelMetadata("m", {}, {}),
        ModelMetadata("m", {"sampling_parameters": TensorMetadata("sampling_parameters", "BYTES", (1,))}, {}, accumulates=True),
    )
    return [[*Ear(asked, model).hear(response, 1.0, final=True)] for model in models]


def _messages() -> Any:
    return import_module("tritonclient.grpc.service_pb2")


def _answers() -> tuple[bytes, ...]:
    made = _messages().ModelInferResponse(model_name="m")
    said = b'[{"5": {"logprob": -1.5, "rank": 1, "decoded_token": "a"}}]'
    for name, kind, shape, raw in (
        ("text_output", "BYTES", [1, 1], b"\1\0\0\0a"),
        ("output_ids", "INT32", [1, 1, 2], bytes(8)),
        ("sequence_length", "INT32", [1, 1], b"\2\0\0\0"),
        ("output_log_probs", "FP32", [1, 1, 2], bytes(8)),
        ("cum_log_probs", "FP32", [1, 1], bytes(4)),
        ("acceptance_rate", "FP32", [1, 1], bytes(4)),
        ("logprobs", "BYTES", [1], len(said).to_bytes(4, "little") + said),
    ):
        made.outputs.add(name=name, datatype=kind, shape=shape)
        made.raw_output_contents.append(raw)
    return (made.SerializeToString(),)


def _bytes(read: Callable[[bytes], object]) -> Callable[[bytes, Path], object]:
    """A reader of bytes in memory."""
    return lambda given, _: read(given)


def _text(read: Callable[[str], object]) -> Callable[[bytes, Path], object]:
    """A reader of text: what is no UTF-8 never gets that far."""

    def decoded(given: bytes, _: Path) -> object:
        try:
            text = given.decode()
        except UnicodeDecodeError:
            return None
        return read(text)

    return decoded


def _file(read: Callable[[Path], object], name: str = "it") -> Callable[[bytes, Path], object]:
    """A reader of a file called ``name``."""

    def laid(given: bytes, folder: Path) -> object:
        file = folder / name
        file.write_bytes(given)
        return read(file)

    return laid
