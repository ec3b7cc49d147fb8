"""What a version of vLLM takes and serves: read out of its sources once (``forge.vllm.facts``), and held like a toolchain.

That of forge's own pins is package data, which the same program made of the wheels of vLLM and of transformers.
"""

from functools import cache
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from forge.files import texts
from forge.schema.values import Checkpoint
from forge.schema.vllm_environment import FACTS

FILE = "vllm.json"
GENERATING = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
"""Endings of the architectures that are looked up among transformers' classes (``forge.vllm.facts``)."""
OVERRIDES = frozenset({"hf_overrides", "model_impl", "load_format", "config_format", "hf_config_path"})
"""Arguments by which vLLM may take another architecture than config.json names."""


class VllmKnown(Struct, frozen=True, kw_only=True):
    """What is empty is not known."""

    arguments: frozenset[str] = frozenset()
    architectures: frozenset[str] = frozenset()
    gone: dict[str, str] = {}
    transformers: frozenset[str] = frozenset()

    def without_registry(self) -> "VllmKnown":
        """The same where packages beside vLLM may register more architectures."""
        return structs.replace(self, architectures=frozenset())

    def refusal(self, checkpoint: Checkpoint) -> str:
        """Why this vLLM cannot serve a checkpoint; empty where it can, and where that is not sure.

        It is where vLLM has nowhere else to look (ModelRegistry.inspect_model_cls of 0.20 and 0.32): not in its registry, also
        under another ending; not among transformers' classes; and not in code of the checkpoint's own (``auto_map``).
        """
        names = checkpoint.architectures
        known = self.architectures and self.transformers and names and not checkpoint.config.get("auto_map")
        if not known or any(map(self._may_serve, names)):
            return ""
        until = self.gone.get(names[0], "")
        told = f": it had it up to {until}" if until[:1].isdigit() else f": {until} has it" if until else ""
        return f"has no {' or '.join(names)}, and neither has its transformers{told}"

    def _may_serve(self, name: str) -> bool:
        ending = next((ending for ending in GENERATING if name.endswith(ending)), "")
        stem = name.removesuffix(ending)
        return not ending or name in self.transformers or any(each.startswith(stem) for each in self.architectures)


@cache
def packaged(*, gpu: bool) -> VllmKnown:
    """Of forge's own pin for a GPU or for a CPU."""
    return _parsed(texts.part("forge.schema", "vllm_gpu.json" if gpu else "vllm_cpu.json"))


def read(folder: Path) -> VllmKnown:
    """What an artifact says; nothing where its Python had no vLLM that could be read."""
    file = folder / FILE
    return _parsed(file.read_bytes()) if file.is_file() else VllmKnown()


def script() -> str:
    """The program that writes FILE, for the Python that has vLLM."""
    return texts.part("forge.vllm", FACTS)


def _parsed(text: bytes | str) -> VllmKnown:
    try:
        return msgspec.json.decode(text, type=VllmKnown)
    except msgspec.DecodeError:
        return VllmKnown()
