"""Where things lie in a serving environment, and whether its programs will find their libraries."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from forge.errors import HostError
from forge.machine.bonds import bound


class Layout(Struct, frozen=True):
    """A serving environment's places. ``libraries`` is where its Python has its shared library; ``triton`` an installed one."""

    root: Path
    python: str
    libraries: str
    triton: str = ""

    @property
    def packages(self) -> Path:
        return self.root / "lib" / f"python{self.python}" / "site-packages"

    @property
    def server(self) -> Path:
        """The tritonserver program."""
        return Path(self.triton or self.packages / "pytriton" / "tritonserver") / "bin" / "tritonserver"

    def library_path(self, inherited: str = "") -> str:
        """LD_LIBRARY_PATH for the server and its stubs; an installed Triton keeps the ``inherited`` one behind its own."""
        if self.triton:
            return ":".join(filter(None, (f"{self.triton}/lib", self.libraries, inherited)))
        return ":".join(filter(None, (str(self.packages / "nvidia_pytriton.libs"), self.libraries)))

    def python_backend(self) -> tuple[Path, ...]:
        """The files that Triton's Python backend consists of."""
        names = ("libtriton_python.so", "triton_python_backend_utils.py", "triton_python_backend_stub")
        if self.triton:
            return tuple(Path(self.triton) / "backends" / "python" / name for name in names)
        bundled = self.packages / "pytriton" / "tritonserver"
        folder = bundled / "backends" / "python"
        return (folder / names[0], folder / names[1], bundled / "python_backend_stubs" / self.python / names[2])

    def server_programs(self) -> tuple[Path, ...]:
        """What has to find its libraries for a server to come up."""
        library, _, stub = self.python_backend()
        return (self.server, library, stub)


def read_layout(environment: Path, triton: str = "") -> Layout:
    """The layout that an environment's pyvenv.cfg states; HostError where it is damaged or its Python is gone."""
    try:
        lines = (environment / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
        settings = {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines)}
        version = settings["version"].rpartition(".")[0]
    except (OSError, KeyError) as error:
        raise HostError("this is no serving environment of forge's", where=str(environment)) from error
    if not (environment / "bin" / "python3").exists():
        raise HostError(
            f"the Python that this environment stands on is gone from {settings.get('home', 'its place')}",
            where=str(environment),
            hint="install it there again, or remove the environment from the store and build again",
        )
    return Layout(environment, version, settings.get("libraries", ""), triton)


def require_libraries(programs: Sequence[Path], library_path: str) -> None:
    """HostError naming what a program would not find: a server without its libraries hangs for ever and ignores SIGINT."""
    ldd = shutil.which("ldd")
    missing: dict[str, str] = {}
    for program in programs:
        if not program.is_file():
            raise HostError("a part of Triton is missing", where=str(program), hint="`forge cache verify`, then build")
        if ldd:
            environ = {"LD_LIBRARY_PATH": library_path, "PATH": os.defpath}
            done = subprocess.run((ldd, program), env=bound(environ), capture_output=True, text=True, check=False)
            lacking = (line.split()[0] for line in done.stdout.splitlines() if line.endswith("not found"))
            missing |= dict.fromkeys(lacking, program.name)
    if not missing:
        return
    python = next((name for name in missing if name.startswith("libpython")), "")
    raise HostError(
        "libraries are missing: " + ", ".join(f"{name} (for {program})" for name, program in missing.items()),
        hint=f"install Python's shared library ({python.partition('.so')[0]} on Debian; pyenv: --enable-shared; uv's has it)"
        if python
        else "install the system packages that hold them",
    )
