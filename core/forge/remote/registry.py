"""A registry of container images as the place of a shared store: blobs by sha256, a record by its key as tag.

A record is the configuration of an image that cannot be run; the blobs are its layers, so that the registry keeps them.
Credentials are Docker's: ``docker login``, and its helpers. A registry has no create-if-absent: of two who write one key at the
same moment the last stays, and either is whole.
"""

import base64
import hashlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast
from urllib.parse import urljoin, urlsplit

import msgspec
import requests
from requests.utils import parse_dict_header  # pyright: ignore[reportUnknownVariableType]

from forge.remote.lanes import each
from forge.remote.place import Data, RemoteError, Written

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_RECORD = "application/vnd.triton-forge.record.v1+json"
_BLOB = "application/vnd.triton-forge.part.v1"
_SLOW = 60.0
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_NO = 404


class _Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    digest: str
    size: int


class _Image(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    schema_version: int = 2
    media_type: str = _MANIFEST
    config: _Descriptor
    layers: tuple[_Descriptor, ...]


class Registry:
    """One repository of a registry, ``oci://host[:port]/name``. On this machine it is spoken to without TLS, as Docker does."""

    def __init__(self, url: str, deadline: float) -> None:
        parts = urlsplit(url)
        if not parts.hostname or not parts.path.strip("/"):
            raise RemoteError("a registry's address is oci://host/name", where=url)
        self.name = url
        self.patience = 2 * max(deadline, _SLOW)
        self._ask, self._move = deadline, max(deadline, _SLOW)
        self._base = f"{'http' if parts.hostname in _LOCAL else 'https'}://{parts.netloc}/v2/{parts.path.strip('/')}"
        self._host = parts.netloc
        self._token = ""

    # -- blobs

    def address(self, data: Data, blake3: str) -> str:  # noqa: ARG002 - OCI's digests are sha256
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

    def has(self, blob: str) -> bool:
        return self._is_there(f"/blobs/{blob}")

    def put(self, blob: str, data: Data) -> None:
        began = self._said("POST", "/blobs/uploads/", self._ask)
        place = urljoin(self._base, began.headers.get("Location", ""))
        if urlsplit(place).netloc != self._host:
            raise RemoteError("it sends uploads to another host", where=self.name)
        joined = "&" if "?" in place else "?"
        self._said("PUT", f"{place}{joined}digest={blob}", self._move, data=data, kind="application/octet-stream")

    def get(self, blob: str, size: int) -> Data:  # noqa: ARG002
        found = self._found("GET", f"/blobs/{blob}", self._move)
        if found is None:
            raise FileNotFoundError(blob)
        return found.content

    # -- records

    def has_record(self, key: str) -> bool:
        return self._is_there(f"/manifests/{key}")

    def record(self, key: str) -> bytes | None:
        found = self._found("GET", f"/manifests/{key}", self._ask)
        if found is None:
            return None
        try:
            digest = msgspec.json.decode(found.content, type=_Image).config.digest
        except msgspec.MsgspecError as error:
            raise RemoteError(f"the tag {key[:12]} is no record: {error}", where=self.name) from error
        stated = self._found("GET", f"/blobs/{digest}", self._move)
        return stated.content if stated is not None else b""

    def write(self, key: str, record: bytes, blobs: Mapping[str, int], *, anew: bool) -> bool:
        if not anew and self.has_record(key):
            return False
        digest = self.address(record, "")
        if not self.has(digest):
            self.put(digest, record)
        layers = tuple(_Descriptor(_BLOB, blob, size) for blob, size in blobs.items())
        image = _Image(config=_Descriptor(_RECORD, digest, len(record)), layers=layers)
        self._said("PUT", f"/manifests/{key}", self._ask, data=msgspec.json.encode(image), kind=_MANIFEST)
        return True

    def records(self) -> Iterator[Written]:
        path = "/tags/list?n=1000"
        while path:
            page = self._found("GET", path, self._ask)
            if page is None:
                return
            for tag in page.json().get("tags") or ():
                yield Written(tag, 0.0)
            path = page.links.get("next", {}).get("url", "")

    def used(self, key: str) -> None:
        """A registry notes nothing of that."""

    def drop(self, keys: Iterable[str]) -> None:
        def remove(key: str) -> None:
            found = self._found("HEAD", f"/manifests/{key}", self._ask)
            if found is not None:
                self._said("DELETE", f"/manifests/{found.headers['Docker-Content-Digest']}", self._ask)

        each(list(keys), remove, lambda _: None, self.patience)

    def sweep(self, kept: frozenset[str], before: float, *, dry_run: bool) -> int:  # noqa: ARG002
        """The registry's own collector removes what no tag names."""
        return 0

    # -- inside

    def _is_there(self, path: str) -> bool:
        return self._found("HEAD", path, self._ask) is not None

    def _found(self, method: str, path: str, timeout: float) -> requests.Response | None:
        answer = self._answer(method, path, timeout)
        if answer.status_code == _NO:
            return None
        return self._fine(answer)

    def _said(self, method: str, path: str, timeout: float, *, data: Data = b"", kind: str = "") -> requests.Response:
        return self._fine(self._answer(method, path, timeout, data, kind))

    def _answer(self, method: str, path: str, timeout: float, data: Data = b"", kind: str = "") -> requests.Response:
        whole = path.startswith(("http", "/v2/"))
        url = urljoin(self._base, path) if whole else self._base + path
        headers = {"Accept": _MANIFEST, **({"Content-Type": kind} if kind else {})}
        with self._explained():
            for attempt in range(2):
                with_token = {**headers, **({"Authorization": self._token} if self._token else {})}
                answer = requests.request(
                    method, url, headers=with_token, data=bytes(data), timeout=timeout, allow_redirects=True
                )
                if answer.status_code != 401 or attempt:
                    return answer
                self._token = self._authorised(answer.headers.get("WWW-Authenticate", ""))
        raise AssertionError("the loop returns")

    def _authorised(self, challenge: str) -> str:
        """What the registry asks for, out of Docker's own credentials: a name and password, or a token for them."""
        from docker.auth import load_config  # pyright: ignore[reportUnknownVariableType]

        stored = load_config()
        known = cast("dict[str, str | None]", stored.resolve_authconfig(self._host) or {})  # pyright: ignore[reportUnknownMemberType]
        who = (known.get("username") or known.get("Username") or "", known.get("password") or known.get("Password") or "")
        scheme, _, words = challenge.partition(" ")
        if scheme.lower() == "basic":
            return f"Basic {base64.b64encode(':'.join(who).encode()).decode()}"
        stated = cast("dict[str, str | None]", parse_dict_header(words))  # type: ignore[no-untyped-call,unused-ignore]
        realm = str(stated.get("realm", ""))
        if not realm.startswith("https://") and urlsplit(realm).hostname not in _LOCAL:
            raise RemoteError("it wants credentials where nothing protects them", where=self.name)
        asked = {name: str(value) for name, value in stated.items() if name in ("service", "scope")}
        answer = requests.get(realm, params=asked, auth=who if who[0] else None, timeout=self._ask)
        found = self._fine(answer).json()
        return f"Bearer {found.get('token') or found.get('access_token')}"

    def _fine(self, answer: requests.Response) -> requests.Response:
        if answer.ok:
            return answer
        hint = "its credentials are Docker's: `docker login`" if answer.status_code in (401, 403) else "docs/remote.md"
        what = f"the registry says {answer.status_code} {answer.reason} to {answer.request.method}"
        raise RemoteError(what, where=self.name, hint=hint)

    @contextmanager
    def _explained(self) -> Generator[None]:
        """The client's errors as RemoteError, without an address that could hold what is secret."""
        try:
            yield
        except requests.RequestException as error:
            late = isinstance(error, requests.Timeout)
            kind = "does not answer in time" if late else f"cannot be reached ({type(error).__name__})"
            raise RemoteError(f"the registry {kind}", where=self.name, hint="docs/remote.md") from None
