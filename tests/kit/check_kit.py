"""A repository that breaks no rule, and ways to break it: each a small change to files, as a person's hand would make it."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from google.protobuf import text_format

import skeleton_kit
from forge import protobuf
from forge.repository import config as repository
from forge.schema import manifest
from forge.schema.manifest import Manifest, PublishedModel, Serving
from forge.schema.values import (
    BuildTable,
    ConfigOverrides,
    Names,
    Recipe,
    RuntimeKind,
    RuntimeTable,
    ServeTable,
    Source,
    TextFile,
)

NAME = "tiny"
VOCABULARY = 330
"""Words in skeleton_kit's byte-level tokenizer."""
VERSION = "0.20.0"
ENGINE: Mapping[str, Any] = {
    "version": VERSION,
    "pretrained_config": {
        "architecture": "LlamaForCausalLM",
        "vocab_size": VOCABULARY,
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
    },
    "build_config": {
        "max_input_len": 1024,
        "max_seq_len": 2048,
        "max_batch_size": 8,
        "max_beam_width": 1,
        "max_num_tokens": 8192,
        "plugin_config": {"use_paged_context_fmha": True, "paged_kv_cache": True, "tokens_per_block": 32},
    },
}
"""config.json of an engine as trtllm-build writes it, as far as a check looks."""
TWIN: Mapping[str, Any] = {"architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY, "eos_token_id": 1}


def recipe(name: str = NAME, kind: RuntimeKind = RuntimeKind.ENGINE) -> Recipe:
    return Recipe(
        name=name,
        source=Source(hub="a/b"),
        runtime=RuntimeTable(kind=kind),
        build=BuildTable(max_batch_size=8),
        serve=ServeTable(kv_cache_free_gpu_mem_fraction=0.5),
    )


def lay(
    root: Path,
    name: str = NAME,
    *,
    prefix: str = "",
    skeletons: tuple[TextFile, ...] = (),
    kind: RuntimeKind = RuntimeKind.ENGINE,
    inside: bool = False,
) -> Path:
    """One model as forge publishes it, manifest and all; a second one can be laid beside it under another prefix.

    The twin's configs name the place where the repository stands, the engine's the place that it has in a container.
    """
    names = Names(prefix, inside=inside)
    settings = repository.settings(recipe(name, kind), ConfigOverrides(), names=names)
    for file in repository.render(names, skeletons or repository.skeletons(), settings):
        place = root / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        text = file.content
        if kind is RuntimeKind.TWIN and file.path.endswith("config.pbtxt"):
            text = repository.relocate(text, str(root))
        place.write_text(text, encoding="utf-8")
    assets = root / names.assets(name)
    (assets / "tokenizer").mkdir(parents=True)
    (assets / "engines").mkdir()
    (assets / "tokenizer" / "tokenizer.json").write_text(_tokenizer(), encoding="utf-8")
    words = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "pad_token": "<|im_end|>"}
    (assets / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(words), encoding="utf-8")
    (assets / "tokenizer" / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}), encoding="utf-8")
    if kind is RuntimeKind.TWIN:
        (assets / "engines" / "config.json").write_text(json.dumps(TWIN), encoding="utf-8")
        (assets / "engines" / "build_config.json").write_text(json.dumps(ENGINE["build_config"]), encoding="utf-8")
    else:
        (assets / "engines" / "config.json").write_text(json.dumps(ENGINE), encoding="utf-8")
        (assets / "engines" / "rank0.engine").write_bytes(b"\0" * 2000)
    served, roles = _serving(kind), names.all()
    _publish(
        root,
        PublishedModel(name=name, entry="e" * 64, runtime=kind, roles=roles, prefix=prefix, serving=served, inside=inside),
    )
    return root


def _serving(kind: RuntimeKind) -> Serving:
    return Serving(environment="e" * 64, backends="b" * 64) if kind is RuntimeKind.TWIN else Serving(image="i" * 64)


def _publish(root: Path, model: PublishedModel) -> None:
    file = root / manifest.NAME
    held = manifest.read(file.read_bytes()) if file.exists() else Manifest(root=str(root))
    file.write_text(manifest.write(held.having(model)), encoding="utf-8")


@cache
def _tokenizer() -> str:
    return skeleton_kit.byte_level().to_str()


# -- by hand


def by_hand(root: Path, skeletons: Iterable[TextFile], values: Mapping[str, Mapping[str, str]]) -> None:
    """As ``tools/fill_template.py`` fills: text for text, what nobody names is left as it is."""
    for file in skeletons:
        role, _, rest = file.path.partition("/")
        text = file.content
        if rest == "config.pbtxt":
            for name, value in values.get(role, {}).items():
                text = text.replace(f"${{{name}}}", value)
        place = root / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")


def config(root: Path, folder: str) -> Any:
    """The message of a model's config.pbtxt."""
    return protobuf.parse((root / folder / "config.pbtxt").read_text(encoding="utf-8"))


def change(root: Path, folder: str, edit: Callable[[Any], object]) -> None:
    """Edit a config.pbtxt as a message."""
    message = config(root, folder)
    edit(message)
    (root / folder / "config.pbtxt").write_text(text_format.MessageToString(message, as_utf8=True), encoding="utf-8")


def parameter(root: Path, folder: str, **values: str | None) -> None:
    """Set parameters of a model; None takes one away."""

    def edit(message: Any) -> None:
        for key, value in values.items():
            if value is None:
                del message.parameters[key]
            else:
                message.parameters[key].string_value = value

    change(root, folder, edit)


def tensor(message: Any, name: str) -> Any:
    """An input or output of a model, by its name."""
    return next(each for each in (*message.input, *message.output) if each.name == name)


def replace(root: Path, file: str, pattern: str, put: str) -> None:
    """Edit a file as text."""
    text = (root / file).read_text(encoding="utf-8")
    changed, count = re.subn(pattern, put, text)
    assert count, f"{pattern!r} is not in {file}"
    (root / file).write_text(changed, encoding="utf-8")


def document(root: Path, file: str, **changes: object) -> None:
    """Set keys of a JSON file; ``a__b`` is key b of the object at a."""
    held = cast("dict[str, Any]", json.loads((root / file).read_text(encoding="utf-8")))
    for path, value in changes.items():
        *outer, last = path.split("__")
        inner = held
        for key in outer:
            inner = inner[key]
        inner[last] = value
    (root / file).write_text(json.dumps(held), encoding="utf-8")
