"""What a container needs of this machine: a Python with its library, some plain programs, what they link to."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from standin.tree import File, Link, Tree, under

PROGRAMS = (
    *("sh", "bash", "env", "true", "false", "test", "echo", "sleep", "kill", "id", "date", "uname", "hostname", "which"),
    *("ls", "cat", "cp", "mv", "rm", "mkdir", "ln", "touch", "chmod", "chown", "stat", "du", "df", "dd", "find", "mktemp"),
    *("head", "tail", "grep", "sed", "sort", "wc", "tr", "cut", "seq", "tar", "sha256sum", "readlink", "dirname", "basename"),
    *("ldd", "timeout"),
)
"""Those that this machine has are laid into the image."""

CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
BUNDLE = "etc/ssl/certs/ca-certificates.crt"
LEFT_OUT = ("test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "site-packages", "dist-packages", "__pycache__")
_PROBE = """
import json, sys, sysconfig
base = getattr(sys, "_base_executable", "") or sys.executable
where = sysconfig.get_paths(vars={"base": sys.base_prefix, "platbase": sys.base_prefix})
libraries = sysconfig.get_config_var("LIBDIR") or ""
print(json.dumps([base, where["stdlib"], where["platstdlib"], where["purelib"], libraries]))
"""


@dataclass(frozen=True)
class Python:
    """An interpreter outside any virtual environment. ``packages`` is where it looks for what pip installs."""

    executable: Path
    library: Path
    packages: Path
    shared: Path
    """Where its libpython lies."""


def python(interpreter: Path) -> Python:
    """The Python behind ``interpreter``, which may stand in a virtual environment."""
    first = json.loads(subprocess.check_output((interpreter, "-I", "-c", _PROBE), text=True))
    base = Path(os.path.realpath(first[0]))
    _, library, _, packages, shared = json.loads(subprocess.check_output((base, "-I", "-c", _PROBE), text=True))
    return Python(base, Path(library), Path(packages), Path(shared))


def tree(found: Python) -> dict[str, File | Link]:
    """The Python and the programs at the places where they lie here, with every library that they load."""
    made: dict[str, File | Link] = {}
    binaries = [found.executable]
    for path in _library(found):
        made[_inside(path)] = File(path)
        binaries += [path] if path.suffix == ".so" else []
    made[_inside(found.executable)] = File(found.executable, 0o755)
    for name in (f"usr/bin/{each}" for each in ("python3", "python")):
        if name != _inside(found.executable):
            made[name] = Link(str(found.executable))
    for name in PROGRAMS:
        if place := shutil.which(name):
            real = Path(os.path.realpath(place))
            made[f"usr/bin/{name}"] = File(real, 0o755)
            binaries.append(real)
    return {**made, **libraries(binaries, made), **_bare()}


def libraries(binaries: Iterable[Path], held: Tree = {}, search: str = "") -> dict[str, File | Link]:  # noqa: B006
    """What ``binaries`` load beyond ``held``, where ldd finds it; what lies off the loader's path is linked into it."""
    environ = {"PATH": os.environ["PATH"], **({"LD_LIBRARY_PATH": search} if search else {})}
    said = subprocess.run(("ldd", *binaries), env=environ, capture_output=True, text=True, check=False).stdout
    found = sorted(set(re.findall(r"(/\S+) \(0x", said)))
    home = next(Path(each).parent for each in found if Path(each).name.startswith("libc.so"))
    made: dict[str, File | Link] = {}
    for each in found:
        path = Path(each)
        made[_inside(path)] = File(Path(os.path.realpath(path)), 0o755)
        if not path.is_relative_to("/lib") and not path.is_relative_to("/usr") and not path.is_relative_to("/lib64"):
            made[_inside(home / path.name)] = Link(each)
    return {path: entry for path, entry in made.items() if path not in held}


def packages(names: Iterable[str], at: Path) -> dict[str, File | Link]:
    """Distributions of this environment (pip, ...) as a tree at ``at``, without their programs."""
    made: dict[str, File | Link] = {}
    for name in names:
        held = distribution(name)
        files = [str(each) for each in held.files or () if ".." not in each.parts and each.suffix != ".pyc"]
        made |= under(Path(str(held.locate_file(""))), _inside(at), files)
    return made


def _library(found: Python) -> list[Path]:
    files: list[Path] = []
    for place, folders, names in os.walk(found.library):
        folders[:] = sorted(each for each in folders if each not in LEFT_OUT and not each.startswith("config-"))
        files += [Path(place) / each for each in sorted(names) if not each.endswith((".pyc", ".a"))]
    return files


def _bare() -> dict[str, File | Link]:
    made: dict[str, File | Link] = {
        "bin": Link("usr/bin"),
        "sbin": Link("usr/bin"),
        "etc/passwd": File(b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        "etc/group": File(b"root:x:0:\nnogroup:x:65534:\n"),
        "tmp/": File(b""),
        "var/tmp/": File(b""),
        "root/": File(b""),
    }
    if bundle := next((each for each in CERTIFICATES if Path(each).exists()), None):
        made[BUNDLE] = File(Path(os.path.realpath(bundle)))
    return made


def _inside(path: Path) -> str:
    return str(path).lstrip("/")
