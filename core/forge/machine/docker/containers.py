"""The Containers port on a Docker daemon: its parts stand in the modules beside it."""

from collections.abc import Iterable, Mapping

from forge.diagnoses import DIAGNOSES, Diagnosis
from forge.errors import Problem
from forge.machine.containers import DaemonFacts
from forge.machine.docker.archives import Archives
from forge.machine.docker.container_run import Runs
from forge.machine.docker.daemon import Daemon
from forge.machine.docker.images import Images
from forge.machine.docker.read import Reading
from forge.machine.interrupt import Halt


class DockerContainers(Images, Archives, Reading, Runs):
    """Containers by Docker. ``table`` may hold more diagnoses than forge's own, asked in its order."""

    def __init__(
        self,
        environ: Mapping[str, str],
        table: Iterable[Diagnosis] = DIAGNOSES,
        halt: Halt | None = None,
        mirror: str = "",
    ) -> None:
        """``mirror`` is a registry and a path there, in the place of NVIDIA's."""
        Runs.__init__(self, Daemon(environ), table, halt)
        self._mirror = mirror

    def check(self, gpus: bool = False) -> tuple[Problem, ...]:
        return self._daemon.check(gpus)

    def facts(self) -> DaemonFacts:
        return self._daemon.facts()
