"""Enough of a registry on 127.0.0.1 to pull one small image from (OCI distribution, pull only).

A daemon speaks plain HTTP to the loopback. ``broken`` serves a layer of other bytes; ``closed`` asks for a login.
"""

import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from secrets import token_bytes

DOCKER = "application/vnd.docker"


@dataclass(frozen=True)
class Registry:
    """``reference`` can be pulled from it; ``digest`` is what the registry calls that image."""

    reference: str
    digest: str


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _image() -> tuple[bytes, dict[str, bytes]]:
    """A manifest and its blobs by digest: one layer with one file that no other image has."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        about = tarfile.TarInfo("weights")
        about.size = 2_000_000
        archive.addfile(about, io.BytesIO(token_bytes(about.size)))
    layer = gzip.compress(plain.getvalue(), 1)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/weights"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(plain.getvalue())]},
        }
    ).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{DOCKER}.distribution.manifest.v2+json",
        "config": {"mediaType": f"{DOCKER}.container.image.v1+json", "size": len(config), "digest": _digest(config)},
        "layers": [{"mediaType": f"{DOCKER}.image.rootfs.diff.tar.gzip", "size": len(layer), "digest": _digest(layer)}],
    }
    return json.dumps(manifest).encode(), {_digest(config): config, _digest(layer): layer}


JSON, BYTES, MANIFEST = "application/json", "application/octet-stream", f"{DOCKER}.distribution.manifest.v2+json"
Answer = tuple[int, bytes, str]
"""Status, body, media type."""


def _error(status: int, code: str) -> Answer:
    return status, json.dumps({"errors": [{"code": code, "message": code.lower().replace("_", " ")}]}).encode(), JSON


def _answers(broken: bool) -> tuple[str, dict[str, Answer]]:
    """The manifest's digest, and what is asked for by the end of a path -> what is answered."""
    manifest, blobs = _image()
    if broken:
        blobs = {digest: data[:-9] + bytes(9) if len(data) > 10_000 else data for digest, data in blobs.items()}
    held = (200, manifest, MANIFEST)
    return _digest(manifest), {
        "/v2/": (200, b"{}", JSON),
        "/manifests/1": held,
        f"/manifests/{_digest(manifest)}": held,
        **{f"/blobs/{digest}": (200, data, BYTES) for digest, data in blobs.items()},
    }


@contextmanager
def registry(*, broken: bool = False, closed: bool = False) -> Generator[Registry]:
    """Serve one image for as long as the context lasts."""
    digest, answers = _answers(broken)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = next(
                (answer for end, answer in answers.items() if self.path.endswith(end)), _error(404, "MANIFEST_UNKNOWN")
            )
            status, data, kind = _error(401, "UNAUTHORIZED") if closed else found
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Docker-Content-Digest", _digest(data))
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            if closed:
                self.send_header("WWW-Authenticate", 'Basic realm="forge"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET  # noqa: N815  (the name is the library's)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name is the library's)
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield Registry(f"127.0.0.1:{server.server_port}/nvidia/tiny:1", digest)
        finally:
            server.shutdown()
            thread.join()
