"""The Containers port on a Docker daemon: each method is a function of a module beside it."""

from collections.abc import Iterable, Mapping

from forge.diagnoses import DIAGNOSES, Diagnosis
from forge.errors import Problem
from forge.machine.containers import ContainerRun, DaemonFacts, FamilyImage, ImageBuild, ImageFacts, Line, Progress
from forge.machine.docker.daemon import Daemon
from forge.machine.docker.images import Images
from forge.machine.docker.read import Reading
from forge.machine.docker.run import Runs
from forge.machine.interrupt import Halt


class DockerContainers:
    """Containers by Docker. ``table`` may hold more diagnoses than forge's own, asked in its order."""

    def __init__(self, environ: Mapping[str, str], table: Iterable[Diagnosis] = DIAGNOSES, halt: Halt | None = None) -> None:
        self._daemon = Daemon(environ)
        self._images = Images(self._daemon, table)
        self._runs = Runs(self._daemon, table, halt)
        self._reading = Reading(self._daemon, table)

    def check(self, gpus: bool = False) -> tuple[Problem, ...]:
        return self._daemon.check(gpus)

    def facts(self) -> DaemonFacts:
        return self._daemon.facts()

    def inspect(self, reference: str) -> ImageFacts | None:
        return self._images.inspect(reference)

    def hold(self, reference: str, progress: Progress) -> ImageFacts:
        return self._images.hold(reference, progress)

    def build(self, build: ImageBuild, line: Line) -> str:
        return self._images.build(build, line)

    def made(self, home: str) -> tuple[FamilyImage, ...]:
        return self._images.made(home)

    def discard(self, image: FamilyImage) -> bool:
        return self._images.discard(image)

    def run(self, run: ContainerRun, line: Line) -> None:
        self._runs.run(run, line)

    def read(self, image: str, paths: tuple[str, ...]) -> Mapping[str, bytes]:
        return self._reading.read(image, paths)

    def help_text(self, image: str, argv: tuple[str, ...], gpus: str = "") -> str:
        return self._reading.help_text(image, argv, gpus)

    def reap(self) -> tuple[str, ...]:
        with self._daemon.connected() as api:
            return self._runs.reap(api)
