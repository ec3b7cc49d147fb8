"""Repositories that were published from this store: where each was seen, what it stands on, and which cannot be reached."""

import os
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from forge.errors import RepositoryError, StoreError
from forge.files import texts, trees
from forge.schema import manifest
from forge.schema.manifest import Manifest

LEAST = 8
"""Characters of an id that tell which repository is meant."""
_UNFINISHED = ".forge"
"""Stands in a repository while a publish is under way, and after one that died: what it brings belongs to it too."""
_DAMAGED = "its note in the store is damaged: nobody knows which repository this was, and what it holds"


class Tenant(Struct, frozen=True, omit_defaults=True):
    """One repository at one place. A copy of it elsewhere is another tenant of the same id."""

    place: str
    id: str = ""
    """Empty where there was no manifest yet."""
    keys: tuple[str, ...] | None = None
    """What it stood on when it was last seen; None where nobody knows."""
    gone: float = 0.0
    """Seconds since 1970 when it was first found to be out of reach; 0 while it is there."""
    why: str = ""
    """Why it is out of reach."""

    def is_of(self, found: Manifest) -> bool:
        """Whether this is the repository whose manifest stands at the place now."""
        return self.id == found.id or not (self.id or self.gone)

    def is_called(self, name: str) -> bool:
        """Whether a person means it by ``name``: its place, or the beginning of its id."""
        return os.path.abspath(name) == self.place or (len(name) >= LEAST and self.id.startswith(name))


class Tenants:
    """A folder of notes, one for each tenant. Every call is to be made behind the gate of the store's claims."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "repositories"

    def expect(self, repository: Path, keys: Iterable[str]) -> None:
        """From now on ``keys``, which are about to be published there, are held for it as well."""
        place = os.path.abspath(repository)
        found = standing(place)
        if isinstance(found, Manifest):
            self._take(place, found, keys)
            return
        mine = {file: one for file, one in self._notes().items() if one.place == place and not (one.id or one.gone)}
        held = {*keys, *(key for one in mine.values() for key in one.keys or ())}
        self._put(self._new(), Tenant(place, keys=tuple(sorted(held))))
        for file in mine:
            file.unlink(missing_ok=True)

    def seen(self, repository: Path) -> None:
        """Note what stands at ``repository`` now. One that was noted elsewhere, and is not there any more, has moved here."""
        place = os.path.abspath(repository)
        found = standing(place)
        if isinstance(found, Manifest):
            self._take(place, found)
        elif not _unfinished(place):  # nothing came of what was expected
            for file, one in self._notes().items():
                if one.place == place and not (one.id or one.gone):
                    file.unlink(missing_ok=True)

    def look(self, now: float) -> tuple[Tenant, ...]:
        """All of them, looked for just now: what each stands on where it is there, since when it is out of reach otherwise.

        One that is known to stand on nothing is forgotten when it goes.
        """
        for unfinished in self._folder.glob(".*"):
            unfinished.unlink(missing_ok=True)
        looked: list[Tenant] = []
        for file, tenant in self._notes().items():
            fresh = _looked_for(tenant, now)
            if (fresh.gone and fresh.keys == ()) or fresh in looked:
                file.unlink(missing_ok=True)
                continue
            if fresh != tenant:
                self._put(file, fresh)
            looked.append(fresh)
        return tuple(sorted(looked, key=lambda one: (one.place, one.id)))

    def drop(self, tenant: Tenant) -> None:
        """Forget one."""
        for file, one in self._notes().items():
            if one == tenant:
                file.unlink(missing_ok=True)

    # -- inside

    def _take(self, place: str, found: Manifest, more: Iterable[str] = ()) -> None:
        """Note the repository at ``place``, with ``more`` than it holds already."""
        notes, held = self._notes(), {*found.held, *more}
        mine = {file: one for file, one in notes.items() if one.place == place and one.is_of(found)}
        if more or _unfinished(place):
            held.update(key for one in mine.values() for key in one.keys or ())
        if found.id and not any(one.id for one in mine.values()):
            moved = [file for file, one in notes.items() if one.id == found.id and one.place != place and not _is_there(one)]
            mine |= {file: notes[file] for file in moved}
        fresh = Tenant(place, found.id, tuple(sorted(held)))
        if list(mine.values()) != [fresh]:
            self._put(self._new(), fresh)
            for file in mine:
                file.unlink(missing_ok=True)

    def _notes(self) -> dict[Path, Tenant]:
        files = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        return {file: _read(file) for file in files if not file.name.startswith(".")}

    def _new(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / uuid4().hex

    def _put(self, file: Path, tenant: Tenant) -> None:
        trees.write_whole(file, msgspec.json.encode(tenant).decode())


def not_lost(name: str, tenants: Iterable[Tenant]) -> StoreError:
    """Why nothing of that name can be forgotten."""
    if any(one.is_called(name) for one in tenants):
        hint = "`forge remove MODEL --repository DIR` gives up what is in it; or move it away first"
        return StoreError("this repository is where it was: what it stands on is in use", where=name, hint=hint)
    names = ", ".join(f"{one.place} ({one.id[:12] or 'no id'})" for one in tenants if one.gone) or "none"
    return StoreError("no repository of that name is out of reach", where=name, hint=f"Out of reach: {names}.")


def standing(place: str) -> Manifest | str:
    """The manifest of the repository at ``place``, or why there is none to be read."""
    file = Path(place) / manifest.NAME
    try:
        return manifest.read(texts.content(file), str(file))
    except texts.Missing:
        if os.path.isdir(place):
            return f"the folder is there and no {manifest.NAME} in it: an empty mount point, or somebody removed it"
        return "there is no such folder"
    except texts.Odd as odd:
        return f"its manifest cannot be read: {odd}"
    except RepositoryError as error:
        return error.what


def _looked_for(tenant: Tenant, now: float) -> Tenant:
    """``tenant`` as it is found to be."""
    found = _DAMAGED if tenant.why == _DAMAGED else standing(tenant.place)
    if isinstance(found, Manifest) and tenant.is_of(found):
        more = (tenant.keys or ()) if _unfinished(tenant.place) else ()
        return Tenant(tenant.place, found.id, tuple(sorted({*found.held, *more})))
    why = "another repository stands there now" if isinstance(found, Manifest) else found
    return replace(tenant, gone=tenant.gone or now, why=why)


def _is_there(tenant: Tenant) -> bool:
    found = standing(tenant.place)
    return isinstance(found, Manifest) and tenant.is_of(found)


def _unfinished(place: str) -> bool:
    return os.path.lexists(os.path.join(place, _UNFINISHED))


def _read(file: Path) -> Tenant:
    """One note."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Tenant)
    except msgspec.MsgspecError:
        return Tenant(str(file), why=_DAMAGED)
