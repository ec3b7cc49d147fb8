"""A stand-in for NVIDIA's image of Triton with TensorRT-LLM, made of this machine's Python and a serving environment.

Its places are those of nvcr.io/nvidia/tritonserver:25.08-trtllm-python-py3: the examples under /app/examples, the skeletons
under /app/all_models, trtllm-build on PATH, Triton under /opt/tritonserver, a package ``tensorrt_llm``. What stands there was
written for forge's tests. Its "engines" hold the checkpoint, and its ``tensorrtllm`` backend is forge's twin.
"""

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution, distributions
from importlib.util import cache_from_source
from pathlib import Path

import msgspec
from filelock import FileLock

from forge.machine.libraries import read_layout
from forge.schema.twin_environment import PACKAGES, twin_sources
from standin.skeletons import skeletons
from standin.system import BUNDLE, Python, libraries, packages, python, tree
from standin.tree import File, Image, Link, Settings, Tree, key, under, write

HERE = Path(__file__).parent
REFERENCE = "forge-standin/tritonserver:25.08-trtllm-python-py3"
_RECENT = 3600.0  # seconds
_PATH = "/opt/tritonserver/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENTRYPOINT = b"""#!/bin/sh
# As NVIDIA's does it: a banner first, then the command.
echo
echo "============================="
echo "== Triton Inference Server =="
echo "============================="
echo
exec "$@"
"""
_MPIRUN = b"""#!/bin/sh
OMPI_COMM_WORLD_SIZE=1
for word in "$@"; do [ "$word" != : ] || OMPI_COMM_WORLD_SIZE=$((OMPI_COMM_WORLD_SIZE + 1)); done
export OMPI_COMM_WORLD_SIZE
# Runs what stands for rank 0, which here holds the whole engine; NVIDIA's other ranks serve nothing either.
[ "$1 $2 $3" = "--allow-run-as-root -n 1" ] || { echo "mpirun: not as NVIDIA's launcher calls it: $*" >&2; exit 2; }
shift 3
words=$#
first=1
while [ "$words" -gt 0 ]; do
    word=$1
    shift
    words=$((words - 1))
    [ "$word" != : ] || first=0
    [ "$first" = 0 ] || set -- "$@" "$word"
done
exec "$@"
"""
_WORKER = b"""#!/bin/sh
# What the orchestrator starts for each rank; the stand-in's backend only looks whether it is there.
"""
LORA_INPUTS = """
input { name: "lora_id" data_type: TYPE_UINT64 dims: [ 1 ] optional: true }
input { name: "lora_name" data_type: TYPE_STRING dims: [ 1 ] optional: true }
input { name: "lora_path" data_type: TYPE_STRING dims: [ 1 ] optional: true }
input { name: "lora_ckpt_source" data_type: TYPE_STRING dims: [ 1 ] optional: true }
"""
"""What config.pbtxt of the llmapi model has more in images of after May 2026; its model.py knows them already here."""
_PROGRAM = """#!/usr/bin/python3
import sys
from {module} import main
sys.exit(main())
"""
_METADATA = "Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: {version}\nSummary: forge's stand-in for TensorRT-LLM\n"


@dataclass(frozen=True)
class Release:
    """Which image is stood in for. Without ``engine_path`` it holds no examples and no skeletons of engines, only llmapi."""

    reference: str = REFERENCE
    tag: str = "25.08"
    tensorrt_llm: str = "0.21.0"
    engine_path: bool = True

    def parts(self, at: str) -> dict[str, File | Link]:
        """What makes it this image, beside Triton; ``at`` is where its Python keeps packages."""
        made = under(HERE / "backend", "opt/tritonserver/backends/tensorrtllm", ("model.py",))
        made |= _tensorrt_llm(at, self) | _llmapi() | (_engine_path() if self.engine_path else {})
        for source in twin_sources():
            if "/twin/" in source.path:
                made[f"{at}/forge/{source.path.partition('/')[2]}"] = File(source.content.encode())
        return made

    @property
    def brought(self) -> tuple[str, ...]:
        """Distributions of the tests' own environment that NVIDIA's image holds too."""
        return ("pip", "PyYAML", "sentencepiece")


def rootfs(environment: Path, release: Release = Release()) -> Tree:
    """The image's files. ``environment`` is a serving environment of forge's, with nvidia-pytriton in it."""
    found = python(environment / "bin" / "python3")
    made = {**tree(found), **_triton(environment), **_packages(environment, found, release.brought)}
    made |= release.parts(str(found.packages).lstrip("/"))
    # Wheels link to nothing that these do not. What Triton's wheel brings is found beside it, and stands in the image already.
    needed = libraries(read_layout(environment).server_programs(), made)
    own = str(environment.resolve()).lstrip("/")
    return {**made, **{path: entry for path, entry in needed.items() if not path.startswith(own)}}


def settings(release: Release = Release()) -> Settings:
    """What its containers start with."""
    env = {
        "PATH": _PATH,
        "NVIDIA_TRITON_SERVER_VERSION": release.tag,
        "NVIDIA_PRODUCT_NAME": "Triton Server",
        **dict.fromkeys(("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE"), f"/{BUNDLE}"),
    }
    return Settings(
        env, ("/opt/nvidia/nvidia_entrypoint.sh",), ("/bin/sh",), "/opt/tritonserver", {"forge.standin": release.tag}
    )


def archive(environment: Path, release: Release = Release(), kept: Path | None = None) -> Image:
    """An archive for ``docker load``, made once for one content and kept in ``kept`` (FORGE_TEST_HOME, or the system's
    temporary folder); the image's id is the same each time."""
    home = Path(kept or os.environ.get("FORGE_TEST_HOME") or tempfile.gettempdir()) / "standin"
    home.mkdir(parents=True, exist_ok=True)
    files, start = rootfs(environment, release), settings(release)
    place = home / f"{release.tag}-{key(files, start)[:32]}.tar"
    note = place.with_suffix(".json")
    with FileLock(place.with_suffix(".lock")):
        if note.exists():
            return replace(Image(place, "", release.reference), id=msgspec.json.decode(note.read_bytes(), type=str))
        _forget(home, release.tag)
        image = write(files, start, release.reference, place.with_suffix(".new"))
        os.replace(image.archive, place)
        note.write_bytes(msgspec.json.encode(image.id))
    return replace(image, archive=place)


def _forget(home: Path, tag: str) -> None:
    """Clear away what older sources made; what is recent may be in somebody's hands."""
    for old in home.glob(f"{tag}-*"):
        if old.suffix in {".tar", ".json", ".new", ".layer"} and time.time() - old.stat().st_mtime > _RECENT:
            old.unlink(missing_ok=True)


def script(name: str) -> Path:
    """A script of the image, by its path under /app, to be run on this machine with PYTHONPATH at ``library()``."""
    return HERE / "app" / name


def library() -> Path:
    """The folder that holds the stand-in's package tensorrt_llm."""
    return HERE / "lib"


def _triton(environment: Path) -> dict[str, File | Link]:
    layout = read_layout(environment)
    made: dict[str, File | Link] = {"opt/tritonserver/bin/tritonserver": File(layout.server, 0o755)}
    for file in layout.python_backend():
        mode = 0o755 if file.name.endswith("stub") else 0o644
        made[f"opt/tritonserver/backends/python/{file.name}"] = File(file, mode)
    made |= under(layout.packages / "nvidia_pytriton.libs", "nvidia_pytriton.libs")
    made["opt/nvidia/nvidia_entrypoint.sh"] = File(_ENTRYPOINT, 0o755)
    return made


def _packages(environment: Path, found: Python, brought: tuple[str, ...]) -> dict[str, File | Link]:
    layout = read_layout(environment)
    wanted = {each.partition("==")[0] for each in PACKAGES} - {"llvmlite"}  # 170 MB for speed, which nobody asks of it
    at = str(found.packages).lstrip("/")
    made = packages([name for name in brought if _has(name)], found.packages)
    for each in distributions(path=[str(layout.packages)]):
        if each.name.lower() in wanted:
            names = [str(file) for file in each.files or () if ".." not in file.parts and "tests" not in file.parts]
            names += [cache_from_source(name) for name in names if name.endswith(".py")]
            made |= under(layout.packages, at, {name for name in names if (layout.packages / name).exists()})
    for program in ("pip", "pip3"):
        made[f"usr/bin/{program}"] = File(_PROGRAM.format(module="pip._internal.cli.main").encode(), 0o755)
    return made


def _tensorrt_llm(at: str, release: Release) -> dict[str, File | Link]:
    information = f"{at}/tensorrt_llm-{release.tensorrt_llm}.dist-info"
    made = under(library(), at)
    version = f'"""The release whose command lines this stand-in speaks."""\n\n__version__ = "{release.tensorrt_llm}"\n'
    made[f"{at}/tensorrt_llm/version.py"] = File(version.encode())
    made[f"{information}/METADATA"] = File(_METADATA.format(version=release.tensorrt_llm).encode())
    made[f"{information}/INSTALLER"] = File(b"pip\n")
    listed = sorted(path.removeprefix(f"{at}/") for path in made)
    made[f"{information}/RECORD"] = File("".join(f"{path},,\n" for path in listed).encode())
    return made


def _engine_path() -> dict[str, File | Link]:
    made = under(HERE / "app" / "examples", "app/examples")
    for text in skeletons():
        made[f"app/all_models/inflight_batcher_llm/{text.path}"] = File(text.content.encode())
    made["usr/local/bin/mpirun"] = File(_MPIRUN, 0o755)
    made["opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"] = File(_WORKER, 0o755)
    program = _PROGRAM.format(module="tensorrt_llm.commands.build")
    made["usr/local/bin/trtllm-build"] = File(program.encode(), 0o755)
    return made


def _llmapi() -> dict[str, File | Link]:
    return under(HERE / "app" / "all_models", "app/all_models")


def _has(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def environ(inherited: Mapping[str, str]) -> dict[str, str]:
    """An environment in which the stand-in's scripts run on this machine."""
    return {**inherited, "PYTHONPATH": str(library()), "PYTHONDONTWRITEBYTECODE": "1"}
