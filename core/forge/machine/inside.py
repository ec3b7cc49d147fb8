"""The environment that forge itself runs in, as if it were an image: for people who run forge inside NVIDIA's container.

Scripts and skeletons are read from this filesystem, commands run in this environment with its TensorRT-LLM, and nothing is
installed into it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from blake3 import blake3
from msgspec.structs import replace

from forge.diagnoses import DIAGNOSES, Diagnosis, diagnose
from forge.errors import HostError, Problem, StepError
from forge.machine.bonds import answered, bound, temporary
from forge.machine.containers import (
    ContainerRun,
    DaemonFacts,
    FamilyImage,
    ImageBuild,
    ImageFacts,
    Job,
    Line,
    Progress,
    require_plain,
)
from forge.machine.interrupt import Halt
from forge.machine.local_executor import LocalExecutor
from forge.machine.mirror import mirror
from forge.machine.processes import inherited, nvidia
from forge.schema.values import LOCAL, Requirements, Toolchain

PYTHON = "opt/venv-tritonserver/bin"
"""Where images from 26.03 on have the Python of TensorRT-LLM; older ones have it on PATH."""
SERVER = "opt/tritonserver/bin/tritonserver"
TEXTS = ("app/examples", "app/all_models", "app/tensorrt_llm/examples")
"""Folders whose texts are part of what this environment is."""
_ENDINGS = (".py", ".pbtxt", ".yaml", ".json", ".txt")
_MOST = 4 * 1024**2
"""Bytes above which a file is no script and no skeleton."""
_PATIENCE = 300.0  # seconds for a program that only speaks; TensorRT-LLM takes tens of them to be imported
_LAST = 20
_OFFLINE = {"HF_HUB_OFFLINE": "1"}  # what a step asks a network for was not pinned

_ASK = """
import hashlib, importlib.metadata as installed, json
held = {each.metadata["Name"]: each.version for each in installed.distributions() if each.metadata["Name"]}
record = installed.distribution("tensorrt_llm").read_text("RECORD") or ""
print(json.dumps({"versions": held, "record": hashlib.sha256(record.encode()).hexdigest()}))
"""
_DECIDE = ("tensorrt-llm", "tensorrt", "torch", "transformers", "nvidia-modelopt")
"""Packages that decide what a conversion and a build make."""


class _Installed(msgspec.Struct, frozen=True):
    """What one Python has: package -> version, and a digest of TensorRT-LLM's own list of its files."""

    versions: dict[str, str]
    record: str
    python: str = ""

    def version(self, package: str) -> str:
        return {_plain(name): version for name, version in self.versions.items()}.get(_plain(package), "")


class Here:
    """The Containers and Inside of this environment. ``root`` is where its files are seen, for tests that lay their own."""

    def __init__(
        self,
        environ: Mapping[str, str],
        table: Iterable[Diagnosis] = DIAGNOSES,
        halt: Halt | None = None,
        root: Path = Path("/"),
    ) -> None:
        self._environ = environ
        self._table = table
        self._halt = halt
        self._root = root

    # -- what is here

    def present(self) -> bool:
        return (self._root / SERVER).is_file() and self._installed is not None

    def toolchain(self) -> Toolchain:
        version = self._demanded.version("tensorrt_llm")
        return Toolchain(LOCAL, version, "", self._identity)

    def lacking(self, requirements: Requirements) -> tuple[Problem, ...]:
        held = self._demanded
        found = [word for word in requirements.pip if not _satisfied(word, held)]
        problems: list[Problem] = []
        if found:
            words = " ".join(f"'{word}'" for word in found)
            problems.append(Problem(held.python, f"lacks {', '.join(found)}", f"{held.python} -m pip install {words}"))
        if absent := [word for word in requirements.apt if not self._has_debian(word.partition("=")[0])]:
            problems.append(Problem("this system", f"lacks {', '.join(absent)}", f"apt-get install {' '.join(absent)}"))
        return tuple(problems)

    def check(self, gpus: bool = False) -> tuple[Problem, ...]:
        if self._installed is None:
            return (_absent(),)
        from forge.machine.probe import ThisMachine

        if gpus and not ThisMachine(self._environ).gpus():
            return (Problem("this environment", "no NVIDIA GPU is seen", "start the container with --gpus all"),)
        return ()

    def facts(self) -> DaemonFacts:
        return DaemonFacts(LOCAL, "", 0, 0, nvidia=True, rootless=False)

    def inspect(self, reference: str) -> ImageFacts | None:
        return ImageFacts(reference, LOCAL, self._identity, LOCAL) if self._installed is not None else None

    def hold(self, reference: str, progress: Progress) -> ImageFacts:  # noqa: ARG002 - the port's
        _ = self._demanded
        return ImageFacts(reference, LOCAL, self._identity, LOCAL)

    def build(self, build: ImageBuild, line: Line) -> str:  # noqa: ARG002 - the port's
        raise HostError("no image is built here", where=build.family, hint='say executor = "docker" in [runtime]')

    def made(self, home: str) -> tuple[FamilyImage, ...]:  # noqa: ARG002 - the port's
        return ()

    def discard(self, image: FamilyImage) -> bool:  # noqa: ARG002 - the port's
        return False

    def reap(self) -> tuple[str, ...]:
        return ()

    # -- what it says

    def read(self, image: str, paths: tuple[str, ...]) -> Mapping[str, bytes]:  # noqa: ARG002 - the port's
        return {name: file.read_bytes() for path in paths for name, file in self._below(path)}

    def help_text(self, image: str, argv: tuple[str, ...], gpus: str = "") -> str:
        words = [self._placed(word) for word in self._program(argv)]
        environ = {**self._variables(gpus), "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(words, env=bound(environ), capture_output=True, text=True, timeout=_PATIENCE, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StepError(f"{' '.join(argv)} says nothing: {error}", where=image) from error
        if done.returncode:
            known = diagnose(done.stderr, self._table)
            last = done.stderr.splitlines()[-_LAST:]
            raise StepError(
                "\n".join((f"{' '.join(argv)} exited with {done.returncode}", *last)), where=image, hint=str(known or "")
            )
        return done.stdout

    def run(self, run: ContainerRun, line: Line) -> None:
        """A script that is patched runs from a mirror of its folder, so that what stands beside it is found there."""
        require_plain(run)
        run.log.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="mirror-", dir=temporary()) as scratch:
            patched = mirror(self._root, run.overlays, Path(scratch))
            argv = tuple(patched.get(word) or self._placed(word) for word in self._program(run.command.argv))
            command = replace(run.command, argv=argv, env={**_OFFLINE, **run.command.env})
            job = Job(command, {**run.inputs, "out": run.out}, run.log, run.promised)
            executor = LocalExecutor(self._environ, self._halt, self._table, self._variables(run.gpus))
            executor.run(job, line)

    # -- how it is found

    @cached_property
    def _installed(self) -> _Installed | None:
        """The first Python of this environment that has TensorRT-LLM; forge's own may be another."""
        seen: set[Path] = set()
        for python in self._pythons():
            if (real := python.absolute()) not in seen and (found := self._asked(python)):
                return msgspec.structs.replace(found, python=str(python))
            seen.add(real)
        return None

    @property
    def _demanded(self) -> _Installed:
        if self._installed is None:
            problem = _absent()
            raise HostError(problem.what, where=problem.where, hint=problem.hint)
        return self._installed

    def _pythons(self) -> Iterator[Path]:
        folders = [self._root / PYTHON, *map(Path, self._environ.get("PATH", os.defpath).split(os.pathsep))]
        yield from (folder / "python3" for folder in folders if (folder / "python3").is_file())

    def _asked(self, python: Path) -> _Installed | None:
        done = answered((str(python), "-c", _ASK), self._bare(), 60)
        with suppress(msgspec.DecodeError):
            return msgspec.json.decode(done.stdout, type=_Installed) if done and not done.returncode else None
        return None

    @cached_property
    def _identity(self) -> str:
        """TensorRT-LLM's version, and a digest of it, of what it works with, and of every script and skeleton."""
        held = self._demanded
        digest = blake3(msgspec.json.encode((held.record, [held.version(name) for name in _DECIDE])))
        for folder in TEXTS:
            for name, file in sorted(self._below(f"/{folder}")):
                if name.endswith(_ENDINGS):
                    digest.update(name.encode() + b"\0" + blake3(file.read_bytes()).digest())
        return f"{LOCAL}:{held.version('tensorrt_llm')}:{digest.hexdigest()}"

    def _below(self, path: str) -> Iterator[tuple[str, Path]]:
        """Files at or below a path of this environment, by their path in it."""
        place = self._root / path.lstrip("/")
        for file in (place,) if place.is_file() else place.rglob("*"):
            if "__pycache__" not in file.parts and file.is_file() and file.stat().st_size <= _MOST:
                inside = "" if file == place else f"/{file.relative_to(place).as_posix()}"
                yield f"{path.rstrip('/')}{inside}", file

    def _program(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        """The command with the Python that has TensorRT-LLM for ``python3``."""
        return (self._demanded.python, *argv[1:]) if argv[0] in ("python3", "python") else argv

    def _placed(self, word: str) -> str:
        """A path of this environment, as this process sees it."""
        seen = self._root / word.lstrip("/")
        return str(seen) if word.startswith("/") and self._root != Path("/") and seen.exists() else word

    def _bare(self) -> dict[str, str]:
        return {**inherited(self._environ), **nvidia(self._environ)}

    def _variables(self, gpus: str) -> dict[str, str]:
        """NVIDIA's own variables; programs are looked for beside TensorRT-LLM's Python first."""
        environ = self._bare()
        environ["PATH"] = f"{Path(self._demanded.python).parent}:{environ.get('PATH', os.defpath)}"
        return environ if gpus == "all" else {**environ, "CUDA_VISIBLE_DEVICES": gpus}

    def _has_debian(self, package: str) -> bool:
        program = shutil.which("dpkg-query", path=self._environ.get("PATH", os.defpath))
        if program is None:
            return False
        done = subprocess.run(
            (program, "-W", "-f", "${Status}", package), env=bound(), capture_output=True, text=True, check=False
        )
        return done.returncode == 0 and done.stdout.endswith(" installed")


def _absent() -> Problem:
    what = "no Python here has TensorRT-LLM, so nothing can be converted or built without a container"
    hint = 'run forge inside NVIDIA\'s container (tritonserver:TAG-trtllm-python-py3), or say executor = "docker" in [runtime]'
    return Problem("this environment", what, hint)


def _satisfied(word: str, held: _Installed) -> bool:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = Requirement(word)
    except InvalidRequirement:
        return False
    version = held.version(wanted.name)
    return bool(version) and wanted.specifier.contains(version, prereleases=True)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
