"""The way to a Docker daemon: connections, and its many ways to fail turned into forge's errors.

The SDK costs 0.1 s to import and answers without types: it is imported where a connection is made, ``Api`` names the calls that
forge makes of it, and answers become Structs beside their use.
"""

import shutil
import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol, TypeVar, cast

import msgspec
from msgspec import Struct

from forge.diagnoses import diagnose, named
from forge.errors import ForgeError, HostError, Problem, StepError
from forge.machine.containers import DaemonFacts

T = TypeVar("T")
Frame = tuple[bytes | None, bytes | None]
"""A piece of (standard output, standard error)."""

_SOCKET = Path("/var/run/docker.sock")
_DRIVER = Path("/proc/driver/nvidia/version")
_WSL = Path("/dev/dxg")  # how Windows gives its GPU to Linux, without a driver in /proc
PATIENCE = 600  # seconds for one answer: a storage driver that copies needs minutes to make a container of a 20 GB image
_GONE = (
    "the daemon stopped answering; look at its log (`journalctl -u docker`), start it, and build again: finished steps are kept"
)


class Stream(Protocol):
    """What an attached container says, until nobody holds its output any more."""

    def __iter__(self) -> Iterator[Frame]: ...
    def close(self) -> None: ...


class Raw(Protocol):
    """An answer that is no JSON (requests' Response)."""

    @property
    def ok(self) -> bool: ...
    @property
    def text(self) -> str: ...
    def iter_content(self, chunk_size: int) -> Iterator[bytes]: ...
    def close(self) -> None: ...


class Api(Protocol):
    """docker.APIClient; an answer is what JSON holds."""

    base_url: str
    api_version: str

    def get(self, url: str, /, *, params: Mapping[str, list[str]], stream: bool, timeout: float) -> Raw: ...
    def load_image(self, data: Iterator[bytes], /) -> Generator[Mapping[str, object]]: ...
    def close(self) -> None: ...
    def info(self) -> object: ...
    def networks(self, names: list[str]) -> list[object]: ...
    def inspect_image(self, image: str, /) -> object: ...
    def images(self, *, filters: Mapping[str, str]) -> object: ...
    def tag(self, image: str, repository: str, tag: str, /) -> object: ...
    def remove_image(self, image: str, /) -> object: ...
    def pull(self, repository: str, tag: str, *, stream: bool, decode: bool) -> Generator[object]: ...
    def build(  # noqa: PLR0913  # the SDK's
        self,
        *,
        fileobj: IO[bytes],
        tag: str,
        labels: Mapping[str, str],
        network_mode: str | None,
        rm: bool,
        forcerm: bool,
        decode: bool,
    ) -> Generator[object]: ...
    def create_container_from_config(self, config: Mapping[str, object], name: str) -> Mapping[str, str]: ...
    def attach(self, container: str, /, *, stream: bool, demux: bool) -> Stream: ...
    def start(self, container: str, /) -> None: ...
    def wait(self, container: str, /) -> Mapping[str, object]: ...
    def inspect_container(self, container: str, /) -> object: ...
    def kill(self, container: str, /, signal: str = ...) -> None: ...
    def remove_container(self, container: str, /, *, v: bool, force: bool) -> None: ...
    def containers(self, *, all: bool, filters: Mapping[str, object]) -> object: ...  # noqa: A002  # the SDK's name
    def get_archive(self, container: str, path: str, /) -> tuple[Generator[bytes], Mapping[str, object]]: ...


class _Device(Struct, rename={"id": "ID"}):
    """A device that a recent daemon knows by the Container Device Interface."""

    id: str = ""


class _Info(Struct, rename="pascal"):
    """GET /info, as far as forge reads it."""

    server_version: str = ""
    docker_root_dir: str = ""
    mem_total: int = 0
    runtimes: dict[str, object] | None = None
    security_options: list[str] | None = None
    discovered_devices: list[_Device] | None = None


class Daemon:
    """One Docker daemon, by the environment that its own command line goes by (DOCKER_HOST and its kin)."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = dict(environ)
        rootless = Path(environ.get("XDG_RUNTIME_DIR", "/nonexistent")) / "docker.sock"
        if "DOCKER_HOST" not in environ and not _SOCKET.exists() and rootless.exists():
            self._environ["DOCKER_HOST"] = f"unix://{rootless}"
        self.address = self._environ.get("DOCKER_HOST", f"unix://{_SOCKET}")
        self._version: str | None = None  # of the API; agreed upon once, for each new connection would ask again

    @contextmanager
    def connected(self) -> Generator[Api]:
        """A connection, closed afterwards; HostError when nobody answers or this user may not ask."""
        self._reach()
        import docker

        with ours("answer", self.address):
            made = docker.DockerClient.from_env(environment=self._environ, version=self._version, timeout=PATIENCE).api
            self._version = made.api_version
            api = cast("Api", made)
        try:
            yield api
        finally:
            api.close()

    def _reach(self) -> None:
        """Knock first, where the daemon is on this machine: what is wrong is plainer here than in the SDK's words."""
        if not self.is_here():
            return
        try:
            with socket.socket(socket.AF_UNIX) as trial:
                trial.connect(self.address.removeprefix("unix://"))
        except OSError as error:
            row = named("docker-not-allowed" if isinstance(error, PermissionError) else "docker-not-running")
            raise HostError(f"{row.meaning} ({error.strerror or error})", where=self.address, hint=row.fix) from error

    def facts(self) -> DaemonFacts:
        """What the daemon says of itself and, where it runs on this machine, of its disk."""
        with self.connected() as api, ours("say what it is", self.address):
            info = msgspec.convert(api.info(), _Info)
        root = Path(info.docker_root_dir)
        devices = [device.id for device in info.discovered_devices or ()]
        return DaemonFacts(
            version=info.server_version,
            storage=info.docker_root_dir,
            free=shutil.disk_usage(root).free if self.is_here() and root.is_dir() else 0,
            memory=info.mem_total,
            nvidia="nvidia" in (info.runtimes or {})
            or any(device.startswith("nvidia.com/gpu") for device in devices)
            # A daemon that finds this hook gives GPUs without a runtime of the name.
            or (self.is_here() and bool(shutil.which("nvidia-container-runtime-hook", path=self._environ.get("PATH")))),
            rootless=any("rootless" in option for option in info.security_options or ()),
        )

    def check(self, gpus: bool) -> tuple[Problem, ...]:
        """What keeps containers, or with ``gpus`` GPUs in containers, from working here."""
        try:
            facts = self.facts()
        except HostError as error:
            return (Problem(self.address, error.what, error.hint),)
        found: list[Problem] = []
        if gpus and not facts.nvidia:
            row = named("no-nvidia-runtime")
            found.append(Problem(f"Docker {facts.version}", row.meaning, row.fix))
        if gpus and self.is_here() and not _DRIVER.exists() and not _WSL.exists():
            row = named("no-gpu-in-container")
            found.append(Problem(str(_DRIVER), "no NVIDIA driver is loaded on this machine", row.fix))
        return tuple(found)

    def is_here(self) -> bool:
        """Whether it is this machine's."""
        return self.address.startswith("unix:")


def network(api: Api) -> str:
    """The network of a container that has one: the host's where the daemon keeps no bridge of its own."""
    with ours("list its networks"):
        return "bridge" if api.networks(names=["bridge"]) else "host"


@contextmanager
def ours(doing: str, where: str = "") -> Generator[None]:
    """Turn what the SDK and its transport raise into HostError or StepError; ``doing`` is what Docker was asked to do."""
    import docker.errors
    import requests
    import urllib3.exceptions

    # APIError is a RequestException too, so it comes first. A raw ConnectionError is the hijacked stream's.
    try:
        yield
    except docker.errors.APIError as error:
        raise fault(doing, str(error.explanation or error), where) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
        raise HostError(f"Docker went away when it was to {doing}: {error}", where=where, hint=_GONE) from error
    except docker.errors.DockerException as error:
        raise fault(doing, str(error), where) from error


def each(stream: Iterator[T], doing: str) -> Iterator[T]:
    """``stream``, its failures ours; what the caller does with each item stays the caller's."""
    nothing = object()
    while True:
        with ours(doing):
            item = next(stream, nothing)
        if item is nothing:
            return
        yield cast("T", item)


def fault(doing: str, text: str, where: str = "") -> ForgeError:
    """What Docker answered, as the error that it means: the machine's, but for what the table knows to be the step's."""
    known = diagnose(text)
    kind = StepError if known is not None and not known.host else HostError
    hint = str(known) if known else "the daemon's own log says more (`journalctl -u docker`)"
    return kind(f"Docker could not {doing}: {text.strip()}", where=where, hint=hint)
