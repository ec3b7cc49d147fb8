"""A registry of container images as a shared store: Debian's docker-registry, on the loopback."""

import base64
import json
import socket
import time
from pathlib import Path

import pytest

from cloud_servers import LOGIN
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


@pytest.mark.parametrize("password", [LOGIN[1], "wrong"])
def test_a_registry_that_wants_a_login_has_dockers(
    locked_registry: str, there: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    word = base64.b64encode(f"{LOGIN[0]}:{password}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {locked_registry.removeprefix("oci://"): {"auth": word}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    url = f"{locked_registry}/team/{password.replace('*', '-').lower()}"
    shared = Shared(lambda: place(url, 10.0), url, lambda _: None, time.time)
    held = made(tmp_path, size=PART + 1)
    if password == LOGIN[1]:
        assert shared.push(held).sent == PART + 1
        assert shared.pull(KEY, there) is not None
        return
    with pytest.raises(RemoteError, match="says 401") as error:
        shared.push(held)
    assert "docker login" in error.value.hint
    assert word not in str(error.value)


def test_a_registry_that_is_away_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(RemoteError, match="does not answer in time"):
        place(f"oci://127.0.0.1:{silent.getsockname()[1]}/name", 0.3).has_record(KEY)
