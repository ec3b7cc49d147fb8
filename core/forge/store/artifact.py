"""One finished result: what it was made from, what it holds, and whether it is still that."""

import errno
from collections.abc import Mapping
from pathlib import Path

import msgspec
from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from forge.errors import StoreError
from forge.files import texts, trees
from forge.files.trees import Entry

MANIFEST = "manifest.json"
LISTING = "files.json"
TREE = "tree"
IMAGE = "image.json"
"""What the artifact of a family image holds: the image's id, and what it was made from. The image itself is the daemon's."""
_SHOWN = 5


class Provenance(Struct, frozen=True):
    """What an artifact was made from: flat label -> canonical value, and the keys of what it stands on."""

    step: str
    action: str
    inputs: Mapping[str, str]
    needs: Mapping[str, str]

    def changed(self, now: "Provenance") -> list[tuple[str, str, str]]:
        """Inputs that are others ``now``: label, value before and value now."""
        labels = sorted({*self.inputs, *now.inputs})
        pairs = [(label, self.inputs.get(label, "unset"), now.inputs.get(label, "unset")) for label in labels]
        return [pair for pair in pairs if pair[1] != pair[2]]


class Manifest(Struct, frozen=True, kw_only=True):
    """What is known of an artifact without looking into it. ``made_at`` is in seconds since 1970, ``size`` in bytes."""

    key: str
    provenance: Provenance
    made_at: float
    seconds: float
    size: int
    listing: str
    """Hex blake3 of files.json."""
    seal: str = ""
    """Hex blake3 of this manifest with an empty seal."""


class Artifact(Struct, frozen=True):
    """A finished result. ``path`` is the folder; nothing in it may be written."""

    key: str
    path: Path
    manifest: Manifest

    @property
    def size(self) -> int:
        return self.manifest.size

    @property
    def seconds(self) -> float:
        """How long the making took."""
        return self.manifest.seconds

    @property
    def used(self) -> float:
        """When it was last found or made, in seconds since 1970."""
        return (self.path.parent / MANIFEST).stat().st_mtime

    def files(self) -> tuple[Entry, ...]:
        """What it holds, by path. StoreError if the listing is not the one that was written."""
        listing = self.path.parent / LISTING
        try:
            text = listing.read_bytes()
            if blake3(text).hexdigest() == self.manifest.listing:
                return msgspec.json.decode(text, type=tuple[Entry, ...])
            problem = "it is not the one that was written"
        except OSError as error:
            problem = trees.reason(error, listing)
        raise StoreError(f"an artifact's listing is damaged: {problem}", where=str(listing), hint="Run `forge cache verify`.")


def noted(artifact: Path) -> dict[str, str]:
    """What the artifact of an image says of it: ``id``, and ``base`` and ``reference``, which an older forge left out."""
    hint = "`forge cache verify` finds what is damaged"
    stated = texts.table(artifact / IMAGE, StoreError, "the note of an image", hint=hint)
    if "id" not in stated:
        raise StoreError("the note of an image names none", where=str(artifact / IMAGE), hint=hint)
    return {name: str(value) for name, value in stated.items()}


class Damage(Struct, frozen=True):
    """An artifact that was not what it was made to be, and is gone from the store now."""

    key: str
    step: str
    problems: tuple[str, ...]

    def __str__(self) -> str:
        shown = "; ".join(self.problems[:_SHOWN])
        more = f"; and {len(self.problems) - _SHOWN} more" if len(self.problems) > _SHOWN else ""
        return f"{self.key[:12]}  {self.step or 'an artifact'}: {shown}{more}. It is removed, and made anew when it is needed."


def sealed(manifest: Manifest) -> Manifest:
    """With its seal: a bit that flips in what ``written`` makes of it breaks the seal."""
    return replace(manifest, seal=blake3(written(replace(manifest, seal=""))).hexdigest())


def written(manifest: Manifest) -> bytes:
    """The manifest as it stands on disk."""
    return msgspec.json.encode(manifest, order="sorted")


def read(key: str, place: Path) -> Artifact | None:
    """The artifact in the folder ``place``; None where none is, or its manifest is not as it was written."""
    try:
        text = (place / MANIFEST).read_bytes()
        manifest = msgspec.json.decode(text, type=Manifest)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return Artifact(key, place / TREE, manifest) if manifest.key == key and written(sealed(manifest)) == text else None


def problems(artifact: Artifact) -> tuple[str, ...]:
    """What sets the tree apart from what was made; nothing where it is whole."""
    found: dict[str, str] = {}
    try:
        made = {entry.path: entry for entry in artifact.files()}
        for there in trees.surveyed(artifact.path, {}):
            if problem := _difference(there.path, made.pop(there.path, None), there):
                found[there.path] = problem
    except (StoreError, trees.Unkeepable) as error:
        return (str(error),)
    except FileNotFoundError:
        return ("its files are gone",)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return (trees.reason(error, artifact.path),)
    found |= dict.fromkeys(made, "missing")
    return tuple(f"{path}: {problem}" for path, problem in sorted(found.items()))


def _difference(path: str, made: Entry | None, there: Entry) -> str:
    if made == there:
        return ""
    if made is None:
        # Python run by root writes its caches into a read-only environment all the same.
        return "" if "__pycache__" in path.split("/") else "was not made here"
    if made.size != there.size:
        return f"had {made.size} bytes, has {there.size}"
    if made.blake3 != there.blake3:
        return f"its bytes changed (blake3 {made.blake3[:16]}, now {there.blake3[:16]})"
    return "its kind, target or executable bit changed"
