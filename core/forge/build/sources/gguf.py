"""Checkpoints in one GGUF file, as llama.cpp writes them."""

import re
from pathlib import Path

from forge.build.sources.folder import Digests
from forge.errors import SourceError
from forge.events import Progress
from forge.files.copies import Cost
from forge.files.safetensors import Tensor
from forge.schema.values import Checkpoint, Pinned, Source, SourceKind
from forge.twin.gguf_header import DAMAGE, GgufError, config, read_header

PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf")


class GgufOrigin:
    """A local GGUF file; only its header is read before the build converts it."""

    def __init__(self, home: Path) -> None:
        self._digests = Digests(home)

    def pin(self, source: Source, base: Path) -> Pinned:
        file = (base / Path(source.address).expanduser()).resolve()
        if not file.is_file():
            raise SourceError("there is no such file", where=str(file), hint="paths start at the recipe's folder")
        parts = PART.search(file.name)
        if parts and int(parts[1]) > 1:
            hint = f"merge it first: llama-gguf-split --merge {file.name} whole.gguf"
            raise SourceError(f"one of {int(parts[1])} parts of a GGUF", where=str(file), hint=hint)
        self._config(file)
        return Pinned(SourceKind.GGUF, file.name, "", (self._digests.fact(file, file.name),), str(file))

    def read(self, pinned: Pinned) -> Checkpoint:
        return Checkpoint(self._config(Path(pinned.location)))

    def tensors(self, pinned: Pinned) -> tuple[Tensor, ...]:
        """Empty: they are not the checkpoint's until the file is converted, and config.json says them all the same."""
        del pinned
        return ()

    def fetch(self, pinned: Pinned, into: Path, progress: Progress) -> None:
        (fact,) = pinned.files
        self._digests.bring([(Path(pinned.location), fact)], into, progress)

    def cost(self, pinned: Pinned, into: Path) -> Cost:
        """What a fetch into ``into`` would write; a file whose blocks can be shared (reflink) counts nothing."""
        (fact,) = pinned.files
        return self._digests.cost([(Path(pinned.location), fact)], into)

    def _config(self, file: Path) -> dict[str, object]:
        try:
            return config(read_header(file))
        except (OSError, *DAMAGE) as error:
            hint = "download it again, or take a GGUF of a supported kind; safetensors checkpoints always work"
            what = str(error) if isinstance(error, GgufError) else f"damaged: {error}"
            raise SourceError(what, where=str(file), hint=hint) from error
