"""Who holds the addresses of a server: claimed by one forge at a time before it starts, and its own once it listens."""

import errno
import http.client
import ipaddress
import socket
import struct
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from forge.client.grpc import Client
from forge.errors import InferenceError, ServerError, Trouble
from forge.machine import processes
from forge.schema.values import Ports
from forge.serve.ready import EVERYWHERE, asked, at, reached
from forge.serve.server_types import Running, stop_line

_SECONDS, _GLANCE = 5.0, 1.0
_PATIENCE = 30.0
_SERVERS = ("http", "grpc", "metrics")
_OWN = "--host takes one of this machine's addresses (`hostname -I` lists them), or 0.0.0.0 (:: of IPv6) for all"


class _Said(Struct):
    """``GET /v2``, as far as forge reads it."""

    name: str = ""


def named(ports: Ports) -> dict[str, int]:
    """The ports of a server by the word of their option."""
    usual = {"http": ports.http, "grpc": ports.grpc, "metrics": ports.metrics}
    return {**usual, **({"openai": ports.openai} if ports.openai else {})}


def addressed(ports: Ports) -> Ports:
    """``ports`` at the address of their host, rather of IPv4: Triton's HTTP makes 255.255.255.255 of a name. ServerError for a
    host that has none."""
    host = ports.host.removeprefix("[").removesuffix("]")
    try:
        found = sorted((family, str(place[0])) for family, *_, place in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as error:
        what = f"no address is known of this host: {getattr(error, 'strerror', '') or error}"
        raise ServerError(what, where=ports.host, hint=_OWN) from None
    if "%" in host:
        raise ServerError("Triton takes no address with a scope (%)", where=ports.host, hint=_OWN)
    address = ipaddress.ip_address(found[0][1])
    if address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        raise ServerError("this is the address of many machines: no server can listen at it", where=ports.host, hint=_OWN)
    return replace(ports, host=str(getattr(address, "ipv4_mapped", None) or address))


def require_apart(ports: Ports) -> None:
    """ServerError for one port that is asked for twice."""
    wanted = named(ports)
    for port in wanted.values():
        if list(wanted.values()).count(port) > 1:
            raise ServerError(f"port {port} is asked for twice", hint=f"{', '.join(wanted)} each need their own")


@contextmanager
def claimed(ports: Ports) -> Generator[None]:
    """Held while a server starts; ServerError where another forge of this machine is starting one at the same port.

    A claim is a Unix socket with an abstract name: every user and every home of a network namespace sees the same ones, as it
    is with the ports, and one whose holder dies is gone.
    """
    with ExitStack() as stack:
        for name, port in named(ports).items():
            claim = stack.enter_context(socket.socket(socket.AF_UNIX))
            address = f"\0forge-port-{port}"
            try:
                claim.bind(address)
                claim.listen(1)
            except OSError as error:
                raise ServerError(
                    f"another forge{_claimant(address)} is starting a server at port {port} just now",
                    where=ports.at(port),
                    hint=f"wait for it, or choose another with --{name}-port",
                ) from error
        yield


def require_free(ports: Ports, living: Sequence[Running]) -> None:
    """ServerError where somebody has one of the ports; ``living`` are forge's own servers."""
    for name, port in named(ports).items():
        # A server that is being started again has them, though nobody listens.
        awaited = any(
            each.vigil and _meet(each.ports.host, ports.host) and port in named(each.ports).values() for each in living
        )
        if error := OSError(errno.EADDRINUSE, "") if awaited else processes.refusal(ports.host, port):
            what, hint = _refused(error, port, living)
            raise ServerError(what, where=ports.at(port), hint=hint.format(name=name))


def _refused(error: OSError, port: int, living: Sequence[Running] = ()) -> tuple[str, str]:
    """Why a server cannot listen at a port, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken{holder(port, living)}", "free it, or choose another with --{name}-port"
    if error.errno == errno.EACCES:
        return f"this user may not listen at port {port}", "choose one above 1023 with --{name}-port"
    what = "this machine has no such address" if error.errno == errno.EADDRNOTAVAIL else f"{error.strerror or error}"
    return what, _OWN


def _meet(one: str, other: str) -> bool:
    """Whether what listens at one host keeps another from listening at the other."""
    return one == other or not {"localhost", *EVERYWHERE}.isdisjoint((one, other))


def holder(port: int, living: Sequence[Running] = ()) -> str:
    """Who has a port, in words that follow "taken"; empty where nobody can say."""
    for other in living:
        if port in named(other.ports).values():
            return f" by forge's own server on {other.repository} ({called(other)}; `{stop_line(other.repository)}` ends it)"
    pid = processes.listener(port)
    return f" by process {pid} ({processes.program(pid)})" if pid else ""


def require_own(running: Running) -> None:
    """ServerError where what answers at a server's addresses is not that server.

    Of a process, the kernel says who listens. Of a container, and beside that, the server's id does.
    """
    if not running.nonce:  # started by a forge that drew none
        return
    if stranger := _stranger(running, _SERVERS if not running.container else ()):
        raise _not_own(running, *stranger)
    if (told := _identity(running.ports, _SECONDS)) is None:
        what = f"the server does not answer at its http port {running.ports.http}: it is starting, or hangs"
        raise ServerError(
            what,
            where=running.repository,
            hint=f"try again; `forge logs` says how far it is, `{stop_line(running.repository)}` ends it",
        )
    if told != running.nonce:
        raise _not_own(running, "http", running.ports.http, _who(told))
    if running.container:  # of its other two ports the kernel says nothing for sure: Docker listens there, or nobody at all
        if (heard := _grpc_identity(running.ports)) not in (None, running.nonce):
            raise _not_own(running, "grpc", running.ports.grpc, _who(heard or ""))
        if not _counts(running):
            raise _not_own(running, "metrics", running.ports.metrics, "what is counted there is not this server's models")


def require_own_front(running: Running) -> None:
    """The same for OpenAI's API, which is always a process of this machine."""
    if stranger := _stranger(running, ("openai",)):
        raise _not_own(running, *stranger)


def imposter(running: Running) -> str:
    """Who answers at an address of a server in its place, as a sentence; empty where that is not sure, or nobody does.

    It costs little: of a process only the kernel is asked, and a container that does not answer is not waited for.
    """
    if not running.nonce:
        return ""
    if running.container:
        told = _identity(running.ports, _GLANCE)
        return (
            _sentence("http", running.ports.http, f"it calls itself {told!r}") if told not in (None, "", running.nonce) else ""
        )
    ports = named(running.ports)
    if all(processes.listens((running.pid,), ports[name]) for name in _SERVERS):
        return ""
    found = _stranger(running, _SERVERS)
    return _sentence(*found) if found else ""


def strangers(running: Running) -> str:
    """Who holds a port that a server of this machine was to have, as a sentence; empty where nobody else does."""
    found = _stranger(running, tuple(named(running.ports)) if not running.container else ())
    return f"port {found[1]} is taken{holder(found[1])}" if found else ""


def not_free(ports: Ports) -> str:
    """Why a server that has ended could not listen, as a sentence; empty where all of its ports are free."""
    refusals = ((port, processes.refusal(ports.host, port)) for port in named(ports).values())
    return next((_refused(error, port)[0] for port, error in refusals if error), "")


def _stranger(running: Running, names: Sequence[str]) -> tuple[str, int, str] | None:
    """(name, port, who) of the first address where somebody else listens, as far as the kernel lets us see."""
    wanted = {name: port for name, port in named(running.ports).items() if name in names}
    own = set(processes.marked(running.shared_memory)) if wanted else set[int]()
    for name, port in wanted.items():
        if processes.listens(own, port):
            continue
        pids = processes.listeners(port)
        if pids is not None and own.isdisjoint(pids):
            return name, port, holder(port).removeprefix(" by ") or "a process that another user started"
    return None


def _not_own(running: Running, name: str, port: int, who: str) -> ServerError:
    return ServerError(
        _sentence(name, port, who),
        where=running.repository,
        hint=f"free the port, or `{stop_line(running.repository)}`, and serve it at another: `forge serve --{name}-port PORT`",
    )


def _sentence(name: str, port: int, who: str) -> str:
    return f"the {name} port {port} is answered by another program and not by the server on this repository ({who})"


def _identity(ports: Ports, patience: float) -> str | None:
    """The id of the server that answers over HTTP, empty where it says none; None where nobody answers in time."""
    try:
        return msgspec.json.decode(asked(reached(ports, ports.http), "/v2", patience)[1], type=_Said).name
    except OSError:
        return None
    except (http.client.HTTPException, msgspec.MsgspecError):
        return ""


def _grpc_identity(ports: Ports) -> str | None:
    """The id of the server that answers over gRPC; None where none answers in time."""
    with Client(reached(ports, ports.grpc)) as client:
        try:
            return client.server().name
        except InferenceError as error:
            return None if error.trouble is Trouble.LATE else ""


def _counts(running: Running) -> bool:
    """Whether the metrics are of this server's models; where nothing answers, or not in time, that is nobody else's."""
    try:
        _, said = asked(at(running, running.ports.metrics), "/metrics", _PATIENCE)
    except OSError:
        return True
    except http.client.HTTPException:
        return False
    return any(f'model="{model}"'.encode() in said for model in running.models)


def _who(told: str) -> str:
    return f"it calls itself {told!r}" if told else "it does not say who it is"


def _claimant(address: str) -> str:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as trial:
        trial.settimeout(1.0)
        trial.connect(address)
        pid, _, _ = struct.unpack("3i", trial.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        return f" (process {pid})"
    return ""


def called(running: Running) -> str:
    if running.container:
        return f"container {running.container}"
    return f"process {running.pid}" if running.pid else "it died, and is being started again"
