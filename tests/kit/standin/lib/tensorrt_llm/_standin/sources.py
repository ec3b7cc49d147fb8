"""Reads a Hugging Face checkpoint: config.json and the headers of its safetensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tensorrt_llm._standin.tensors import CheckpointError, Tensor, read as read_tensors


@dataclass(frozen=True)
class Source:
    """A checkpoint folder. ``config`` is config.json; ``text`` the part of it that describes the language model."""

    folder: Path
    config: Mapping[str, object]
    tensors: Mapping[str, Tensor]

    @property
    def text(self) -> Mapping[str, object]:
        return cast("Mapping[str, object]", self.config.get("text_config") or self.config)

    @property
    def architecture(self) -> str:
        return cast("list[str]", self.config["architectures"])[0]

    def number(self, *names: str) -> int:
        """The first of these keys that the config has; ``KeyError`` names them all."""
        for name in names:
            if isinstance(self.text.get(name), int):
                return cast("int", self.text[name])
        raise KeyError(f"{self.folder}/config.json has none of {', '.join(names)}")


def load_json(file: Path) -> dict[str, object]:
    """A JSON object from a file; FileNotFoundError where there is none."""
    found: object = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds no JSON object")
    return cast("dict[str, object]", found)


def read(folder: Path | str | None, architectures: tuple[str, ...]) -> Source:
    """The checkpoint in ``folder``, which has to be one of ``architectures``; its weights are looked at, not read."""
    if folder is None:
        raise ValueError("model_dir is needed: this stand-in makes no checkpoint of no checkpoint")
    place = Path(folder)
    config = load_json(place / "config.json")
    names = cast("list[str]", config.get("architectures") or ["(none)"])
    if names[0] not in architectures:
        raise NotImplementedError(f"{place} is a {names[0]}; this script converts {', '.join(architectures)}")
    return Source(place, config, weights(place))


def weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder, through its index where it has one."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        placed = cast("dict[str, str]", load_json(index)["weight_map"])
        files = [folder / name for name in sorted(set(placed.values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"no file named model.safetensors found in directory {folder}")
    found: dict[str, Tensor] = {}
    for file in files:
        found |= read_tensors(file).tensors
    return found
