"""A registry of container images as a shared store: Debian's docker-registry, on the loopback."""

import socket
import time
from pathlib import Path

import pytest

from forge.remote.open import place
from forge.remote.place import PART, RemoteError
from forge.remote.shared import Shared
from forge.store.store import Artifact, Store
from remote_kit import ENGINE_MADE, fill, large
from store_makers import KEY


@pytest.fixture
def shared(registry: str, tmp_path: Path) -> Shared:
    url = f"{registry}/team/{tmp_path.name.replace('_', '-')}"
    return Shared(lambda: place(url, 10.0), url, lambda _: None, time.time)


@pytest.fixture
def there(tmp_path: Path) -> Store:
    return Store(tmp_path / "there", clock=time.time)


def made(tmp_path: Path, *, size: int = 0) -> Artifact:
    return Store(tmp_path / "here", clock=time.time).make(KEY, ENGINE_MADE, large(size) if size else fill)[0]


def test_an_artifact_comes_back_from_a_registry_unchanged(shared: Shared, there: Store, tmp_path: Path) -> None:
    assert shared.records() == ()
    held = made(tmp_path)
    assert shared.push(held).sent > 0
    assert shared.push(held).there
    taken = shared.pull(KEY, there)
    assert taken is not None
    assert (taken.manifest, taken.files(), there.verify()) == (held.manifest, held.files(), ())
    assert [one.key for one in shared.records()] == [KEY]


def test_a_large_file_is_several_layers_each_sent_once(shared: Shared, there: Store, tmp_path: Path) -> None:
    held = made(tmp_path, size=PART + 1)
    assert shared.push(held).sent == PART + 1
    shared.place.drop([KEY])
    assert shared.pull(KEY, there) is None
    assert shared.push(held).sent == 0
    assert shared.pull(KEY, there) is not None


def test_a_registry_that_is_away_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(RemoteError, match="does not answer in time"):
        place(f"oci://127.0.0.1:{silent.getsockname()[1]}/name", 0.3).has_record(KEY)
