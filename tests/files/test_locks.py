"""Locks that hold nobody back, as of a network's filesystem that is mounted without them, are found out before anything is written."""

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
def test_a_repository_there_is_not_published_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: Flock, said: str) -> None:
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RepositoryError, match=said), publish.quiet(tmp_path / "repository"):
        pass
