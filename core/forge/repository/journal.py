"""The journal of a publish: by it whoever comes next finishes what was killed half way, or undoes it.

``.forge/`` in a repository holds what is staged, and ``journal.json`` from the moment in which folders begin to change places.
Before that a killed publish is undone by the next command, then it is finished: all that it takes is staged, the rest are
renames. Where that cannot be (somebody moved a folder away, the disk refuses) it is undone as well. The folder is gone when all
is done: Triton's default control mode takes every folder for a model, also with a dot in front. So the lock is a file.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import msgspec
from msgspec import Meta, Struct

from forge.errors import RepositoryError
from forge.files import copies, texts, trees
from forge.schema import manifest
from forge.schema.values import ASSETS

COMING = "in"
"""Folder of a staging with what is to be seen, at the paths that it will have in the repository."""

_PRIVATE = ".forge"
_JOURNAL = "journal.json"
_STAGED = "staged-"
_GOING = "out"
_MARK = ".forge-publish"
"""File in a folder that is being published: names the staging that it came from. Gone when the publish is done."""

_Place = Annotated[str, Meta(pattern=r"\A[^./\x00][^/\x00]*(/[^./\x00][^/\x00]*)?\Z")]


class Swap(Struct, frozen=True, forbid_unknown_fields=True):
    """Something staged that belongs at ``place``, relative to the repository."""

    place: _Place
    former: bool
    """Whether what stands there is forge's, and gives way."""
    digest: str = ""
    """Of a file, its blake3. A folder bears a mark instead."""


class Journal(Struct, frozen=True, forbid_unknown_fields=True):
    """A publish that has begun to be seen: all that finishing it takes."""

    staging: Annotated[str, Meta(pattern=r"\Astaged-[0-9a-f]{32}\Z")]
    swaps: tuple[Swap, ...]
    leave: tuple[_Place, ...]
    """Folders that go."""
    manifest: str
    """The text that ``forge.json`` will have."""


class StuckError(RepositoryError):
    """A killed publish can be neither finished nor undone as long as the disk refuses."""


def recover(repository: Path) -> None:
    """Finish or undo what a killed publish left."""
    journal = _read(repository)
    if journal is None:
        return
    publish = _Publish(repository, journal)
    try:
        if publish.is_shown or publish.can_be_finished:
            publish.complete()
        else:
            publish.undo()
    except OSError as error:
        if _read(repository) is None or publish.is_shown:  # whoever came to write will hear it from the disk
            return
        raise StuckError(
            f"a publish that was killed here can be neither finished nor undone: {trees.reason(error, repository)}",
            where=str(repository),
            hint="Make room or fix the permissions: any forge command that may write here then finishes it.",
        ) from error


def foreseen(repository: Path) -> bytes | None:
    """The manifest as it will be when somebody comes who may write."""
    journal = _read(repository)
    if journal is None or not _Publish(repository, journal).can_be_finished:
        return text(repository)
    return journal.manifest.encode()


def clear(repository: Path) -> None:
    """Remove what is staged and what was swapped out, unless a journal needs it. What cannot be removed waits for the next."""
    private = repository / _PRIVATE
    with suppress(OSError):
        if not is_left(repository) or (private / _JOURNAL).exists():
            return
        for item in private.iterdir():
            if item.name.startswith(_STAGED):
                trees.remove(item)
        _drop_empty(repository / ASSETS)
        private.rmdir()


def is_left(repository: Path) -> bool:
    """Whether a publish is at work or was killed; a folder ``.forge`` of other things is left alone."""
    private = repository / _PRIVATE
    if private.is_symlink():
        return False
    try:
        names = os.listdir(private)
    except OSError:
        return False
    return not names or any(name == _JOURNAL or name.startswith(_STAGED) for name in names)


def text(repository: Path) -> bytes | None:
    """What the manifest holds; RepositoryError where it cannot be read, None where there is none."""
    found = texts.there(repository / manifest.NAME, RepositoryError, "the manifest", hint=manifest.AWAY)
    return None if found is None else found.encode()


def pending(repository: Path) -> bool:
    """Whether the repository shows a publish half way."""
    journal = _read(repository)
    return journal is not None and not _Publish(repository, journal).is_shown


def staging(repository: Path) -> Path:
    """A new folder to lay things in, under ``COMING``; it is gone when the lock is given back."""
    folder = repository / _PRIVATE / f"{_STAGED}{uuid4().hex}"
    (folder / COMING).mkdir(parents=True)
    return folder


def is_marked(folder: Path) -> bool:
    """Whether a publish put the folder there that nobody can finish any more: its journal was taken away."""
    return (folder / _MARK).is_file()


def commit(repository: Path, staged: Path, swaps: Sequence[Swap], leave: Sequence[str], text: str) -> None:
    """Have what is staged seen, ``leave`` gone, and ``text`` as the manifest, all of it.

    OSError where the disk refuses: the repository is then as it was, or its journal says how it will be.
    """
    publish = _Publish(repository, Journal(staged.name, tuple(swaps), tuple(leave), text))
    publish.prepare()
    journaled = bool(swaps or leave)
    if journaled:
        (staged / _JOURNAL).write_bytes(msgspec.json.encode(publish.journal))
    trees.flush(staged)
    trees.flush_one(staged.parent)
    trees.flush_one(repository)
    if journaled:
        publish.begin()
    publish.complete()


class _Publish:
    """What a journal says, held against what stands in the repository by now."""

    def __init__(self, repository: Path, journal: Journal) -> None:
        self.journal = journal
        self._repository = repository
        self._staging = repository / _PRIVATE / journal.staging
        self._manifest = self._staging / manifest.NAME
        self._require_inside()

    @property
    def _places(self) -> tuple[str, ...]:
        return (*(swap.place for swap in self.journal.swaps), *self.journal.leave)

    @property
    def is_shown(self) -> bool:
        """Whether the manifest says so: all that is left then is to clear up."""
        return not self._manifest.exists() and text(self._repository) == self.journal.manifest.encode()

    @property
    def can_be_finished(self) -> bool:
        """Whether all that is to be seen is still there, and nobody has put something else in its place meanwhile."""
        return all(self._can_come(swap) for swap in self.journal.swaps)

    def prepare(self) -> None:
        """Make what finishing needs room on the disk for."""
        for place in self._places:
            self._going(place).parent.mkdir(parents=True, exist_ok=True)
        for swap in self.journal.swaps:
            if not swap.digest:
                (self._repository / swap.place).parent.mkdir(exist_ok=True)
                (self._coming(swap.place) / _MARK).write_text(self.journal.staging, encoding="utf-8")
        self._manifest.write_text(self.journal.manifest, encoding="utf-8")

    def begin(self) -> None:
        """From here on whoever comes next finishes it. OSError: nothing has begun."""
        journal = self._staging.with_name(_JOURNAL)
        try:
            (self._staging / _JOURNAL).rename(journal)
            trees.flush_one(journal.parent)
        except OSError:
            journal.unlink(missing_ok=True)
            raise

    def complete(self) -> None:
        """Finish; OSError where that cannot be, and then it is undone if that can be."""
        try:
            if not self.is_shown:
                self._finish()
        except OSError:
            if not self.is_shown:
                self.undo()
            raise
        with suppress(OSError):  # the next to come clears up
            self._close()

    def undo(self) -> None:
        """Put back what was there. What somebody else has put in a place since stays."""
        for folder in self.journal.leave:
            self._back(folder, self._going(folder))
        for swap in self.journal.swaps:
            place, coming, going = self._repository / swap.place, self._coming(swap.place), self._going(swap.place)
            former = going if os.path.lexists(going) else coming
            if not self._is_new(place, swap):
                if not self._is_new(former, swap):
                    self._back(swap.place, former)
            elif not os.path.lexists(former):
                _rename(place, former)
            elif not trees.exchange(former, place):
                place.rename(coming if former is going else going)
                former.rename(place)
        with suppress(OSError):
            self._flush()
        self._end()

    def _finish(self) -> None:
        """Do what the journal says; what is done already is not done again."""
        for swap in self.journal.swaps:
            self._come(swap)
        for folder in self.journal.leave:
            place, going = self._repository / folder, self._going(folder)
            if os.path.lexists(place) and not os.path.lexists(going):
                _rename(place, going)
        _drop_empty(self._repository / ASSETS)
        self._flush()
        if self._manifest.exists():
            self._manifest.replace(self._repository / manifest.NAME)
        else:  # somebody cleared the staging: all of it was seen by then, or it would be undone
            self._staging.mkdir(exist_ok=True)
            trees.write_whole(self._repository / manifest.NAME, self.journal.manifest, aside=self._staging)
        trees.flush_one(self._repository)

    def _can_come(self, swap: Swap) -> bool:
        place = self._repository / swap.place
        if self._is_new(place, swap) or self._is_gone(swap):
            return True
        return self._is_new(self._coming(swap.place), swap) and (swap.former or not os.path.lexists(place))

    def _come(self, swap: Swap) -> None:
        """Put what is staged at its place and what was there aside, at once where the kernel can."""
        place, coming, going = self._repository / swap.place, self._coming(swap.place), self._going(swap.place)
        if self._is_new(place, swap) or self._is_gone(swap):
            return
        if not os.path.lexists(place):
            _rename(coming, place)
        elif not swap.former:
            raise FileExistsError(f"{swap.place} was put there by somebody else meanwhile")
        elif not trees.exchange(coming, place):
            _rename(place, going)
            coming.rename(place)

    def _back(self, place: str, former: Path) -> None:
        target = self._repository / place
        if os.path.lexists(former) and not os.path.lexists(target):
            _rename(former, target)

    def _is_gone(self, swap: Swap) -> bool:
        """Whether a file's folder was moved away: nobody misses the file."""
        return bool(swap.digest) and not (self._repository / swap.place).parent.is_dir()

    def _is_new(self, path: Path, swap: Swap) -> bool:
        """By its mark or its bytes: those are the same in a copy of the repository."""
        try:
            if swap.digest:
                return copies.digest(path, path.stat().st_size) == swap.digest
            return (path / _MARK).read_text(encoding="utf-8") == self.journal.staging
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, UnicodeDecodeError):
            return False

    def _coming(self, place: str) -> Path:
        return self._staging / COMING / place

    def _going(self, place: str) -> Path:
        return self._staging / _GOING / place

    def _flush(self) -> None:
        """Return when the names that changed are on disk."""
        for folder in {self._repository, *((self._repository / place).parent for place in self._places)}:
            if folder.is_dir():
                trees.flush_one(folder)

    def _close(self) -> None:
        for swap in self.journal.swaps:
            if not swap.digest and self._is_new(self._repository / swap.place, swap):
                (self._repository / swap.place / _MARK).unlink(missing_ok=True)
        self._end()

    def _end(self) -> None:
        (self._repository / _PRIVATE / _JOURNAL).unlink(missing_ok=True)

    def _require_inside(self) -> None:
        """RepositoryError where a place leads out of the repository: a journal can come with somebody else's folder."""
        root = self._repository.resolve()
        found = [
            (place, where)
            for place in self._places
            for where in (self._repository / place, self._coming(place), self._going(place))
        ]
        for place, where in found:
            parent = where.parent
            if not parent.resolve().is_relative_to(root):
                raise RepositoryError(
                    f"{place} leads out of the repository, through a symbolic link",
                    where=str(parent),
                    hint="Put a folder of its own there; forge writes nowhere else.",
                )


def _read(repository: Path) -> Journal | None:
    """RepositoryError where it is damaged."""
    file = repository / _PRIVATE / _JOURNAL
    try:
        if file.parent.is_symlink():
            return None
        return msgspec.json.decode(file.read_bytes(), type=Journal)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RepositoryError(
            f"the journal of an unfinished publish cannot be read: {error}",
            where=str(file),
            hint="Move this repository away and build it again; what is in the store is not made twice.",
        ) from error


def _rename(path: Path, target: Path) -> None:
    """Where a staging was cleared by hand its folders are made anew."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


def _drop_empty(folder: Path) -> None:
    """Empty, it would keep Triton's default control mode from starting."""
    with suppress(OSError):
        folder.rmdir()
