"""LLM(), the entrance of TensorRT-LLM's PyTorch path: its arguments' names by version, and a recipe in them. Pure but for
reading its own table.
"""

from collections.abc import Mapping
from functools import cache
from typing import cast

import msgspec
from msgspec import Struct

from forge.files import texts
from forge.schema.values import ConvertTable, Recipe, Scalar, Toolchain
from forge.trtllm.commands import older

MOST_TOKENS = 8192
"""LLM()'s own max_num_tokens; a longer prompt would be refused although max_input_len lets it in."""
EAGLE_LEN, TARGET_LEN = 3, 4
"""Tokens guessed ahead where the recipe does not say: a chain here, where TensorRT-LLM's engines guess a tree."""

SPECULATION = {"eagle": ("Eagle", EAGLE_LEN), "draft-target": ("DraftTarget", TARGET_LEN)}
"""Variants that the PyTorch path has -> LLM()'s word for them and how far they guess."""


class Names(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """LLM()'s arguments by name: those of every version, and those ``before`` and ``since`` 1.0."""

    always: tuple[str, ...]
    before: tuple[str, ...]
    since: tuple[str, ...]
    renamed: Mapping[str, str]
    """Arguments of before 1.0 -> what they are called since."""
    set_by_forge: Mapping[str, str]
    """Arguments that the recipe has keys of its own for -> those keys."""

    def side(self, name: str) -> str:
        """On which side of 1.0 an argument is that not every version has; empty for another."""
        return "before" if name in self.before else "since" if name in self.since else ""


@cache
def names() -> Names:
    """All of them (llm_args.toml says where they are from)."""
    return texts.shipped("forge.trtllm", "llm_args.toml", Names)


class Assets(Struct, frozen=True):
    """Where LLM() finds what forge laid beside it, inside the container; ``draft`` is empty where there is none."""

    model: str
    draft: str = ""
    lora: Mapping[str, object] | None = None
    """lora_config, where there are adapters; each request names the folder of its own."""


def known(toolchain: Toolchain) -> frozenset[str]:
    """What LLM() of this image takes beside what forge sets; of every version where the image's is not known."""
    every = names()
    if not toolchain.trtllm:
        return frozenset((*every.always, *every.before, *every.since))
    return frozenset((*every.always, *(every.before if older(toolchain, "1.0") else every.since)))


def stated(recipe: Recipe, toolchain: Toolchain, assets: Assets) -> dict[str, object]:
    """LLM()'s arguments as model.yaml states them. ValueError where a ``build.args`` cannot stand where it should."""
    build, convert = recipe.build, recipe.convert
    arguments: dict[str, object] = {
        "model": assets.model,
        "tokenizer": assets.model,
        "backend": "pytorch",
        "dtype": convert.dtype,
        "tensor_parallel_size": convert.tp,
        "pipeline_parallel_size": convert.pp,
        "max_batch_size": build.max_batch_size,
        "max_input_len": build.max_input_len,
        "max_seq_len": build.max_seq_len,
        "max_beam_width": build.max_beam_width,
    }
    if build.max_num_tokens or build.max_input_len > MOST_TOKENS:
        arguments["max_num_tokens"] = build.max_num_tokens or build.max_input_len
    arguments["kv_cache_config"] = {
        "free_gpu_memory_fraction": recipe.serve.fraction,
        "enable_block_reuse": recipe.serve.enable_kv_cache_reuse,
    }
    if assets.lora:
        arguments["lora_config"] = dict(assets.lora)
    if speculation := _speculation(recipe, toolchain, assets):
        arguments["speculative_config"] = speculation
    for path, value in {**_cache_type(convert, toolchain), **recipe.build.args}.items():
        _put(arguments, path, read(value))
    return arguments


def read(value: Scalar) -> object:
    """A value of ``build.args``: text that begins with a bracket is a list or table, in JSON. ValueError where it is none."""
    if not isinstance(value, str) or not value.startswith(("[", "{")):
        return value
    try:
        return msgspec.json.decode(value, type=list[object] | dict[str, object])
    except msgspec.DecodeError as error:
        raise ValueError(f"is no JSON: {error}") from error


def write(arguments: Mapping[str, object]) -> str:
    """The text of model.yaml. JSON, which every reader of YAML reads: forge needs no library to write YAML then."""
    return msgspec.json.format(msgspec.json.encode(_plain(arguments)), indent=2).decode() + "\n"


def _plain(value: object) -> object:
    """A float as YAML 1.1 reads one: PyYAML takes 1e-05 for text, and 1.0e-05 for a number."""
    if isinstance(value, float):
        mantissa, mark, exponent = repr(value).partition("e")
        point = ".0" if mark and "." not in mantissa else ""
        return msgspec.Raw(f"{mantissa}{point}{mark}{exponent}".encode())
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in cast("Mapping[str, object]", value).items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in cast("list[object]", value)]
    return value


def _cache_type(convert: ConvertTable, toolchain: Toolchain) -> dict[str, Scalar]:
    """Where LLM() is told in which type it keeps the cache; the place moved twice."""
    if convert.quantization != "fp8_kv":
        return {}
    if older(toolchain, "0.20"):
        return {"pytorch_backend_config.kv_cache_dtype": "fp8"}
    return {"kv_cache_dtype" if older(toolchain, "1.0") else "kv_cache_config.dtype": "fp8"}


def _speculation(recipe: Recipe, toolchain: Toolchain, assets: Assets) -> dict[str, object]:
    if recipe.variant not in SPECULATION:
        return {}
    kind, length = SPECULATION[recipe.variant]
    if kind == "DraftTarget" and not older(toolchain, "1.2"):
        kind = "Draft_Target"  # from_dict's own table took no underscore; since 1.2 the class's name for itself counts
    return {
        "decoding_type": kind,
        "max_draft_len": recipe.speculation.max_draft_len or length,
        _weights(toolchain): assets.draft,
    }


def _weights(toolchain: Toolchain) -> str:
    """What speculative_config calls the draft's folder. 1.2 calls it speculative_model, and still reads the former name."""
    if older(toolchain, "0.20"):
        return "pytorch_eagle_weights_path"
    return "pytorch_weights_path" if older(toolchain, "1.0") else "speculative_model_dir"


def _put(arguments: dict[str, object], path: str, value: object) -> None:
    """Set an argument, an inner one by its dotted path."""
    *tables, name = path.split(".")
    place = arguments
    for table in tables:
        inner = place.setdefault(table, dict[str, object]())
        if not isinstance(inner, dict):
            raise ValueError(f"{table} is set to a value already, and can hold no {name}")  # noqa: TRY004 - a recipe's mistake
        place = cast("dict[str, object]", inner)
    place[name] = value
