"""Filesystems that hold nobody back, as a network's that is mounted without locks, are found out; so is a link to itself."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from forge.errors import RepositoryError, StoreError
from forge.files import locks
from forge.repository import publish
from store_makers import KEY, fill, provenance, store


def granted(_: object, __: int) -> None:
    """To all who ask."""


def refused(_: object, __: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


NETWORKS = pytest.mark.parametrize(("flock", "said"), [(granted, "hold nobody back"), (refused, "no lock can be had")])
Flock = Callable[[object, int], None]


def test_a_disk_of_this_machine_will_do(tmp_path: Path) -> None:
    locks.require(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_filesystem_that_locks_only_writable_files_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: IO[bytes], how: int, real: Callable[[IO[bytes], int], None] = fcntl.flock) -> None:
        if not fcntl.fcntl(file, fcntl.F_GETFL) & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    locks.require(tmp_path)


def test_a_full_disk_is_no_matter_of_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    locks.require(tmp_path)


@NETWORKS
def test_a_store_there_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: Flock, said: str) -> None:
    made = store(tmp_path)
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StoreError, match=said) as caught, made.using((KEY,)):
        made.make(KEY, provenance(), fill)
    assert str(tmp_path) in str(caught.value)


@NETWORKS
def test_nothing_is_published_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: Flock, said: str) -> None:
    def settled() -> bool:
        with publish.quiet(tmp_path / "repository"):
            return True

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RepositoryError, match=said):
        settled()


def test_a_repository_that_is_a_link_to_itself_is_said(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to("models")
    with pytest.raises(RepositoryError, match="symbolic links") as caught:
        publish.require_writable(tmp_path / "models")
    assert "--repository" in caught.value.hint
