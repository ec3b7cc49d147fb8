"""Whose containers are whose: each carries its forge's name, so that what a dead forge left is known and removed."""

import os
import socket
from pathlib import Path
from secrets import token_hex

import msgspec
from msgspec import Struct

from forge.machine.docker.daemon import Api, ours
from forge.machine.processes import started

OWNER = "forge.owner"
KEY = "forge.key"
RUN = "forge.run"
OUT = "forge.out"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PIDS = Path("/proc/self/ns/pid")


class Owner(Struct, frozen=True):
    """A process, named so that no other is ever taken for it: pids come again, after boots and in other namespaces."""

    host: str
    boot: str
    pids: str
    pid: int
    started: float

    def is_dead(self) -> bool:
        """Whether it surely is: of another host or another pid namespace nothing is known."""
        here = myself()
        if self.host != here.host:
            return False
        if self.boot != here.boot:
            return True
        return self.pids == here.pids and started(self.pid) != self.started


class _Listed(Struct, rename="pascal"):
    """GET /containers/json, as far as forge reads it."""

    id: str
    names: list[str] | None = None
    labels: dict[str, str] | None = None


def myself() -> Owner:
    """This process."""
    pid = os.getpid()
    return Owner(
        host=socket.gethostname(),
        boot=_BOOT.read_text().strip(),
        pids=os.readlink(_PIDS),
        pid=pid,
        started=started(pid) or 0.0,
    )


def labels(key: str, run: str = "", out: str = "") -> dict[str, str]:
    """What a container of this process carries; ``out`` is the folder on this machine that it writes as root."""
    return {OWNER: msgspec.json.encode(myself()).decode(), KEY: key, RUN: run, OUT: out}


def fresh_name(key: str) -> str:
    return f"forge-{key[:16]}-{token_hex(4)}"


def remove(api: Api, name: str) -> None:
    """Kill and remove a container; one that is gone, or going, is what was wanted."""
    import docker.errors

    with ours("remove a container", name):
        try:
            api.remove_container(name, v=True, force=True)
        except docker.errors.APIError as error:
            if error.status_code not in {404, 409}:
                raise


def orphans(api: Api) -> tuple[tuple[str, str], ...]:
    """What dead forges left: (container's name, the folder it wrote or empty)."""
    with ours("list its containers"):
        listed = msgspec.convert(api.containers(all=True, filters={"label": OWNER}), list[_Listed])
    return tuple(
        ((one.names or [one.id])[0].lstrip("/"), (one.labels or {}).get(OUT, ""))
        for one in listed
        if _is_orphan((one.labels or {}).get(OWNER, ""))
    )


def _is_orphan(label: str) -> bool:
    """A label that cannot be read is not this forge's to judge."""
    try:
        return msgspec.json.decode(label, type=Owner).is_dead()
    except msgspec.DecodeError:
        return False
