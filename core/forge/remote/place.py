"""The port below a shared store: blobs under the address that their bytes give them, and one record for each key."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from msgspec import Struct

from forge.errors import StoreError

PART = 16 * 1024 * 1024
"""Bytes of a blob at most: a larger file is several, which travel side by side, and what has arrived is not sent again."""

RECORD = 256 * 1024 * 1024
"""Bytes of a record at most: a listing of a million files has fewer."""

Data = bytes | memoryview


class RemoteError(StoreError):
    """The shared store does not answer, refuses, or cannot be spoken to from here."""


class Written(Struct, frozen=True):
    """A record that stands there: its key, and when it was last written or used, in seconds since 1970."""

    key: str
    at: float


class Place(Protocol):
    """Somewhere to keep blobs and records. Every method raises RemoteError, and none waits without an end."""

    name: str
    """Its address, as a person may see it."""

    patience: float
    """Seconds in which any one answer has come, or never will."""

    def address(self, data: Data, blake3: str) -> str:
        """The name of a blob; ``blake3`` is the hex digest of ``data`` where it is known, and empty otherwise."""
        ...

    def has(self, blob: str) -> bool: ...

    def put(self, blob: str, data: Data) -> None:
        """Keep a blob: seen whole, or not at all."""
        ...

    def get(self, blob: str, size: int) -> Data:
        """A blob as it stands there, whole or rotten; FileNotFoundError where it is missing.

        It ought to have ``size`` bytes: of a longer one not much more than that is read.
        """
        ...

    def has_record(self, key: str) -> bool: ...

    def record(self, key: str) -> bytes | None:
        """What stands there for ``key``; not much more than RECORD bytes of it."""
        ...

    def write(self, key: str, record: bytes, blobs: Mapping[str, int], *, anew: bool) -> bool:
        """Put a record once all of its ``blobs`` (with sizes) are there; False where one stands there, unless ``anew``."""
        ...

    def records(self) -> Iterator[Written]: ...

    def used(self, key: str) -> None:
        """Note that ``key`` was taken just now, where that can be noted."""
        ...

    def drop(self, keys: Iterable[str]) -> None:
        """Remove records."""
        ...

    def sweep(self, kept: frozenset[str], before: float, *, dry_run: bool) -> int:
        """Remove blobs that are not ``kept`` and older than ``before``; the bytes that this frees, where that is known."""
        ...


def sharded(folder: str, name: str) -> str:
    """Where a blob or a record stands in a place that has folders: no folder holds all."""
    return f"{folder}/{name[:2]}/{name}"
