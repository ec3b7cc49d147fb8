"""What the twin is served with: the packages of its private environment, and the sources laid beside Triton's backends.

Pure, so that a plan can put both into a key. The versions are exact and complete: nothing else is in the environment unless a
recipe asks for it, so the key says what is inside. They were run together with Triton 2.51, which nvidia-pytriton carries.
"""

from functools import cache

from forge.files import texts
from forge.schema.values import Environment, Host, TextFile
from forge.schema.wheels import canonical, requested

PYTHONS = ("3.12", "3.11")
"""Minor versions the twin can be served with: forge needs 3.11, and numpy below 2 has no wheels for 3.13."""
PLATFORMS = ("linux-x86_64", "linux-aarch64")
"""Where nvidia-pytriton has wheels."""
PACKAGES = (
    "jinja2==3.1.6",
    "llvmlite==0.50.0",
    "markupsafe==3.0.4",
    "numpy==1.26.4",
    "safetensors==0.8.0",
    "tokenizers==0.23.3",
)
"""numpy stays below 2: with 2.x any STRING tensor kills Triton's Python stub. llvmlite makes the decoder's machine code."""
TRITON = "nvidia-pytriton==0.7.0"
"""Brings tritonserver and the Python backend; without its own dependencies, which a server does not use."""
ENTRANCE = 'from twin.backend import TritonPythonModel\n\n__all__ = ["TritonPythonModel"]\n'
"""model.py of the Python-based backend ``tensorrtllm``: Triton's stub puts its folder on sys.path."""


def serving_environment(host: Host, extra_packages: tuple[str, ...] = (), pins: tuple[str, ...] = ()) -> Environment:
    """The environment that serves the twin on ``host``; ``extra_packages`` come with their dependencies.

    What forge pins stays pinned whatever the extra packages would like; of what a lock's ``pins`` name it has that version.
    """
    locked = {canonical(name): version for name, _, version in (each.partition("==") for each in pins)}
    own = (each.partition("==") for each in (PACKAGES if host.triton else (*PACKAGES, TRITON)))
    bare = tuple(f"{name}=={locked.get(canonical(name), version)}" for name, _, version in own)
    return Environment(host.python, host.platform, requested(extra_packages), bare)


def twin_sources() -> tuple[TextFile, ...]:
    """The twin as a Triton backend: ``tensorrtllm/model.py`` and package ``twin`` beside it."""
    return (TextFile("tensorrtllm/model.py", ENTRANCE), *_sources("tensorrtllm/twin", converter=False))


def converter_sources() -> tuple[TextFile, ...]:
    """What turns a GGUF into a checkpoint, alone: a checkpoint's key must not move when the decoder does."""
    return _sources("twin", converter=True)


@cache
def _sources(folder: str, *, converter: bool) -> tuple[TextFile, ...]:
    held = texts.code("forge.twin")
    wanted = (name for name in held if name == "__init__.py" or name.startswith("gguf") == converter)
    return tuple(TextFile(f"{folder}/{name}", held[name]) for name in wanted)
