"""OpenAI's API beside a server: a process of this machine, whether or not the server is one."""

import os
import platform
import secrets
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from msgspec.structs import replace

import forge
from forge.errors import HostError, ServerError
from forge.files.interpreter import own_python
from forge.machine import processes
from forge.schema.values import Command, Ports
from forge.serve.openai.access import key
from forge.serve.ready import is_well, reached
from forge.serve.server_types import Running
from forge.serve.state import DOOR_KEY, make_private

PAGE_PORT = 9000
"""Where OpenAI's API and the page are where nobody says another port."""
OWN_KEY = "openai.key"
"""The file with the key of a line that somebody starts by hand."""
SUFFIX = ".openai.log"
"""Of its log, beside the server's."""
_NEEDED = ("starlette", "uvicorn", "prometheus_client")
_ANY = ("0.0.0.0", "::")  # noqa: S104  # every address of this machine, which a browser cannot go to
_PATIENCE = 30.0
_LOOK = 0.05
_ROOM = 15


def command(ports: Ports, repositories: Sequence[str]) -> Command:
    """What serves the API by itself, in front of a server that runs."""
    address, metrics = (reached(ports, port) for port in (ports.grpc, ports.metrics))
    key = ("--key-file", os.path.abspath(ports.key_file)) if ports.key_file else ()
    seen = ("--metrics", metrics) if ports.metrics else ()
    words = (*key, *seen, ports.host, str(ports.openai), address, *repositories)
    argv = (own_python(), "-P", "-m", "forge.serve.openai", *words)
    return Command(argv, {"PYTHONPATH": str(Path(forge.__file__).parents[1])})


def line(repositories: Sequence[str | Path], ports: Ports) -> str:
    """The same as a line for a terminal; empty where the API is not wanted.

    Where a start would draw a key, it asks for the one in ``OWN_KEY`` in the current folder, and does not start without.
    """
    if not ports.openai:
        return ""
    wanted = command(
        replace(ports, key_file=OWN_KEY) if draws(ports) else ports, [os.path.abspath(place) for place in repositories]
    )
    env = "".join(f"{name}={shlex.quote(value)} " for name, value in wanted.env.items())
    return f"{env}{shlex.join(wanted.argv)}"


def draws(ports: Ports) -> bool:
    """Whether a start draws a key of its own: the page is wanted beyond the loopback, and no key was named."""
    return bool(ports.openai) and ports.page and not ports.local and not ports.key_file


def page(ports: Ports) -> str:
    """Where the page is, with its key behind the #, which no browser sends; empty where there is none."""
    if not ports.openai or not (ports.local or ports.key_file):
        return ""
    shown = replace(ports, host=platform.node()) if ports.host in _ANY else ports
    return f"http://{shown.at(ports.openai)}/" + (f"#key={key(Path(ports.key_file))}" if ports.key_file else "")


def require(ports: Ports, say: Callable[[str], None]) -> None:
    """HostError where the API is wanted and what it is served with is not installed; ServerError where its key is none.

    A key that others can read is said to ``say``.
    """
    if ports.openai and ports.key_file:
        key(Path(ports.key_file))
        if Path(ports.key_file).stat().st_mode & 0o077:
            say(f"others on this machine can read the key of the OpenAI port: chmod 600 {shlex.quote(ports.key_file)}")
    if ports.openai and (missing := [name for name in _NEEDED if find_spec(name) is None]):
        are = "is" if len(missing) == 1 else "are"
        raise HostError(
            f"OpenAI's API needs {' and '.join(missing)}, which {are} not installed here",
            hint="pip install 'triton-forge[openai]'",
        )


def begin(running: Running, environ: Mapping[str, str]) -> Running:
    """Start it in front of a server that is ready, and wait until it answers; ServerError with its log where it does not.

    It carries the server's mark, so that whoever ends the server ends it too.
    """
    if not running.ports.openai:
        return running
    running = _locked(running)
    log = Path(running.log).with_suffix(SUFFIX)
    wanted = command(running.ports, running.repositories)
    python, *words = wanted.argv
    state = str(Path(running.log).with_suffix(".json"))
    kept = (python, *words[:3], "--kept", "--state", state, *words[3:])
    argv = (python, "-P", "-m", "forge.serve.openai.keeper", state, *kept)
    env = {**processes.inherited(environ), **wanted.env, processes.MARKER: running.shared_memory}
    pid = processes.detached(argv, env, log)
    found = replace(running, front=pid, front_started=processes.started(pid) or 0.0)
    _await(found, log)
    return found


def _locked(running: Running) -> Running:
    """With its key beside its log, drawn or copied: it is put up again by that, whatever becomes of the file that was named."""
    ports = running.ports
    if not draws(ports) and not ports.key_file:
        return running
    file = Path(running.log).with_suffix(DOOR_KEY)
    make_private(file, (key(Path(ports.key_file)) if ports.key_file else secrets.token_urlsafe(24)).encode())
    return replace(running, ports=replace(ports, key_file=str(file)))


def alive(running: Running) -> bool:
    """Whether the process that keeps the API up is still there."""
    processes.reap(running.front)
    return bool(running.front) and processes.started(running.front) == running.front_started


def _await(running: Running, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not answers(running.ports):
        if not alive(running) or time.monotonic() > deadline:
            said = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_ROOM:])
            what = f"OpenAI's API did not come up on port {running.ports.openai}\n{said}"
            raise ServerError(what, where=running.repository, hint=f"the whole log: {log}")
        time.sleep(_LOOK)


def answers(ports: Ports) -> bool:
    """Whether the API is up, whatever it has to say of the models behind it."""
    return is_well(ports, ports.openai, "/live")
