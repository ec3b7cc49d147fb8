"""Waits until a Triton that was just started has every model ready, and says which has not and why."""

import http.client
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from msgspec.structs import replace

from forge.errors import HostError, ServerError
from forge.machine import processes, stillness
from forge.schema.values import Ports
from forge.serve import log as triton_log
from forge.serve.server_types import Launch, Running, Way

_DEAD = 30.0
"""Seconds after which a process of Triton's that has ended, and that it has not looked at, is taken for killed: one that is
killed at the wrong instant of its start Triton awaits for ever. And after which a Triton that has caught a fault hangs."""
_LOOK = 1.0
"""Seconds between two looks for such: all processes of this machine are looked through, and Triton wants its processors."""
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # asked for by the caller
_MOST, _PIECE = 64 << 20, 1 << 16
"""Bytes of an answer, and of what is read of it at a time: the metrics of a thousand models are a few million."""
_BLS_PORT, _BLS_ASKS, _BLS_CALL = 8001, "localhost:8001", "load_model_configs"
"""Where NVIDIA's bls of TensorRT-LLM 1.2 asks for a model's config, and the call that does so in each request."""
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1", *EVERYWHERE})


def await_models(way: Way, running: Running, patience: float, line: Callable[[str], None]) -> None:
    """Return when every model of a server that is starting is ready; ServerError when it ended, or ``patience`` seconds did."""
    deadline = time.monotonic() + patience
    missing, looked, dead, fault = list(running.models), 0.0, dict[str, float](), ""
    with Path(running.log).open(encoding="utf-8", errors="replace") as log:
        while missing:
            alive = way.alive(running)
            for text in log:
                line(text.rstrip("\n"))
                fault = triton_log.fault(text) or fault
            if not alive:
                raise _not_loaded(running, missing, way.ended(running))
            processes.close_off(running.shared_memory)
            missing = [model for model in missing if not answers(running.ports, model)]
            now = time.monotonic()
            if now - looked > _LOOK:
                # A container's processes may be another machine's.
                ended = () if running.container else processes.unreaped(running.pid)
                hung = stillness.faults(running.pid) if fault and running.started else {}
                looked, dead = now, {each: dead.get(each, now) for each in (*map(str, ended), *hung)}
            if missing and (over := next((each for each, since in dead.items() if now - since > _DEAD), "")):
                killed = "a process of it was killed while it loaded a model"
                raise _not_loaded(running, missing, killed if over.isdigit() else f"{fault}, and it hung instead of ending")
            if missing and now > deadline:
                raise _not_loaded(running, missing, f"{patience:g} s were not enough")
            time.sleep(way.pause if missing else 0)


def require_models(launch: Launch) -> None:
    """ServerError for a model that is not in the repository."""
    for model in launch.models:
        if _home(launch, model) is None:
            raise ServerError(
                f"there is no model {model!r} in the repository",
                where=", ".join(map(str, launch.repositories)),
                hint="build it again: `forge build RECIPE`",
            )


def require_gpus(launch: Launch, seen: Callable[[], int]) -> None:
    """HostError for a model in more parts than there are GPUs; ``seen`` counts those, 0 where nobody knows."""
    parts = max(launch.world, launch.ranks)
    if parts == 1 or not launch.gpus:
        return
    count = seen() if launch.gpus == "all" else len(set(launch.gpus.split(",")))
    if 0 < count < parts:
        whose = "are here" if launch.gpus == "all" else f"are what it may use ({launch.gpus})"
        what = f"a model in {parts} parts (tp x pp) needs as many GPUs, and {count} {whose}"
        hint = "serve it where there are more, or build it with a smaller convert.tp or convert.pp"
        raise HostError(what, where=str(launch.repository), hint=hint)


def require_address(launch: Launch, inside: Ports, line: Callable[[str], None]) -> None:
    """TensorRT-LLM 1.2's bls asks its own server's gRPC at a fixed address, which has to listen there; ``inside`` is where it
    does.

    ServerError where every request to one would fail; a line for other code that names the address.
    """
    if inside.grpc == _BLS_PORT and inside.host in _LOCAL:
        return
    for model in launch.models:
        home = _home(launch, model)
        files = sorted((home / model).glob("*/**/*.py")) if home else ()
        texts = [text for file in files if _BLS_ASKS in (text := file.read_text(encoding="utf-8", errors="replace"))]
        if any(_BLS_CALL in text for text in texts):
            raise ServerError(
                f"{model} asks its own server at {_BLS_ASKS} for every request, and gRPC is to listen at "
                f"{inside.at(inside.grpc)}: every request would fail, or ask a stranger",
                where=f"{home}/{model}",
                hint="serve with --grpc-port 8001, on this machine alone, as the bls of TensorRT-LLM 1.2 wants it",
            )
        if texts:
            line(f"{model} names {_BLS_ASKS} in its code; requests that ask there fail: serve with --grpc-port 8001")


def require_control(launch: Launch, running: Running, line: Callable[[str], None]) -> None:
    """Say where forge cannot control the server that it has started; ServerError where it would have to, to load engines."""
    said = triton_log.traced_not(Path(running.log)).removeprefix("forge: ")
    if said and launch.turns and not launch.ports.exposed:
        names = ", ".join(model for turn in launch.turns for model in turn)
        what = f"{said}, and {names} are loaded in turn once the server runs"
        hint = (
            "allow ptrace here (sysctl kernel.yama.ptrace_scope=1, or the sandbox's seccomp), or accept by name that this "
            "machine's users can read the secret: `forge serve --exposed`"
        )
        raise ServerError(what, where=running.repository, hint=hint)
    if said:
        line(f"{said}; `forge build`, `add` and `reload` cannot change this server" if not launch.ports.exposed else said)


_OPEN = "this Triton is too old to keep model control to forge (2.40 can, of 23.11): whoever reaches its ports can run code"


def once_more(launch: Launch, log: Path, line: Callable[[str], None], start: Callable[[Launch], Running]) -> Running:
    """What ``start`` makes of ``launch``, at the second time where the first fails in a way that a second may not."""
    try:
        return start(launch)
    except ServerError as error:
        if triton_log.stumbled(log):
            line("Triton lost a lock of its own, as it now and then does when it starts; it is started once more")
        elif not triton_log.cannot_restrict(log):
            raise
        elif not (launch.ports.exposed or launch.ports.local):
            hint = "serve it on the loopback, or accept that by name: `forge serve --exposed`"
            raise ServerError(_OPEN, where=launch.ports.at(launch.ports.http), hint=hint) from error
        else:
            line(_OPEN)
            launch = replace(launch, unrestricted=True)
    return start(launch)


def _home(launch: Launch, model: str) -> Path | None:
    """The repository in which a model stands."""
    return next((place for place in launch.repositories if (place / model / "config.pbtxt").is_file()), None)


def reached(ports: Ports, port: int) -> str:
    """Where a server that listens at one of ``ports`` is reached from this machine."""
    return replace(ports, host=EVERYWHERE.get(ports.host, ports.host)).at(port)


def asked(address: str, path: str, seconds: float = 5.0) -> tuple[int, bytes]:
    """Status and body of what is answered at ``host:port``; OSError, and HTTPException where that is no HTTP.

    A stranger may be there: of a body that is too long, or comes and comes, there is its beginning.
    """
    until, held = time.monotonic() + seconds, bytearray()
    with closing(http.client.HTTPConnection(address, timeout=seconds)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        stated, late = response.length, False
        wanted = _MOST if stated is None else min(stated, _MOST)
        while len(held) < wanted and not (late := time.monotonic() > until) and (piece := response.read1(_PIECE)):
            held += piece
        if stated is not None and len(held) < wanted and not late:
            raise http.client.IncompleteRead(bytes(held), stated - len(held))
        return response.status, bytes(held)


def at(running: Running, port: int) -> str:
    """The address of one of a server's ports."""
    return reached(running.ports, port)


def is_well(ports: Ports, port: int, path: str) -> bool:
    """Whether one of the ports answers that with 200."""
    with suppress(OSError, http.client.HTTPException):
        return asked(reached(ports, port), path)[0] == http.HTTPStatus.OK
    return False


def healthy(ports: Ports) -> bool:
    """Whether Triton says of itself that all it was told to load is ready."""
    return is_well(ports, ports.http, "/v2/health/ready")


def answers(ports: Ports, model: str) -> bool:
    """Whether the server has ``model`` ready, on the disk or not; its index lists what is on the disk alone."""
    return is_well(ports, ports.http, f"/v2/models/{model}/ready")


def _not_loaded(running: Running, missing: list[str], ended: str) -> ServerError:
    """Which model is to blame and what the log says of it."""
    text = triton_log.since(Path(running.log)).decode(errors="replace")
    hint = triton_log.hint(running.log, f"{text}\n{ended}")
    failed = triton_log.failures(text)
    if not failed:
        names, how = ", ".join(missing), f"; {ended}" if ended else ""
        what = f"Triton did not become ready (missing: {names}{how})\n{triton_log.part(text)}"
        return ServerError(what, where=running.repository, hint=hint)
    model, why = next(iter(failed.items()))
    others = f"\nnot loaded because of it, or too: {', '.join(list(failed)[1:])}" if len(failed) > 1 else ""
    what = f"model {model!r} did not load: {why}{others}\nits part of the log:\n{triton_log.part(text, model)}"
    return ServerError(what, where=running.repository, hint=hint)
