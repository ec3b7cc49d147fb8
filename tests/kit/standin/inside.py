"""The stand-in without containers: its tree on this machine as forge sees it from inside NVIDIA's image, and a real Triton.

What is built there is built by the same scripts, and served by the same backend, as in a container of the stand-in image.
"""

import os
import shutil
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from msgspec.structs import replace

from forge.api.forge import Forge
from forge.api.wiring import Wiring
from forge.machine.containers import Inside
from forge.machine.environments import backends, host
from forge.machine.inside import Here
from forge.schema.twin_environment import twin_sources
from forge.serve.server import Servers
from forge.serve.server_types import Launch, Running
from forge.settings import Settings
from patience import PATIENCE
from standin import image
from standin.skeletons import skeletons
from triton_fixture import Serving

VERSION = "0.21.0"
MOVED = "0.19.0"
"""The first whose families' scripts lie below examples/models/core."""


def lay(root: Path, originals: Path | None = None, release: str = VERSION) -> Path:
    """NVIDIA's image below ``root``: scripts, trtllm-build, a Python with TensorRT-LLM, skeletons.

    These are forge's own, or ``originals`` of a ``release``.
    """
    site = root / "site"
    information = site / f"tensorrt_llm-{release}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: {release}\n")
    (information / "RECORD").write_text("tensorrt_llm/__init__.py,sha256=abc,3\n")
    _program(root / "opt" / "tritonserver" / "bin" / "tritonserver", "#!/bin/sh\n")
    paths = f"{site}:{image.library()}"
    python = f'STANDIN_RELEASE={release} PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="{paths}" exec {sys.executable} "$@"'
    _program(root / "usr" / "bin" / "python3", f"#!/bin/sh\n{python}\n")
    build = image.library() / "tensorrt_llm" / "commands" / "build.py"
    _program(root / "usr/bin/trtllm-build", f'#!/bin/sh\nexec {root}/usr/bin/python3 {build} "$@"\n')
    shutil.copytree(image.HERE / "app" / "examples", root / "app" / "examples", ignore=_no_byte_code)
    if _number(release) < _number(MOVED):
        shutil.copytree(image.HERE / "app" / "examples" / "models" / "core", root / "app" / "examples", dirs_exist_ok=True)
    models = root / "app" / "all_models" / "inflight_batcher_llm"
    if originals:
        shutil.copytree(originals, models)
        return root
    for text in skeletons():
        (models / text.path).parent.mkdir(parents=True, exist_ok=True)
        (models / text.path).write_text(text.content)
    return root


def lay_backends(environment: Path, into: Path, release: str = VERSION) -> Path:
    """Triton's Python backend, and the stand-in's ``tensorrtllm`` of a ``release`` with all that it imports beside it."""
    backends(environment, host(os.environ).triton, into, ())
    own = into / "tensorrtllm"
    shutil.copytree(image.library() / "tensorrt_llm", own / "tensorrt_llm", ignore=_no_byte_code)
    shutil.copyfile(image.HERE / "backend" / "model.py", own / "model.py")
    (own / "tensorrt_llm" / "version.py").write_text(f'__version__ = "{release}"\n')
    for source in twin_sources():
        if "/twin/" in source.path:
            target = own / "forge" / source.path.partition("/")[2]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(source.content)
    return into


class Insider:
    """Somebody who runs forge inside of NVIDIA's image, with a home in ``folder``."""

    def __init__(
        self, folder: Path, environment: Path, laid: Path, originals: Path | None = None, release: str = VERSION
    ) -> None:
        root = lay(folder / "root", originals, release)
        self.folder = folder
        self._environ = {**os.environ, "PATH": f"{root}/usr/bin:{os.environ.get('PATH', os.defpath)}"}
        self._wiring = _Wiring(folder / "home", self._environ, root, (environment, laid))

    def load(self, running: Running, launch: Launch, *models: str) -> None:
        """Have a server take in ``models`` as they stand on the disk."""
        self._wiring.server.load(running, launch, models, print)

    @cached_property
    def shop(self) -> Forge:
        return Forge(self.folder / "home", self._environ, wiring=self._wiring, settings=Settings(executor="local"))


class _Wiring(Wiring):
    """Real ones, but for where NVIDIA's files lie and which Triton is started."""

    def __init__(self, home: Path, environ: dict[str, str], root: Path, triton: tuple[Path, Path]) -> None:
        super().__init__(home, environ, lambda _: None)
        self._inside = Here(environ, root=root)
        self._servers = _Servers(home, environ, triton)

    @cached_property
    def here(self) -> Inside:
        return self._inside

    @cached_property
    def server(self) -> Servers:
        return self._servers


class _Servers(Servers):
    """The Triton of an environment in the place of the image's."""

    def __init__(self, home: Path, environ: dict[str, str], triton: tuple[Path, Path]) -> None:
        super().__init__(home, environ, PATIENCE)
        self._environment, self._backends = triton

    def start(self, launch: Launch, line: Callable[[str], None]) -> Running:
        """One process: it takes no launcher to start the ranks of what has one."""
        own = replace(launch, environment=self._environment, backends=self._backends, triton="", engines=())
        return super().start(own, line)


def insider(folder: Path, serving: Serving, originals: Path | None = None) -> Insider:
    """With the session's own Triton."""
    return Insider(folder, serving.environment, lay_backends(serving.environment, folder / "backends"), originals)


def _number(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))


def _no_byte_code(_: str, names: list[str]) -> set[str]:
    return {name for name in names if name == "__pycache__"}


def _program(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
