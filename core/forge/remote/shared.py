"""A store that several machines share, below the local one: what it has is taken, verified; what is made here is sent to it."""

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from forge.errors import ForgeError
from forge.events import Event, Listener, Progress
from forge.remote import record, transfer
from forge.remote.lanes import each, once
from forge.remote.place import Place, RemoteError, Written
from forge.remote.record import Builder, Origin, Record, Rotten
from forge.remote.signature import ATTESTATION, Notary, UntrustedError
from forge.store.artifact import Artifact, Manifest, Provenance
from forge.store.store import Store

T = TypeVar("T")
_KEY = re.compile(r"[A-Za-z0-9_-]{3,128}")
"""What else stands among the records is none of forge's, and is not shown."""
AGAIN = 60.0
"""Seconds after which a shared store that did not answer is asked again."""
GRACE = 86400.0
"""Seconds that a blob without a record is left alone: somebody may be about to write its record."""


def kind(made: Provenance) -> str:
    """What an artifact is for the table ``[remote] push``; empty for what stays on its machine, whatever the table says.

    An entry is made of links to other artifacts, an environment names folders of this machine, an image is the daemon's.
    """
    match made.action:
        case "ReadToolchain":
            return "toolchain"
        case "Run":
            return "engine" if made.inputs.get("gpu") else "checkpoint"
        case "Fetch" | "PatchCheckpoint":
            return "weights"
        case _:
            return ""


class Pushed(Struct, frozen=True):
    """An artifact that was offered to a shared store; ``there`` where it was whole there before. Bytes."""

    key: str
    step: str
    size: int
    sent: int
    there: bool
    other: str = ""
    """Who sent another result for this key, where there is one."""


class Held(Struct, frozen=True):
    """What stands in a shared store; ``problem`` where its record is rotten."""

    key: str
    used: float
    manifest: Manifest | None
    by: Builder | None
    problem: str = ""
    record: Record | None = None

    @property
    def size(self) -> int:
        return self.manifest.size if self.manifest else 0


class Swept(Struct, frozen=True):
    """What `forge cache gc --remote` removed, or would remove; ``size`` in bytes of files that nothing names any more."""

    removed: tuple[Held, ...]
    size: int


class Shared:
    """One shared store as a build sees it: where it does not answer, work goes on without it, and that is said once."""

    def __init__(
        self,
        open_place: Callable[[], Place],
        name: str,
        tell: Listener,
        clock: Callable[[], float],
        called: str = "the shared store",
        notary: Notary | None = None,
    ) -> None:
        """``called`` is what it is to a person, ``name`` its address. ``notary`` signs, and says whose signatures count."""
        self.notary = notary or Notary()
        self.name = name
        self._called = called
        self._open = open_place
        self._tell = tell
        self._clock = clock
        self._opened: Place | None = None
        self._away = 0.0
        self._refused: set[str] = set()
        self._untrusted: set[str] = set()

    @property
    def place(self) -> Place:
        """RemoteError where it cannot be opened."""
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    # -- for a build: nothing here ends it

    def has(self, keys: Sequence[str]) -> frozenset[str]:
        """Those of ``keys`` that stand there; none where it does not answer."""
        found: set[str] = set()
        self._attempt(lambda: found.update(self.require(keys)), "what it has is not known")
        return frozenset(found)

    def take(self, key: str, step: str, store: Store) -> Artifact | None:
        """The artifact of ``key``, taken into ``store``; None, after saying why, where it cannot be had whole."""
        taken: list[Artifact] = []
        self._attempt(lambda: taken.extend(self._taken(key, step, store)), f"{step} is made here")
        return taken[0] if taken else None

    def offer(self, artifacts: Sequence[Artifact], pushed: Iterable[str]) -> tuple[Pushed, ...]:
        """Send those of ``artifacts`` whose kind is among ``pushed``; where it does not answer, they stay here."""
        done: list[Pushed] = []
        wanted = [one for one in artifacts if kind(one.manifest.provenance) in set(pushed)]
        hint = "what was made stays here; `forge cache push` sends it later"
        self._attempt(lambda: done.extend(self.push(one) for one in wanted), hint)
        return tuple(done)

    # -- for who asks for it by name: RemoteError is raised

    def require(self, keys: Sequence[str]) -> frozenset[str]:
        """Those of ``keys`` that stand there and may be taken; what has no signature that counts is said, once."""
        found: set[str] = set()
        place, needed = self.place, self.notary.trust.needed

        def ask(key: str) -> tuple[str, bool, str]:
            return (key, *self._counts(key)) if needed else (key, place.has_record(key), "")

        def heard(told: tuple[str, bool, str]) -> None:
            key, there, why = told
            if there:
                found.add(key)
            elif why and key not in self._untrusted:
                self._untrusted.add(key)
                self._note(why)

        each(keys, ask, heard, place.patience)
        return frozenset(found)

    def push(self, held: Artifact, *, again: bool = False) -> Pushed:
        """Send one artifact: its files, and when all are there its record. Another result for its key is said loudly.

        With ``again`` all bytes are sent, whatever is there: that fixes files which are no longer what was put there.
        """
        step, key = held.manifest.provenance.step, held.key
        if problems := [problem for entry in held.files() if (problem := record.misplaced(entry))]:
            raise RemoteError(f"{step} cannot be shared: a file {problems[0]}", where=str(held.path))
        refused = key in self._refused
        anew = refused or again
        there = None if refused else self._asked(lambda: self.place.record(key))
        by = record.builder(self._clock())
        attestation = self.notary.attest(held, by)
        again = again or (bool(attestation) and there is not None and self._lacks_signature(key, there))
        if there is not None and (other := self._told(key, there, held)) is not None and (other or not again):
            return Pushed(key, step, held.size, 0, there=True, other=other)
        name = f"{step}, to {self._called}"
        self._tell(Event("start", name, key, total=held.size))
        try:
            done = transfer.send(held, self.place, self._progress(name, key), anew=anew)
        except OSError as error:
            raise RemoteError(f"it was not sent: {error}", where=name) from error
        text = record.encode(held, done.parts, by, attestation)
        fresh = self._asked(lambda: self.place.write(key, text, done.blobs, anew=anew or there is not None))
        self._refused.discard(key)
        other = "" if fresh else self._told(key, self._asked(lambda: self.place.record(key)) or b"", held) or ""
        self._tell(Event("sent", name, key, size=done.sent))
        return Pushed(key, step, held.size, done.sent, there=False, other=other)

    def pull(self, key: str, store: Store) -> Artifact | None:
        """Take one artifact into ``store``; None where it is not there, RemoteError where it is not what was put there."""
        text = self._asked(lambda: self.place.record(key))
        if text is None:
            return None
        told: list[Record] = []
        name = f"{key[:12]}, from {self._called}"

        def fill(out: Path) -> None:
            nonlocal name
            stated, manifest, _ = record.decode(key, text)
            self.notary.require(stated)
            name = f"{manifest.provenance.step}, from {self._called}"
            self._tell(Event("start", name, key, total=manifest.size))
            told.append(transfer.fetch(key, text, self.place, out, self._progress(name, key)))
            (out / record.ORIGIN).write_bytes(msgspec.json.encode(Origin(remote=self.name, by=told[0].by)))
            if told[0].attestation:
                (out / ATTESTATION).write_text(told[0].attestation, encoding="utf-8")

        began = self._clock()
        try:
            taken = store.take(key, fill)
        except (Rotten, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            self._refused.add(key)
            self._tell(Event("failed", name, key))
            hint = "where it is held whole, `forge cache push --again KEY` fixes it"
            raise RemoteError(f"{key[:12]} is not taken: {error}", where=self.name, hint=hint) from error
        except UntrustedError as error:
            self._untrusted.add(key)
            raise UntrustedError(f"{key[:12]} is not taken: {error.what}", where=self.name, hint=error.hint) from error
        except TimeoutError as error:
            raise RemoteError(str(error), where=self.name) from error
        self._tell(Event("taken", name, key, seconds=self._clock() - began, size=taken.size))
        with suppress(RemoteError):  # a shared store that can only be read
            self._asked(lambda: self.place.used(key))
        return taken

    def records(self) -> tuple[Held, ...]:
        """All that stands there, by the time of its last use."""
        found: list[Held] = []
        each(self.written(), self._read, found.append, self.place.patience)
        return tuple(sorted((one for one in found if one.key), key=lambda one: (one.used, one.key)))

    def written(self) -> tuple[Written, ...]:
        """The same, unread."""
        return self._asked(lambda: tuple(one for one in self.place.records() if _KEY.fullmatch(one.key)))

    def known(self, key: str) -> Held | None:
        """What stands there for ``key``."""
        found = self._asked(lambda: self._read(Written(key, 0.0)))
        return found if found.key else None

    def collect(self, older_than: float, *, dry_run: bool) -> Swept:
        """Remove what nobody has taken or sent for ``older_than`` seconds, and the files that then nothing names."""
        now = self._clock()
        found = self.records()
        newer = [one for one in found if "has format" in one.problem]
        if newer:
            raise RemoteError(f"{newer[0].key[:12]}: {newer[0].problem}", where=self.name, hint="a newer forge has to do this")
        gone = tuple(one for one in found if one.problem or now - one.used >= older_than)
        kept = {one.key for one in found} - {one.key for one in gone}
        blobs: set[str] = set()
        each(sorted(kept), self._blobs, blobs.update, self.place.patience)
        if not dry_run:
            self.place.drop(one.key for one in gone)
        return Swept(gone, self.place.sweep(frozenset(blobs), now - min(GRACE, older_than), dry_run=dry_run))

    # -- inside

    def _asked(self, do: Callable[[], T]) -> T:
        """What the place answers; RemoteError where it does not, or goes on and on."""
        try:
            return once(do, self.place.patience)
        except TimeoutError as error:
            raise RemoteError(str(error), where=self.name) from error

    def _taken(self, key: str, step: str, store: Store) -> list[Artifact]:
        try:
            taken = self.pull(key, store)
        except RemoteError as error:
            if key not in self._refused | self._untrusted:
                raise
            self._note(f"{step}: {error.what}; it is made here instead")
            return []
        return [taken] if taken else []

    def _attempt(self, do: Callable[[], object], hint: str) -> None:
        """Do something there, unless it did not answer just now. An error is said, and nothing more is asked for a while."""
        if self._away and self._clock() - self._away < AGAIN:
            return
        try:
            do()
            self._away = 0.0
        except (RemoteError, TimeoutError) as error:
            self._away = self._clock()
            told = error.what if isinstance(error, ForgeError) else str(error)
            self._note(f"{told} ({self.name}); {hint}")

    def _told(self, key: str, text: bytes, held: Artifact) -> str | None:
        """What stands there: empty where it is as ``held``, who sent it where it is another; None where it is rotten."""
        try:
            there, manifest, _ = record.decode(key, text)
        except Rotten as error:
            self._note(f"{key[:12]}: {error}; it is written anew")
            return None
        if manifest.listing == held.manifest.listing:
            return ""
        ours = record.builder(self._clock())
        self._tell(Event("note", held.manifest.provenance.step, key, text=differ(manifest, there.by, held.manifest, ours)))
        return str(there.by)

    def _counts(self, key: str) -> tuple[bool, str]:
        """Whether something stands there that may be taken; where its signature is why it may not, that too."""
        text = self.place.record(key)
        if text is None:
            return False, ""
        try:
            stated, manifest, _ = record.decode(key, text)
        except Rotten:
            return True, ""  # who takes it says what is wrong
        try:
            self.notary.require(stated)
        except UntrustedError as error:
            return False, f"{manifest.provenance.step} is not taken: {error.what}"
        return True, ""

    def _lacks_signature(self, key: str, text: bytes) -> bool:
        """Whether what stands there was signed by nobody, or by nobody whose signature counts here."""
        try:
            stated, _, _ = record.decode(key, text)
            self.notary.require(stated)
        except (Rotten, UntrustedError):
            return True
        return not stated.attestation

    def _read(self, one: Written) -> Held:
        text = self.place.record(one.key)
        if text is None:
            return Held("", one.at, None, None)
        try:
            told, manifest, _ = record.decode(one.key, text)
        except Rotten as error:
            return Held(one.key, one.at, None, None, str(error))
        return Held(one.key, one.at or told.by.at, manifest, told.by, record=told)

    def _blobs(self, key: str) -> frozenset[str]:
        text = self.place.record(key)
        if text is None:
            return frozenset()
        told, _, files = record.decode(key, text)
        return frozenset(blob for file in files for blob in told.blobs(file))

    def _progress(self, step: str, key: str) -> Progress:
        return lambda done, total: self._tell(Event("progress", step, key, done=done, total=total))

    def _note(self, text: str) -> None:
        self._tell(Event("note", "shared store", text=text))


def differ(theirs: Manifest, them: Builder, ours: Manifest, us: Builder) -> str:
    """Two results for one key: both provenances, for a person to find out why."""
    return (
        f"TWO RESULTS for {ours.key[:12]}: the shared store keeps the one of {_made(theirs, them)}; "
        f"the one here is another: {_made(ours, us)}. What decides it and is no input of it differs between the machines"
    )


def _made(manifest: Manifest, by: Builder) -> str:
    when = datetime.fromtimestamp(manifest.made_at, UTC)
    return (
        f"{by}, {when:%Y-%m-%d %H:%M} UTC, in {manifest.seconds:.1f} s, {manifest.size:,} bytes, files {manifest.listing[:12]}"
    )
