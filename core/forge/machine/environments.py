"""Makes the private Python environments that serve the twin, and the folder of Triton backends; says what this host brings."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from forge.errors import HostError, SourceError
from forge.files.interpreter import own_python
from forge.machine.bonds import bound, child, temporary
from forge.machine.interrupt import Halt
from forge.machine.libraries import Layout, read_layout, require_libraries
from forge.schema.twin_environment import PLATFORMS, PYTHONS, TRITON
from forge.schema.values import Environment, Host, TextFile
from forge.schema.wheels import NO_HASHES, Hashes, known, listed, read_report, read_requirements

INSTALLED_TRITON = Path("/opt/tritonserver")
GLIBC = (2, 35)
"""What the libraries in nvidia-pytriton's wheel need."""
_MISLEADING = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_PYTHON", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Settings that would send packages elsewhere than into the environment being made."""
_LAST = 12
_OTHER = re.compile(r"([\w.-]+==[\w.+!-]+)(?:`| from )[\s\S]*?(?:Got\s+|Computed:\W+sha256:)([0-9a-f]{64})")
"""How pip and uv tell of a package with another hash: its pin, and the hash it has."""
_PROBE = """
import json, sys, sysconfig
base = getattr(sys, "_base_executable", "") or sys.executable
print(json.dumps(["%d.%d.%d" % sys.version_info[:3], base, sysconfig.get_config_var("LIBDIR") or ""]))
"""


def host_with(python: str, environ: Mapping[str, str]) -> Host | None:
    """This machine with a Python of exactly this minor version, and no installed Triton; None where it has no such Python."""
    interpreter = _interpreter(python, environ)
    return Host(python, interpreter, sysconfig.get_platform()) if interpreter else None


def host(environ: Mapping[str, str]) -> Host:
    """What this machine brings for serving the twin; never fails, since engines need none of it: ``check`` judges it.

    An installed Triton is preferred where its Python is one that the twin runs on, and then decides which Python that is.
    """
    platform = sysconfig.get_platform()
    stub = _stub_python(INSTALLED_TRITON / "backends" / "python" / "triton_python_backend_stub")
    if stub in PYTHONS and (interpreter := _interpreter(stub, environ)):
        return Host(stub, interpreter, platform, str(INSTALLED_TRITON))
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    for version in dict.fromkeys((own, *PYTHONS)):
        if version in PYTHONS and (interpreter := _interpreter(version, environ)):
            return Host(version, interpreter, platform)
    return Host(own, sys.executable or "", platform)


def check(environment: Environment) -> None:
    """HostError when this machine cannot hold ``environment``: wrong platform, too old a C library, no suitable Python."""
    if environment.platform not in PLATFORMS:
        raise HostError(
            f"the twin is served on {' and '.join(PLATFORMS)}, and this is {environment.platform}",
            hint="build the recipe with `--runtime engine` for a GPU machine, or run forge in a Linux container",
        )
    if environment.python not in PYTHONS:
        raise HostError(
            f"the twin is served with Python {' or '.join(reversed(PYTHONS))}, and only {environment.python} was found",
            hint=f"install one (`apt install python{PYTHONS[-1]}`, `uv python install {PYTHONS[0]}`) and have it on PATH",
        )
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "no GNU C library").partition(" ")
    if _brings_triton(environment) and tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < GLIBC:
        raise HostError(
            f"Triton from PyPI needs glibc {GLIBC[0]}.{GLIBC[1]} or newer, and this system has {name} {version}",
            hint="use a newer distribution (Debian 12, Ubuntu 22.04), or NVIDIA's Triton container",
        )


def _brings_triton(environment: Environment) -> bool:
    return any(each.partition("==")[0] == TRITON.partition("==")[0] for each in environment.bare)


class PrivateEnvironments:
    """Environments that carry no path of the place where they were made, so that they can be moved and shared."""

    def __init__(self, environ: Mapping[str, str], halt: Halt | None = None) -> None:
        self._environ = {name: value for name, value in environ.items() if name not in _MISLEADING}
        self._halt = halt or Halt()

    def make(
        self, environment: Environment, interpreter: str, into: Path, log: Callable[[str], None], hashes: Hashes = NO_HASHES
    ) -> None:
        """Install ``environment`` into the folder ``into``; its programs are ``bin/python3`` and nothing else.

        What ``hashes`` or forge itself knows of ``bare`` is held to that. HostError for what this machine lacks, SourceError
        for packages that cannot be had or are others than was known.
        """
        check(environment)
        layout = _lay(interpreter, into)
        with tempfile.TemporaryDirectory(prefix="install-", dir=temporary()) as scratch:
            installer = self._installer(interpreter, into, Path(scratch))
            pins, listing = Path(scratch) / "pins.txt", Path(scratch) / "hashes.txt"
            exact = (*installer, "--no-deps", "--only-binary=:all:")
            if held := known(environment.bare, hashes):
                listing.write_text(listed(held), encoding="utf-8")
                self._run((*exact, "--require-hashes", "-r", str(listing)), log, held)
            if others := [each for each in environment.bare if each not in held]:
                self._run((*exact, *others), log)
            if environment.packages:
                pins.write_text("\n".join(environment.bare) + "\n", encoding="utf-8")
                self._run((*installer, "--constraint", str(pins), *environment.packages), log)
        _settle(into, layout)
        if _brings_triton(environment):
            require_libraries(layout.server_programs(), layout.library_path())

    def ask(self, environment: Environment, interpreter: str) -> Hashes:
        """The sha256 of what would be installed, by the index that pip or uv is told of. What is not in a wheel cannot be held:
        SourceError, as where the index cannot be reached."""
        with tempfile.TemporaryDirectory(prefix="ask-", dir=temporary()) as scratch:
            into, pins, wanted, report = (Path(scratch) / name for name in ("asked", "pins.txt", "wanted.txt", "report"))
            _lay(interpreter, into)
            pins.write_text("\n".join(environment.bare) + "\n", encoding="utf-8")
            wanted.write_text("\n".join(environment.packages or environment.bare) + "\n", encoding="utf-8")
            options = ("--only-binary=:all:", "--constraint", str(pins), *(() if environment.packages else ("--no-deps",)))
            if uv := self._uv():
                form = ("--python", str(into / "bin" / "python3"), "--generate-hashes", "--no-header", "--no-annotate")
                argv = (uv, "pip", "compile", *form, *options, "-o", str(report), str(wanted))
            else:
                pip = self._installer(interpreter, into, Path(scratch))
                dry = ("--dry-run", "--ignore-installed", "--report", str(report))
                argv = (*pip, *dry, *options, "-r", str(wanted))
            self._run(argv, lambda _: None)  # nobody reads the log of an answer; an error holds its end
            told = report.read_text(encoding="utf-8")
        found = read_requirements(told) if uv else read_report(told)
        if lacking := [pin for pin, digests in found.items() if not digests]:
            raise SourceError(f"the package index states no sha256 of {', '.join(lacking)}")
        return found

    def _uv(self) -> str | None:
        return shutil.which("uv", path=self._environ.get("PATH"))

    def _installer(self, interpreter: str, into: Path, scratch: Path) -> tuple[str, ...]:
        """The command that installs into ``into``: uv where there is one, else the nearest pip."""
        python = str(into / "bin" / "python3")
        if uv := self._uv():
            return (uv, "pip", "install", "--python", python, "--no-progress", "--link-mode=copy")
        options = ("install", "--no-compile", "--no-input", "--disable-pip-version-check", "--progress-bar=off")
        if find_spec("pip"):
            return (own_python(), "-m", "pip", "--python", python, *options)
        return (str(self._ensured(interpreter, scratch)), "-m", "pip", "--python", python, *options)

    def _ensured(self, interpreter: str, scratch: Path) -> Path:
        """A Python that has pip, made in ``scratch`` from the wheel that Python itself carries."""
        _lay(interpreter, scratch / "pip")
        python = scratch / "pip" / "bin" / "python3"
        done = subprocess.run((python, "-m", "ensurepip"), env=bound(self._environ), capture_output=True, check=False)
        if done.returncode:
            raise HostError(
                "there is no uv, and no pip to make the serving environment with",
                hint=f"install uv, or pip for {interpreter} (on Debian: apt install python3-pip python3-venv)",
            )
        return python

    def _run(self, argv: tuple[str, ...], log: Callable[[str], None], held: Hashes = NO_HASHES) -> None:
        lines: list[str] = []
        # pip starts itself again in the environment, and must not go on writing into a folder that is being removed.
        with child(argv, self._environ, self._halt) as process:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                log(lines[-1])
        if process.returncode:
            raise _tampered("\n".join(lines), held) or _failure(lines)


def adopt(environment: Environment, interpreter: str, into: Path, lay: Callable[[Path], None]) -> None:
    """An environment that another machine has made, for ``interpreter`` of this one; ``lay`` brings the files.

    Two files of one name places of its machine, ``bin/python3`` and ``pyvenv.cfg``: they are written anew here, and ``lay``
    leaves them out. HostError for what this machine lacks.
    """
    check(environment)
    layout = _lay(interpreter, into)
    lay(into)
    if _brings_triton(environment):
        require_libraries(layout.server_programs(), layout.library_path())


def backends(environment: Path, triton: str, into: Path, sources: tuple[TextFile, ...]) -> None:
    """Lay Triton's backend folder: the Python backend of ``environment`` (or of an installed ``triton``), and ``sources``.

    The files are copies: Triton refuses a linked library ("escapes backend directory").
    """
    layout = read_layout(environment, triton)
    python = into / "python"
    python.mkdir(parents=True)
    for source in layout.python_backend():
        if not source.is_file():
            raise HostError(f"Triton's Python backend lacks {source.name}", where=str(source))
        shutil.copyfile(source, python / source.name)
    (python / "triton_python_backend_stub").chmod(0o755)
    for text in sources:
        target = into / text.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.content, encoding="utf-8")
    _compile(environment / "bin" / "python3", into)


def _interpreter(version: str, environ: Mapping[str, str]) -> str:
    """A Python of this minor version: the one that runs forge, or the first on PATH that works (pyenv's shims may not)."""
    if sys.executable and version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return os.path.realpath(sys.executable)
    for folder in environ.get("PATH", os.defpath).split(os.pathsep):
        found = shutil.which(f"python{version}", path=folder)
        with suppress(HostError):
            if found and _probe(found)[0].startswith(f"{version}."):
                return os.path.realpath(_probe(found)[1])
    return ""


def _probe(interpreter: str) -> tuple[str, str, str]:
    """(version, the executable behind any virtual environment, the folder of its shared library)."""
    try:
        done = subprocess.run((interpreter, "-I", "-c", _PROBE), env=bound(), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise HostError(f"this Python does not run: {error}", where=interpreter) from error
    version, base, libraries = json.loads(done.stdout)
    return str(version), str(base), str(libraries)


def _stub_python(stub: Path) -> str:
    """The minor version of the Python that a stub is linked to, or empty; its name stands in the ELF file."""
    try:
        found = re.search(rb"libpython(3\.\d+)\.so", stub.read_bytes())
    except OSError:
        return ""
    return found[1].decode() if found else ""


def _lay(interpreter: str, into: Path) -> Layout:
    """The bare environment. Written by hand, because ``venv`` and its pip are missing from some systems, and what they write
    holds the path of the folder."""
    version, base, libraries = _probe(interpreter or own_python())
    (into / "bin").mkdir(parents=True, exist_ok=True)
    (into / "bin" / "python3").symlink_to(os.path.realpath(base))
    settings = {
        "home": os.path.dirname(os.path.realpath(base)),
        "include-system-site-packages": "false",
        "version": version,
        "libraries": libraries,
    }
    text = "".join(f"{name} = {value}\n" for name, value in settings.items())
    (into / "pyvenv.cfg").write_text(text, encoding="utf-8")
    layout = read_layout(into)
    layout.packages.mkdir(parents=True)
    return layout


def _settle(into: Path, layout: Layout) -> None:
    """Take away what holds the present path (console scripts) and compile, since nothing can be written later."""
    for program in (into / "bin").iterdir():
        if program.name != "python3":
            program.unlink()
    (into / ".lock").unlink(missing_ok=True)  # uv's
    for record in layout.packages.glob("*.dist-info/RECORD"):
        lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
        record.write_text("".join(each for each in lines if not each.startswith("../../../bin/")), encoding="utf-8")
    _compile(into / "bin" / "python3", layout.packages)


def _compile(python: Path, folder: Path) -> None:
    """Byte code that holds for ever, whatever the files' times become. What does not compile is a package's test data."""
    holding = ("--invalidation-mode", "unchecked-hash", "-s", str(folder), "-p", "/forge")
    argv = (python, "-m", "compileall", "-q", "-j", "0", *holding, "-x", "/tests/|/pytriton/", folder)
    subprocess.run(argv, env=bound(), capture_output=True, check=False)


def _tampered(text: str, held: Hashes) -> SourceError | None:
    """What pip or uv says of packages that have other hashes than those they are held to."""
    found = [(pin, got) for pin, got in _OTHER.findall(text) if pin in held]
    if not found:
        return None
    told = (f"{pin}: sha256 {' or '.join(held[pin])} was expected, the index gave {got}" for pin, got in found)
    return SourceError(
        "the package index gives other packages than forge or the lock knows; nothing was installed\n" + "\n".join(told),
        hint="find out who changed them: the index, or something on the way (index-url, extra-index-url, find-links and proxy "
        "of pip or uv). Builds of your own index that you trust: docs/security.md, Packages by hash",
    )


def _failure(lines: list[str]) -> SourceError | HostError:
    text = "\n".join(lines[-_LAST:])
    whole = "\n".join(lines).lower()
    if "no space left" in whole:
        return HostError(f"the disk is full\n{text}", hint="make room (`forge cache gc`) and build again")
    if re.search(r"new connection|max retries|name resolution|error sending request|failed to fetch|timed? ?out", whole):
        return SourceError(
            f"the package index cannot be reached\n{text}",
            hint="check the network and pip's or uv's settings (index-url, proxy); what is held still builds without one",
        )
    return SourceError(
        f"the serving environment's packages cannot be installed\n{text}",
        hint="check runtime.packages of the recipe, its lock's versions, and that the index in pip's or uv's settings has them",
    )
