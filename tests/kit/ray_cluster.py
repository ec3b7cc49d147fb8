"""A real Ray cluster on the loopback: nodes with a home of their own each, that can be killed and added."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from forge.cluster.labels import ENVIRONMENT
from patience import soon, spare

HOST = "127.0.0.2"
"""Of the loopback; Ray takes 127.0.0.1 for the name of another interface."""
QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "8",
}
"""A dead node is found out in about 8 s, by default 17; a busy one is not taken for dead."""
QUIET = {**ENVIRONMENT, "RAY_DISABLE_IMPORT_WARNING": "1"}


@dataclass
class RayCluster:
    """``folder`` holds all homes; a node is a raylet started by ``ray start``, as a person would start it."""

    folder: Path
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    nodes: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)  # type: ignore[type-arg,unused-ignore]
    cpus: int = 2
    """What a node says that it has; Ray keeps as many processes ready."""
    port: int = field(default_factory=lambda: spare(1)[0])

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def home(self, name: str) -> Path:
        return self.folder / name

    def start(
        self,
        name: str,
        labels: Mapping[str, str] | None = None,
        slots: int = 2,
        gpus: int = 0,
        head: bool = False,
        more: Mapping[str, str] | None = None,
    ) -> None:
        """Add a node; with ``head`` the one that the others join, with ``more`` variables. Returns before it is ready."""
        resources = {"forge": slots, **{f"forge_gpu_{number}": 1 for number in range(gpus)}} if slots else {}
        told = ",".join(f"forge.{key}={value}" for key, value in {"node": name, **(labels or {})}.items())
        where = ("--head", f"--port={self.port}", "--include-dashboard=false") if head else (f"--address={self.address}",)
        argv = (
            *(str(Path(sys.executable).with_name("ray")), "start", *where, "--block", f"--node-ip-address={HOST}"),
            *(
                f"--labels={told}",
                f"--resources={json.dumps(resources)}",
                f"--num-cpus={self.cpus}",
                "--object-store-memory=80000000",
            ),
            *("--disable-usage-stats", "--include-log-monitor=false", "--log-style=record"),
        )
        environ = {
            **self.environ,
            **(more or {}),
            **QUIET,
            **QUICK,
            "FORGE_HOME": str(self.home(name)),
            "RAY_TMPDIR": str(self.folder / "t"),
            "RAY_worker_maximum_startup_concurrency": str(self.cpus),
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            self.nodes[name] = subprocess.Popen(argv, env=environ, stdout=log, stderr=log, start_new_session=True)

    def begin(self, nodes: Mapping[str, Mapping[str, str]], slots: int = 2) -> None:
        """Start all of ``nodes``, by name with their labels, the first as head; each has one GPU. All are there on return."""
        for at, (name, labels) in enumerate(nodes.items()):
            self.start(name, labels, slots, gpus=1, head=not at)
            if not at:
                assert soon(self._listens, 120), self._log(name)
        for name, labels in nodes.items():
            self._insist(name, labels, slots, gpus=1)

    def join(self, name: str, labels: Mapping[str, str], slots: int, more: Mapping[str, str]) -> None:
        """Add a node without a GPU, which is there on return."""
        self.start(name, labels, slots, more=more)
        self._insist(name, labels, slots, more=more)

    def _insist(
        self, name: str, labels: Mapping[str, str], slots: int, gpus: int = 0, more: Mapping[str, str] | None = None
    ) -> None:
        while not self._began(name):
            self.start(name, labels, slots, gpus, more=more)  # a busy machine takes longer than Ray's own patience

    def _began(self, name: str) -> bool:
        soon(lambda: "Ray runtime started" in self._log(name) or self._ended(name), 120)
        return not self._ended(name)

    def _ended(self, name: str) -> bool:
        return self.nodes[name].poll() is not None

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def _listens(self) -> bool:
        try:
            socket.create_connection((HOST, self.port), 1).close()
        except OSError:
            return False
        return True

    def kill(self, name: str) -> None:
        """SIGKILL for all of a node at once, as if its plug were pulled."""
        process = self.nodes.pop(name)
        for pid in (*_children(process.pid), process.pid):
            _kill(pid)
        process.wait()

    def stop(self) -> None:
        for name in list(self.nodes):
            self.kill(name)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *_children(int(child))]
    return found


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
