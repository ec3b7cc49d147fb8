"""An object store as the place of a shared store: S3, GCS, Azure, a folder, or HTTP, by obstore.

``files/<aa>/<blake3>`` are blobs, ``keys/<aa>/<key>`` records, ``used/<aa>/<key>`` when one was last taken. Credentials are
those that each service's own tools find: environment, profile, instance metadata. None is stated here, and none reaches a text.
"""

import os
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from forge.remote.lanes import each
from forge.remote.place import RECORD, Data, RemoteError, Written, sharded

_FILES, _KEYS, _USED = "files", "keys", "used"
_SLOW = 60.0
"""Seconds for one blob, at least: 16 MiB come in that time also where eight share 2 MB/s."""
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
}
"""Variables that name another server than the service's own, by scheme."""
EXTRA = "pip install 'triton-forge[remote]'"


class Objects:
    """One folder of an object store; ``deadline`` is how many seconds an answer may take, ``_SLOW`` or that for a blob."""

    def __init__(self, url: str, deadline: float) -> None:
        try:
            import obstore
        except ImportError as error:
            raise RemoteError("a shared store needs obstore", where=url, hint=EXTRA) from error
        self.name = url
        self._sdk = obstore
        self._deadline = deadline
        self.patience = 2 * max(deadline, _SLOW)
        with self._explained("opened"):
            self._asked = self._store(deadline)
            self._moved = self._store(max(deadline, _SLOW))

    # -- blobs

    def address(self, data: Data, blake3: str) -> str:
        if blake3:
            return blake3
        from blake3 import blake3 as hashed

        return hashed(data).hexdigest()

    def has(self, blob: str) -> bool:
        return self._is_there(sharded(_FILES, blob))

    def put(self, blob: str, data: Data) -> None:
        with self._explained("sent to"):
            self._sdk.put(self._moved, sharded(_FILES, blob), data, use_multipart=False)

    def get(self, blob: str, size: int) -> Data:
        with self._explained("read"):
            return self._got(self._moved, sharded(_FILES, blob), size)

    # -- records

    def has_record(self, key: str) -> bool:
        return self._is_there(sharded(_KEYS, key))

    def record(self, key: str) -> bytes | None:
        try:
            with self._explained("read"):
                return bytes(self._got(self._asked, sharded(_KEYS, key), RECORD))
        except FileNotFoundError:
            return None

    def write(self, key: str, record: bytes, blobs: Mapping[str, int], *, anew: bool) -> bool:  # noqa: ARG002 - a registry names them
        from obstore.exceptions import AlreadyExistsError

        try:
            with self._explained("written to"):
                self._sdk.put(self._asked, sharded(_KEYS, key), record, mode="overwrite" if anew else "create")
        except AlreadyExistsError:
            return False
        return True

    def records(self) -> Iterator[Written]:
        used = {name: at for name, at, _ in self._listed(_USED)}
        for key, at, _ in self._listed(_KEYS):
            yield Written(key, max(at, used.get(key, 0.0)))

    def used(self, key: str) -> None:
        with self._explained("written to"):
            self._sdk.put(self._asked, sharded(_USED, key), b"1")

    def drop(self, keys: Iterable[str]) -> None:
        self._delete([sharded(folder, key) for key in keys for folder in (_KEYS, _USED)])

    def sweep(self, kept: frozenset[str], before: float, *, dry_run: bool) -> int:
        old = [(blob, size) for blob, at, size in self._listed(_FILES) if blob not in kept and at < before]
        if not dry_run:
            self._delete([sharded(_FILES, blob) for blob, _ in old])
        return sum(size for _, size in old)

    # -- inside

    def _got(self, store: Any, path: str, most: int) -> memoryview:
        """What stands there; of more than ``most`` bytes one piece that has more."""
        found = self._sdk.get(store, path)
        if found.meta["size"] <= most:
            return memoryview(found.bytes())
        return memoryview(next(iter(found.stream(min_chunk_size=most + 1))))

    def _store(self, timeout: float) -> Any:
        from obstore.store import from_url

        scheme = urlsplit(self.name).scheme
        if scheme == "file":
            return from_url(self.name, mkdir=True)
        wait = timedelta(seconds=timeout)
        client: Any = {"timeout": wait, "connect_timeout": timedelta(seconds=self._deadline)}
        said = [os.environ.get(name, "") for name in _ENDPOINTS.get(scheme, ())]
        if scheme == "http" or any(endpoint.startswith("http://") for endpoint in said):  # said so, it is meant so
            client["allow_http"] = True
        more: dict[str, Any] = {}
        if scheme == "s3" and not {"AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"} & os.environ.keys() and find_spec("boto3"):
            from obstore.auth.boto3 import Boto3CredentialProvider

            more["credential_provider"] = Boto3CredentialProvider()  # profiles, which obstore does not read itself
        retry: Any = {"max_retries": 1, "retry_timeout": wait}
        return from_url(self.name, client_options=client, retry_config=retry, **more)

    def _is_there(self, path: str) -> bool:
        try:
            with self._explained("read"):
                self._sdk.head(self._asked, path)
        except FileNotFoundError:
            return False
        return True

    def _listed(self, folder: str) -> Iterator[tuple[str, float, int]]:
        """Name, time and size of all that stands in a folder."""
        with self._explained("listed"):
            for page in self._sdk.list(self._moved, prefix=folder):  # pyright: ignore[reportUnknownMemberType]
                for one in page:
                    yield one["path"].rpartition("/")[2], one["last_modified"].timestamp(), one["size"]

    def _delete(self, paths: list[str]) -> None:
        def delete(path: str) -> None:
            with self._explained("removed from"), suppress(FileNotFoundError):
                self._sdk.delete(self._asked, path)

        each(paths, delete, lambda _: None, self.patience)

    @contextmanager
    def _explained(self, what: str) -> Generator[None]:
        """The SDK's errors as RemoteError, but for what is not there and what stands there already."""
        from obstore.exceptions import AlreadyExistsError, BaseError

        try:
            yield
        except (FileNotFoundError, AlreadyExistsError):
            raise
        except (BaseError, OSError, ValueError) as error:
            raise RemoteError(
                f"the shared store cannot be {what}: {_told(error)}", where=self.name, hint=_hint(error)
            ) from None


def _told(error: BaseException) -> str:
    """The first line of what the SDK says, without what a signed address would tell."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return re.sub(r"\?\S*", "", line)[:300].rstrip(" :")


def _hint(error: BaseException) -> str:
    if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError"):
        return "its credentials come from where the service's own tools find them (docs/remote.md)"
    return "docs/remote.md says what a shared store needs"
