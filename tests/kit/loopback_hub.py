"""A Hugging Face hub on 127.0.0.1, as strict as the real one where it matters to a download.

It knows revisions, file lists with sizes and digests, resolve with ranges, private and gated repositories; and it can
misbehave: break connections, answer 503, serve bytes that are not those it listed.
"""

import hashlib
import json
import re
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

INFO = re.compile(r"/api/(models/)?(?P<repo>(datasets/)?[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")
ACCESS = re.compile(r"/api/(models/)?(?P<repo>(datasets/)?[^/]+/[^/]+)/auth-check")
RESOLVE = re.compile(r"/(?P<repo>(datasets/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")
Span = tuple[int, int | None]
"""Where a wanted range begins, and its last byte where it has one."""
PLAIN = (".json", ".jsonl", ".txt", ".md", ".jinja")  # what git keeps itself; the rest is in LFS
Files = Mapping[str, bytes]
Query = Mapping[str, list[str]]


@dataclass
class Repository:
    """Commits by id, names of commits, and who may read: anybody, or the bearer of ``token``."""

    commits: dict[str, Files] = field(default_factory=dict[str, Files])
    names: dict[str, str] = field(default_factory=dict[str, str])
    token: str = ""
    gated: bool = False
    about: dict[str, object] = field(default_factory=dict[str, object])
    """What a list tells of it: config, downloads, gated, safetensors."""


@dataclass
class Asked:
    """One request that came in, and the status it got."""

    method: str
    path: str
    status: int
    range: str
    authorization: str


@dataclass
class Answer:
    status: int
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def refusal(status: int, code: str) -> Answer:
    return Answer(status, headers={"X-Error-Code": code, "X-Error-Message": "Access denied"})


class LoopbackHub:
    """``requests`` is what was asked; set ``break_after`` and ``breaks``, ``failures`` or ``swapped`` to misbehave."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Asked] = []
        self.break_after = 0
        """Bytes of a body after which a connection breaks ..."""
        self.breaks = 0
        """... and how many more times it does."""
        self.failures = 0
        """How many more requests are answered with 503."""
        self.swapped: dict[str, bytes] = {}
        """Bytes served for a path in place of those that were listed."""
        self.elsewhere = ""
        """Another host, to which whoever asks for weights is sent."""
        self.echoes = False
        """Whoever asks is refused, with what they have shown."""
        self.endless = 0
        """So many MiB more come of weights than were listed."""

    def commit(self, name: str, files: Files, revision: str = "main", token: str = "", gated: bool = False) -> str:
        """Put files under a new commit that ``revision`` then names; returns the commit.

        The ``name`` of a data set begins with ``datasets/``; neither kind answers at the other's addresses.
        """
        repository = self.repositories.setdefault(name, Repository())
        repository.token, repository.gated = token, gated
        identity = json.dumps([name, len(repository.commits), sorted(files)]).encode()
        commit = hashlib.sha1(identity, usedforsecurity=False).hexdigest()
        repository.commits[commit] = dict(files)
        repository.names[revision] = commit
        return commit

    def answer(self, path: str, authorization: str, span: Span | None) -> Answer:
        if self.failures or self.echoes:
            self.failures -= bool(self.failures)
            return Answer(400 if self.echoes else 503, headers={"X-Error-Message": f"what is {authorization}?"})
        asked = ACCESS.fullmatch(path) or INFO.fullmatch(path) or RESOLVE.fullmatch(path)
        if asked is None or path.startswith("/api/models/datasets/"):
            return Answer(404)
        repository = self.repositories.get(asked["repo"])
        if repository is None or asked.re is ACCESS:
            return self._access(repository, authorization)
        listing = "path" not in asked.groupdict()
        refused = self._access(repository, authorization)
        if refused.status != 200 and not (listing and repository.gated):  # a gated list is public, its bytes are not
            return refused
        revision = asked["revision"] or "main"
        commit = repository.names.get(revision, revision)
        if commit not in repository.commits:
            return refusal(404, "RevisionNotFound")
        files = repository.commits[commit]
        about = listed(asked["repo"], commit, files, repository.gated) if listing else None
        return about or self._file(commit, files, asked["path"], span)

    def listed(self, query: Query) -> Answer:
        """Models whose name has the word, those before that come most, with no more of each than was asked for."""
        if self.failures:
            self.failures -= 1
            return Answer(503)
        if said := self.swapped.get("/api/models"):
            return Answer(200, said)
        word, limit, wanted = query["search"][0], int(query["limit"][0]), query["expand"]
        assert query["sort"] == ["downloads"]
        assert query["pipeline_tag"] == ["text-generation"]
        found = [
            {"id": name, **{key: value for key, value in each.about.items() if key in wanted}}
            for name, each in sorted(self.repositories.items(), key=lambda pair: -int(str(pair[1].about.get("downloads", 0))))
            if word in name and not name.startswith("datasets/")
        ]
        return Answer(200, json.dumps(found[:limit]).encode())

    def _access(self, repository: Repository | None, authorization: str) -> Answer:
        if repository is None:
            return refusal(404 if authorization else 401, "RepoNotFound")
        if not repository.token or authorization == f"Bearer {repository.token}":
            return Answer(200)
        if repository.gated:
            return refusal(403 if authorization else 401, "GatedRepo")
        return refusal(404, "RepoNotFound")

    def _file(self, commit: str, files: Files, path: str, span: Span | None) -> Answer:
        if path not in files:
            return Answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        entry, body = described(path, files[path]), self.swapped.get(path, files[path])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["blobId"]}"', "Accept-Ranges": "bytes"}
        if lfs := entry.get("lfs"):
            assert isinstance(lfs, dict)
            headers |= {"X-Linked-Etag": f'"{lfs["sha256"]}"', "X-Linked-Size": str(len(files[path]))}
            if self.elsewhere:
                return Answer(302, headers={**headers, "Location": f"{self.elsewhere}/{path}"})
        if span is None:
            return Answer(200, body, headers)
        first, last = span[0], min(len(body) - 1 if span[1] is None else span[1], len(body) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        return Answer(206, body[first : last + 1], headers)


def described(path: str, data: bytes) -> dict[str, object]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    entry: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": blob}
    if not path.endswith(PLAIN):
        entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def listed(name: str, commit: str, files: Files, gated: bool) -> Answer:
    siblings = [described(path, data) for path, data in sorted(files.items())]
    identity = name.removeprefix("datasets/")
    kind = {"id": identity} if name != identity else {"id": name, "modelId": name}
    access: dict[str, object] = {"private": False, "gated": "manual" if gated else False}
    info = {**kind, **access, "sha": commit, "tags": [], "siblings": siblings}
    return Answer(200, json.dumps(info).encode())


def handler(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply()

        def do_HEAD(self) -> None:
            self.reply()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name for it
            """Keep quiet."""

        def reply(self) -> None:
            path, stated = unquote(urlsplit(self.path).path), self.headers.get("Range", "")
            wanted = RANGE.fullmatch(stated) if self.command == "GET" else None
            authorization = self.headers.get("Authorization", "")
            span = (int(wanted[1]), int(wanted[2]) if wanted[2] else None) if wanted else None
            searched = path == "/api/models"
            answer = hub.listed(parse_qs(urlsplit(self.path).query)) if searched else hub.answer(path, authorization, span)
            hub.requests.append(Asked(self.command, path, answer.status, stated, authorization))
            self.send_response(answer.status)
            self.close_connection = True  # one request each, so that a hub that is gone is gone
            goes_on = bool(hub.endless) and "X-Linked-Size" in answer.headers
            content = {
                "Connection": "close",
                "Content-Length": str(10**13 if goes_on else len(answer.body)),
                "Content-Type": "application/json",
            }
            for key, value in (content | dict(answer.headers)).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.send(answer.body)
            with suppress(OSError):
                while self.command == "GET" and goes_on and hub.endless:
                    hub.endless -= 1
                    self.wfile.write(bytes(1 << 20))

        def send(self, body: bytes) -> None:
            if hub.breaks and len(body) > hub.break_after:
                hub.breaks -= 1
                body = body[: hub.break_after]
            self.wfile.write(body)

    return Handler


@contextmanager
def loopback_hub() -> Generator[LoopbackHub]:
    """A hub for the length of a ``with``; gone, with its threads, afterwards."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.daemon_threads = True
    hub = LoopbackHub(server.server_port)
    server.RequestHandlerClass = handler(hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
