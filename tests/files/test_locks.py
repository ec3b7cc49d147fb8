"""Filesystems that hold nobody back, as a network's that is mounted without locks, are found out; so is a link to itself."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

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
