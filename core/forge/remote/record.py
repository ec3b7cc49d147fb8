"""What a shared store knows of an artifact: manifest and listing as they were made, where its bytes lie, and who sent it."""

import getpass
import platform
import posixpath
from collections.abc import Mapping
from importlib.metadata import version
from itertools import pairwise

import msgspec
from blake3 import blake3
from msgspec import Struct

from forge.files.trees import Entry
from forge.remote.place import PART
from forge.store import artifact
from forge.store.artifact import Artifact, Manifest

FORMAT = 1
ORIGIN = "origin.json"
"""Stands beside the manifest of an artifact that was taken from a shared store."""


class Rotten(Exception):  # noqa: N818 - says what the thing is
    """A record or a file there is not what was put there, or cannot be taken in."""


class Builder(Struct, frozen=True, kw_only=True):
    """Who sent an artifact. ``at`` is in seconds since 1970."""

    user: str
    host: str
    system: str
    forge: str
    at: float

    def __str__(self) -> str:
        return f"{self.user}@{self.host} (forge {self.forge}, {self.system})"


class Record(Struct, frozen=True, kw_only=True):
    """One artifact there. ``manifest`` and ``listing`` are the texts of its two files."""

    format: int = FORMAT
    manifest: str
    listing: str
    by: Builder
    part: int
    """Bytes of each part of a file that has several; the last may have fewer."""
    parts: Mapping[str, tuple[str, ...]] = {}
    """Hex blake3 of a file -> the blobs that make it up, where that is not one of the same name."""
    attestation: str = ""
    """A signed statement about it (``forge.remote.signature``), as JSON; empty for one that nobody signed."""

    def blobs(self, file: Entry) -> tuple[str, ...]:
        """What a file's bytes are made of, in order."""
        return self.parts.get(file.blake3, (file.blake3,)) if file.size else ()


class Origin(Struct, frozen=True, kw_only=True):
    """Where an artifact of the local store was taken from."""

    remote: str
    by: Builder


def builder(now: float) -> Builder:
    """This machine and this user."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        user = "?"
    system = f"{platform.system()} {platform.machine()}"
    return Builder(user=user, host=platform.node() or "?", system=system, forge=version("triton-forge"), at=now)


def encode(held: Artifact, parts: Mapping[str, tuple[str, ...]], by: Builder, attestation: str = "") -> bytes:
    """The record of an artifact; StoreError where its listing is damaged."""
    held.files()
    listing = (held.path.parent / artifact.LISTING).read_text(encoding="utf-8")
    text = artifact.written(held.manifest).decode()
    return msgspec.json.encode(Record(manifest=text, listing=listing, by=by, part=PART, parts=parts, attestation=attestation))


def decode(key: str, text: bytes, apart: frozenset[str] = frozenset()) -> tuple[Record, Manifest, tuple[Entry, ...]]:
    """A record with its manifest and listing; Rotten unless it is of this key, sealed, and safe to be laid out.

    Paths ``apart`` are the caller's own: they are left out of the listing.
    """
    try:
        record = msgspec.json.decode(text, type=Record)
        manifest = msgspec.json.decode(record.manifest, type=Manifest)
        files = msgspec.json.decode(record.listing, type=tuple[Entry, ...])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Rotten(f"its record cannot be read: {error}") from error
    if record.format != FORMAT:
        raise Rotten(f"its record has format {record.format}, and this forge knows {FORMAT}")
    if manifest.key != key or artifact.written(artifact.sealed(manifest)).decode() != record.manifest:
        raise Rotten("its manifest is not as it was written")
    if blake3(record.listing.encode()).hexdigest() != manifest.listing:
        raise Rotten("its listing is not as it was written")
    files = tuple(entry for entry in files if entry.path not in apart)
    for entry in files:
        if problem := misplaced(entry):
            raise Rotten(f"{entry.path!r} {problem}")
    return record, manifest, files


def misplaced(entry: Entry) -> str:
    """Why an entry could reach out of the folder it is laid in; empty where it cannot."""
    names = entry.path.split("/")
    if entry.path.startswith("/") or "\0" in entry.path or any(name in ("", ".", "..") for name in names):
        return "is no path inside of it"
    if entry.kind == "link":
        to = posixpath.normpath(posixpath.join(posixpath.dirname(entry.path), entry.target))
        up = entry.target.startswith("/") or to == ".." or to.startswith("../")
        back = [name for name in entry.target.split("/") if name not in ("", ".")]
        # Behind a name, which may be another link, `..` leads nobody knows where.
        if up or "\0" in entry.target or any(one == ".." != before for before, one in pairwise(back)):
            return f"is a link that leads out of it ({entry.target!a})"
    return ""
