"""What forge asks of a container engine, and the values that say it; the docker adapters act on them.

Constant places inside a container: inputs at ``/forge/<name>`` (read-only), the one result at ``/forge/out``.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from msgspec import Struct, field

from forge.errors import Problem, StepError
from forge.schema.values import Command, Environment, Requirements, Toolchain
from forge.schema.wheels import NO_HASHES, Hashes, canonical

Line = Callable[[str], None]
"""Told each line of output as it comes."""
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all); the second grows while layers are still being named."""

HOME = "forge.home"
"""A family image's label: the home of the forge that made it, and that may remove it."""
INPUTS = PurePosixPath("/forge")
OUT = INPUTS / "out"

# What pip and apt accept by name and version: no option, no path, no URL, nothing that a shell or a Dockerfile reads.
_PIP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9,._-]+\])?([<>=!~]{1,2}[A-Za-z0-9.*!+_-]+(,(?=[<>=!~])|\Z))*\Z")
_APT = re.compile(r"[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+:~-]+)?\Z")  # Debian policy 5.6.1 and 5.6.12
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_GPUS = re.compile(r"(all|[A-Za-z0-9][A-Za-z0-9-]*(,[A-Za-z0-9][A-Za-z0-9-]*)*)?\Z")
_KEY = re.compile(r"[0-9a-z]{8,128}\Z")
_OURS = frozenset({"tensorrt", "tensorrt-llm", "tensorrt-cu12", "tensorrt-cu13"})
"""What the base image is chosen for: a requirement that replaces it would build engines that nothing serves."""


class ImageFacts(Struct, frozen=True):
    """One image that this machine holds.

    ``identity`` is what a key may hold: the registry's digest, or for an image that no registry knows a hash of its layers and
    of what it starts (ids change with every rebuild). ``base`` is how a Dockerfile names exactly this image. ``content`` is
    that hash, whether a registry knows the image or not.
    """

    reference: str
    id: str
    identity: str
    base: str
    size: int = 0
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    content: str = ""


class ImageBuild(Struct, frozen=True):
    """A family image to make: ``dockerfile`` is the text, ``key`` finds the image again, ``log`` keeps the output."""

    family: str
    key: str
    dockerfile: str
    log: Path
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


class FamilyImage(Struct, frozen=True):
    """A family image that the daemon holds under the ``name`` that forge gave it; ``key`` is its step's."""

    name: str
    key: str


class ContainerRun(Struct, frozen=True):
    """One command to run in an image.

    ``inputs`` maps a name to a folder or file that stands read-only at /forge/<name>; ``out`` stands writable at /forge/out.
    ``overlays`` maps a path inside the image to a file that stands read-only over it (a patched script). ``gpus`` is ``all``,
    device numbers or ids joined by commas, or empty for none. ``promised`` files must stand in ``out`` afterwards, none empty.
    It has no network. ``memory`` is in bytes; 0 is no limit.
    """

    image: str
    command: Command
    inputs: Mapping[str, Path]
    out: Path
    log: Path
    key: str
    overlays: Mapping[str, Path] = field(default_factory=dict[str, Path])
    gpus: str = ""
    memory: int = 0
    promised: tuple[str, ...] = ()


class DaemonFacts(Struct, frozen=True):
    """What the container engine says of itself; bytes. ``nvidia`` is its NVIDIA runtime, ``free`` 0 where it cannot be seen."""

    version: str
    storage: str
    free: int
    memory: int
    nvidia: bool
    rootless: bool


class Containers(Protocol):
    """Images and containers. HostError for what the machine lacks, StepError for what a command or a build did."""

    def check(self, gpus: bool = False) -> tuple[Problem, ...]:
        """What keeps containers from running here, each with its fix; with ``gpus`` also what keeps GPUs from them."""
        ...

    def facts(self) -> DaemonFacts: ...

    def inspect(self, reference: str) -> ImageFacts | None:
        """The image, if this machine holds it."""
        ...

    def hold(self, reference: str, progress: Progress) -> ImageFacts:
        """The image, pulled first if this machine does not hold it."""
        ...

    def build(self, build: ImageBuild, line: Line) -> str:
        """The id of the image with the build's key: found, or made now."""
        ...

    def made(self, home: str) -> tuple[FamilyImage, ...]:
        """The family images that the forge of this home has made."""
        ...

    def discard(self, image: FamilyImage) -> bool:
        """Give one up; False where a container uses it, and it stays."""
        ...

    def run(self, run: ContainerRun, line: Line) -> None:
        """Run to the end. Returns only when an exit code of 0 was read and the promised files are there."""
        ...

    def read(self, image: str, paths: tuple[str, ...]) -> Mapping[str, bytes]:
        """Files out of an image by their path in it; a folder gives all files below. What is not there is left out."""
        ...

    def help_text(self, image: str, argv: tuple[str, ...], gpus: str = "") -> str:
        """Standard output of a program that only speaks (``--help``), without network."""
        ...

    def reap(self) -> tuple[str, ...]:
        """Remove the containers that dead forges left; their names."""
        ...


@runtime_checkable
class Archiving(Protocol):
    """A container engine whose images can be taken elsewhere."""

    def save(self, references: Sequence[str]) -> Iterator[bytes]:
        """The images as one stream, in which layers that several share are once; its length is not known before."""
        ...

    def load(self, stream: Iterable[bytes]) -> tuple[str, ...]:
        """Take in what ``save`` gave; the names or ids of the images, as far as the engine says them."""
        ...


class Answers(Protocol):
    """Small answers that cost something to get, kept from one run to the next."""

    def recall(self, question: str) -> str | None:
        """The answer that was kept; None without one."""
        ...

    def record(self, question: str, answer: str) -> None:
        """Keep it, where something can be kept."""
        ...


class Inside(Containers, Protocol):
    """The environment that forge itself runs in, inside NVIDIA's container, as if it were an image: ``LOCAL`` names it.

    A ``run`` has its inputs at their constant paths as far as its own words say them; what writes elsewhere is not held back.
    """

    def present(self) -> bool:
        """Whether this is NVIDIA's container: its Triton stands where it belongs, and a Python here has TensorRT-LLM."""
        ...

    def toolchain(self) -> Toolchain:
        """What is here; HostError where no TensorRT-LLM is."""
        ...

    def lacking(self, requirements: Requirements) -> tuple[Problem, ...]:
        """Those that are not installed here, with the command that installs them."""
        ...


def dockerfile(base: str, requirements: Requirements, template: str) -> str:
    """The Dockerfile of a family image.

    ``template`` names ``${base}``, ``${apt}`` and ``${pip}``; an instruction with one of the last two falls away when there is
    nothing to install. ValueError when a requirement is more than a name and versions, or the template installs not all.
    """
    refused = [f"{word!r} is not {what}" for word, what in _refused(requirements)]
    if not _IMAGE.match(base):
        refused.append(f"{base!r} is not an image")
    if not re.search(r"^\s*FROM\s+\$\{base\}\s*$", template, re.MULTILINE | re.IGNORECASE):
        refused.append("the Dockerfile has no line `FROM ${base}`")
    lists = {"${apt}": requirements.apt, "${pip}": requirements.pip}
    refused += [f"the Dockerfile installs no {place}" for place, words in lists.items() if words and place not in template]
    if refused:
        raise ValueError("; ".join(refused))
    filled: list[str] = []
    for instruction in _instructions(template):
        if instruction.lstrip().startswith("#"):
            filled.append(instruction)
        elif not any(place in instruction and not words for place, words in lists.items()):
            text = instruction.replace("${base}", base)
            for place, words in lists.items():
                text = text.replace(place, " ".join(shlex.quote(word) for word in words))
            filled.append(text)
    return "".join(filled)


def require_plain(run: ContainerRun) -> None:
    """StepError for what in a run is no plain value: names that leave their place, words that a program on the way would take
    as its own."""
    argv, env = run.command.argv, run.command.env
    found: list[str] = []
    if not _IMAGE.match(run.image):
        found.append(f"{run.image!r} is not an image")
    if not argv or not argv[0] or argv[0].startswith("-"):
        found.append("the command names no program")
    if any("\0" in word for word in (*argv, *env.values())):
        found.append("the command holds a NUL character")
    found += [f"{name!r} is not the name of an environment variable" for name in env if not _VARIABLE.match(name)]
    found += [f"{name!r} cannot be an input" for name in run.inputs if not _NAME.match(name) or name == OUT.name]
    found += [f"{path!r} cannot be laid over a file of the image" for path in run.overlays if not _is_place(path)]
    found += [f"{path!r} cannot be promised" for path in run.promised if not _is_inside(path)]
    if not _GPUS.match(run.gpus):
        found.append(f"{run.gpus!r} names no GPUs")
    if not _KEY.match(run.key):
        found.append(f"{run.key!r} is not a key")
    if found:
        raise StepError("; ".join(found), where=run.key, hint="if a plugin made the command, report the plugin")


def _refused(requirements: Requirements) -> list[tuple[str, str]]:
    wrong = [(word, "a package by name and version") for word in requirements.pip if not _PIP.match(word)]
    wrong += [(word, "a Debian package") for word in requirements.apt if not _APT.match(word)]
    wrong += [
        (word, "a package to install: the base image brings its own")
        for word in requirements.pip
        if canonical(re.split(r"[\[<>=!~]", word)[0]) in _OURS
    ]
    return wrong


def _instructions(text: str) -> list[str]:
    """A Dockerfile cut into instructions, comments and blank lines; a line that ends in a backslash goes on."""
    found: list[str] = []
    goes_on = False
    for line in text.splitlines(keepends=True):
        if goes_on:
            found[-1] += line
        else:
            found.append(line)
        # A comment inside a continued instruction does not end it.
        goes_on = line.rstrip().endswith("\\") or (goes_on and line.lstrip().startswith("#"))
    return found


def _is_place(path: str) -> bool:
    pure = PurePosixPath(path)
    plain = str(pure) == path and pure.is_absolute() and ".." not in pure.parts and "\0" not in path
    return plain and len(pure.parts) > 2 and pure.parts[1] not in {"forge", "proc", "sys", "dev"}


def _is_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts and "\0" not in path


class Environments(Protocol):
    """Makes private Python environments."""

    def make(
        self, environment: Environment, interpreter: str, into: Path, log: Callable[[str], None], hashes: Hashes = NO_HASHES
    ) -> None: ...

    def ask(self, environment: Environment, interpreter: str) -> Hashes:
        """Exact pin -> sha256, by the index: what would be installed, ``bare`` and ``packages`` with all that they bring."""
        ...


class Job(Struct, frozen=True):
    """One command to run, and the real folder behind each of its constant paths: ``/forge/<name>`` by ``name``.

    ``promised`` files have to stand in ``/forge/out`` afterwards, none of them empty.
    """

    command: Command
    mounts: Mapping[str, Path]
    log: Path
    promised: tuple[str, ...] = ()


class Executor(Protocol):
    """Runs a step's command; raises StepError with the log's end and path when it does not exit with 0."""

    def run(self, job: Job, line: Callable[[str], None]) -> None: ...
