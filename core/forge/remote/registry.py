"""A registry of container images as the place of a shared store: blobs by sha256, a record by its key as tag.

A record is the configuration of an image that cannot be run; the blobs are its layers, so that the registry keeps them.
Credentials are Docker's: ``docker login``, and its helpers. A registry has no create-if-absent: of two who write one key at the
same moment the last stays, and either is whole.
"""

import base64
import hashlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast
from urllib.parse import urljoin, urlsplit

import msgspec
import requests
import urllib3.exceptions
from requests.utils import parse_dict_header  # pyright: ignore[reportUnknownVariableType]

from forge.remote.lanes import each
from forge.remote.place import RECORD, Data, RemoteError, Written

T = TypeVar("T")

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_RECORD = "application/vnd.triton-forge.record.v1+json"
_BLOB = "application/vnd.triton-forge.part.v1"
_SLOW = 60.0
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_NO = 404
_SMALL = 16 << 20
"""Bytes of a manifest, a page of tags or a token at most."""
_PIECE = 1 << 20
_HOPS = 5
"""Addresses that lead to an answer at most."""


class _Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    digest: str
    size: int


class _Image(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    schema_version: int = 2
    media_type: str = _MANIFEST
    config: _Descriptor
    layers: tuple[_Descriptor, ...]


class _Tags(msgspec.Struct, frozen=True):
    tags: tuple[str, ...] | None = None


class _Granted(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


class _Answer(msgspec.Struct, frozen=True):
    """What came; of its body no more than one byte beyond what was wanted at most."""

    told: requests.Response
    body: bytes


class _Session(requests.Session):
    """Follows no redirect by itself: it would read the whole body of each."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 - requests' own
        return None


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
        began = self._said("POST", "/blobs/uploads/", self._ask).told
        with self._explained():
            place = urljoin(self._base, began.headers.get("Location", ""))
        joined = "&" if "?" in place else "?"
        self._said("PUT", f"{place}{joined}digest={blob}", self._move, data=data, kind="application/octet-stream")

    def get(self, blob: str, size: int) -> Data:
        found = self._found("GET", f"/blobs/{blob}", self._move, size)
        if found is None:
            raise FileNotFoundError(blob)
        return found.body

    # -- records

    def has_record(self, key: str) -> bool:
        return self._is_there(f"/manifests/{key}")

    def record(self, key: str) -> bytes | None:
        found = self._found("GET", f"/manifests/{key}", self._ask)
        if found is None:
            return None
        digest = self._read(found, _Image, f"the tag {key[:12]} is no record").config.digest
        stated = self._found("GET", f"/blobs/{digest}", self._move, RECORD)
        return stated.body if stated is not None else b""

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
            for tag in self._read(page, _Tags, "its list of tags cannot be read").tags or ():
                yield Written(tag, 0.0)
            path = page.told.links.get("next", {}).get("url", "")

    def used(self, key: str) -> None:
        """A registry notes nothing of that."""

    def drop(self, keys: Iterable[str]) -> None:
        def remove(key: str) -> None:
            found = self._found("HEAD", f"/manifests/{key}", self._ask)
            if found is not None:
                self._said("DELETE", f"/manifests/{found.told.headers.get('Docker-Content-Digest')}", self._ask)

        each(list(keys), remove, lambda _: None, self.patience)

    def sweep(self, kept: frozenset[str], before: float, *, dry_run: bool) -> int:  # noqa: ARG002
        """The registry's own collector removes what no tag names."""
        return 0

    # -- inside

    def _is_there(self, path: str) -> bool:
        return self._found("HEAD", path, self._ask) is not None

    def _found(self, method: str, path: str, timeout: float, most: int = _SMALL) -> _Answer | None:
        answer = self._answer(method, path, timeout, most=most)
        if answer.told.status_code == _NO:
            return None
        return self._fine(answer)

    def _said(self, method: str, path: str, timeout: float, *, data: Data = b"", kind: str = "") -> _Answer:
        return self._fine(self._answer(method, path, timeout, data, kind))

    def _answer(
        self, method: str, path: str, timeout: float, data: Data = b"", kind: str = "", *, most: int = _SMALL
    ) -> _Answer:
        headers = {"Accept": _MANIFEST, "Accept-Encoding": "identity", **({"Content-Type": kind} if kind else {})}
        with self._explained():
            url = urljoin(self._base, path) if path.startswith(("http", "/v2/")) else self._base + path
            for attempt in range(2):
                answer = self._followed(requests.Request(method, url, headers, data=bytes(data)), timeout, most)
                if answer.told.status_code != 401 or attempt or not self._is_own(answer.told.url):
                    return answer
                self._token = self._authorised(answer.told.headers.get("WWW-Authenticate", ""))
        raise AssertionError("the loop returns")

    def _followed(self, asked: requests.Request, timeout: float, most: int) -> _Answer:
        """The answer behind redirects. Blobs may lie with another host: it is told no credentials, and given nothing."""
        for _ in range(_HOPS):
            url, own = str(asked.url), self._is_own(str(asked.url))
            scheme, host = urlsplit(url)[:2]
            if not own and asked.method not in ("GET", "HEAD"):
                raise RemoteError(f"it sends uploads to another host ({scheme}://{host})", where=self.name)
            if scheme not in ("https", urlsplit(self._base).scheme):
                raise RemoteError(f"it leads to {scheme}:, where nothing is fetched from", where=self.name)
            headers = {**asked.headers, **({"Authorization": self._token} if own and self._token else {})}
            words: dict[str, Any] = {"headers": headers, "data": asked.data, "timeout": timeout}
            with _Session() as session, session.request(str(asked.method), url, stream=True, **words) as answer:
                if not answer.is_redirect:
                    return _Answer(answer, _body(answer, most))
                asked.url = urljoin(url, answer.headers["Location"])
        raise RemoteError("it leads from one address to the next without an end", where=self.name)

    def _is_own(self, url: str) -> bool:
        return urlsplit(url)[:2] == urlsplit(self._base)[:2]

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
        here = self._base.startswith("http://") and urlsplit(realm).hostname in _LOCAL
        if not (here or realm.startswith("https://")):
            raise RemoteError("it wants credentials where nothing protects them", where=self.name)
        asked = {name: str(value) for name, value in stated.items() if name in ("service", "scope")}
        how: dict[str, Any] = {"params": asked, "auth": who if who[0] else None, "timeout": self._ask}
        with _Session() as session, session.get(realm, stream=True, **how) as answer:
            found = self._read(self._fine(_Answer(answer, _body(answer, _SMALL))), _Granted, "it grants nothing")
        return f"Bearer {found.token or found.access_token}"

    def _fine(self, answer: _Answer) -> _Answer:
        if (told := answer.told).ok:
            return answer
        hint = "its credentials are Docker's: `docker login`" if told.status_code in (401, 403) else "docs/remote.md"
        what = f"the registry says {told.status_code} {told.reason} to {told.request.method}"
        raise RemoteError(what, where=self.name, hint=hint)

    def _read(self, answer: _Answer, kind: type[T], otherwise: str) -> T:
        """What an answer states; RemoteError that says ``otherwise`` where it does not."""
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise RemoteError(f"{otherwise}: {error}", where=self.name) from error

    @contextmanager
    def _explained(self) -> Generator[None]:
        """The client's errors as RemoteError, without an address that could hold what is secret."""
        try:
            yield
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:  # ValueError: no address at all
            late = isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError)
            kind = "does not answer in time" if late else f"cannot be reached ({type(error).__name__})"
            raise RemoteError(f"the registry {kind}", where=self.name, hint="docs/remote.md") from None


def _body(answer: requests.Response, most: int) -> bytes:
    """Its bytes as they come, and no more than one beyond ``most``: what is compressed stays so."""
    held = bytearray()
    while len(held) <= most and (piece := answer.raw.read(min(_PIECE, most + 1 - len(held)), decode_content=False)):
        held += piece
    return bytes(held)
