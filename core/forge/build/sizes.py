"""Learns of checkpoints what ``forge fit`` needs, through the ports: config.json and headers, and no weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from forge.build.sources.source import Origin
from forge.errors import SourceError
from forge.files.safetensors import Tensor
from forge.fit import model_shape, report as fitting
from forge.fit.model_shape import Shape, UnknownShapeError
from forge.fit.report import Report
from forge.fit.verdict import Load
from forge.plan import engine_adapters, llmapi_adapters
from forge.plan.plan import plan
from forge.plan.resolved import Resolved
from forge.plan.vllm import vllm_version
from forge.plan.vllm_adapters import lora_rank
from forge.schema.values import FileFact, Gpu, Pinned, RuntimeKind, SourceKind
from forge.schema.vllm_environment import usual_utilization
from forge.store.store import Store

CONFIG = "config.json"
_ADAPTERS = {RuntimeKind.ENGINE: engine_adapters.room, RuntimeKind.LLMAPI: llmapi_adapters.room}
"""What adapters take of a GPU, where TensorRT-LLM keeps them; vLLM's room is counted by its own arguments."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


class Sizing(Struct, frozen=True):
    """The ports that it learns through. ``store`` may hold a checkpoint whose source says nothing before it is fetched."""

    origins: Mapping[SourceKind, Origin]
    store: Store

    def report(self, all_resolved: Sequence[Resolved], gpus: Sequence[Gpu], host: int, *, named: bool = False) -> Report:
        """Every figure of these recipes, judged for the GPUs that are here, or for the one that was ``named``."""
        return fitting.report([self.load(resolved) for resolved in all_resolved], gpus, host, named=named)

    def load(self, resolved: Resolved) -> Load:
        """All that is known of a recipe's checkpoint; SourceError where that is too little to say anything."""
        source, config = resolved.facts.source, self.config(resolved)
        pinned, origin = source, self.origins[source.kind]
        if not resolved.facts.checkpoint.config and (folder := self._held(resolved)):
            pinned, origin = _folder(folder), self.origins[SourceKind.PATH]
        if not config:
            what = "this source says nothing of its checkpoint before it is fetched"
            hint = "build it once: what the store holds is looked at from then on"
            raise SourceError(what, where=f"{resolved.recipe.name}: {source.name}", hint=hint)
        try:
            shape = model_shape.read(config)
        except UnknownShapeError as error:
            raise SourceError(str(error), where=f"{resolved.recipe.name}: {source.name}") from error
        tensors, basis = _tensors(origin.tensors(pinned), config, shape, pinned)
        size = sum(file.size for file in pinned.files)
        usual = usual_utilization(vllm_version(resolved))
        room = _ADAPTERS.get(resolved.recipe.runtime.kind)
        return Load(
            *(resolved.recipe, shape, tensors, size, self._draft(resolved)),
            lora_rank=lora_rank(resolved),
            lora_bytes=room(resolved, shape) if room else 0,
            basis=basis,
            usual=usual,
        )

    def config(self, resolved: Resolved) -> Mapping[str, object]:
        """Its checkpoint's config.json, out of the store where its source says nothing before it is fetched; or empty."""
        if resolved.facts.checkpoint.config or not (folder := self._held(resolved)):
            return resolved.facts.checkpoint.config
        return self.origins[SourceKind.PATH].read(_folder(folder)).config

    def _held(self, resolved: Resolved) -> Path | None:
        """The Hugging Face checkpoint that this very recipe was built from before: it has a tokenizer beside its config."""
        for step in plan([resolved]).steps:
            artifact = self.store.find(step.key) if {CONFIG, "tokenizer.json"} <= set(step.promises) else None
            if artifact and (artifact.path / CONFIG).is_file():
                return artifact.path
        return None

    def _draft(self, resolved: Resolved) -> int:
        if resolved.recipe.draft is None or resolved.facts.draft is None:
            return 0
        draft = resolved.facts.draft
        tensors = self.origins[draft.kind].tensors(draft)
        return sum(tensor.size for tensor in tensors) or sum(_weights(draft))


def _tensors(
    stated: tuple[Tensor, ...], config: Mapping[str, object], shape: Shape, pinned: Pinned
) -> tuple[tuple[Tensor, ...], str]:
    """The tensors by the best that is known: headers, else config.json's arithmetic, else one lump of the files' sizes."""
    if any(tensor.elements for tensor in stated):
        return stated, "the safetensors headers"
    if counted := model_shape.tensors(config):
        return counted, CONFIG
    width = 4 if shape.dtype == "float32" else 2
    rows = sum(_weights(pinned)) // width // shape.hidden
    lump = Tensor("weights", "F32" if width == 4 else "BF16", (rows, shape.hidden))
    return (lump,), "the files' sizes"


def _weights(pinned: Pinned) -> list[int]:
    return [file.size for file in pinned.files if file.path.endswith(WEIGHTS)]


def _folder(folder: Path) -> Pinned:
    """A checkpoint that the store holds, as if a recipe had named its folder; its digests are the store's business."""
    files = tuple(FileFact(file.name, file.stat().st_size) for file in sorted(folder.iterdir()) if file.is_file())
    return Pinned(SourceKind.PATH, folder.name, "", files, str(folder))
