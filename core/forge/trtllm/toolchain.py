"""What is read out of an image once per digest: skeletons, scripts and help texts, as files of one artifact.

Layout: ``skeletons/<role>/...`` (NVIDIA's inflight_batcher_llm), ``llmapi/...``, ``files/<path in the image>`` for scripts, and
``help/<program>.txt``. Pure but for reading the artifact back.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from forge.files import texts
from forge.schema.values import Command, Role, TextFile

SKELETONS = "/app/all_models/inflight_batcher_llm"
LLMAPI = "/app/all_models/llmapi/tensorrt_llm"
PYTHON = ("python3", "python")


class Tooling(Struct, frozen=True):
    """An image's tools as text. ``scripts`` by path in the image, ``helps`` by program (a script's path or a command)."""

    skeletons: tuple[TextFile, ...]
    llmapi: tuple[TextFile, ...]
    scripts: Mapping[str, str]
    helps: Mapping[str, str]


def template() -> str:
    """forge's own Dockerfile for family images (also in Dockerfiles/); a person's own one takes its place."""
    return texts.part("forge.trtllm", "family.Dockerfile")


def program(command: Command) -> tuple[str, ...]:
    """What a command starts, without its arguments: ``("python3", "/app/x.py")`` or ``("trtllm-build",)``."""
    return command.argv[: 2 if command.argv[0] in PYTHON else 1]


def programs(commands: Iterable[Command]) -> tuple[tuple[str, ...], ...]:
    """Each program once, in order."""
    return tuple(dict.fromkeys(program(command) for command in commands))


def paths(wanted: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The paths to read out of an image for these programs."""
    return (SKELETONS, LLMAPI, *(words[1] for words in wanted if len(words) == 2))


def files(contents: Mapping[str, bytes], helps: Mapping[str, str]) -> dict[str, bytes]:
    """Where what was read out of an image stands in the artifact."""
    laid: dict[str, bytes] = {}
    for path, content in contents.items():
        if path.startswith(f"{SKELETONS}/"):
            laid[f"skeletons/{path.removeprefix(SKELETONS + '/')}"] = content
        elif path.startswith(f"{LLMAPI}/"):
            laid[f"llmapi/{path.removeprefix(LLMAPI + '/')}"] = content
        else:
            laid[f"files{path}"] = content
    return laid | {f"help/{name.strip('/')}.txt": text.encode() for name, text in helps.items()}


def read(folder: Path) -> Tooling:
    """The tooling that an artifact holds."""
    return Tooling(
        skeletons=tuple(text for text in _texts(folder / "skeletons") if _is_ours(text.path)),
        llmapi=_texts(folder / "llmapi"),
        scripts={f"/{text.path}": text.content for text in _texts(folder / "files")},
        helps={_program(text.path): text.content for text in _texts(folder / "help")},
    )


def _is_ours(path: str) -> bool:
    """NVIDIA's folder also holds examples of other pipelines; five of them are what a recipe becomes."""
    return path.split("/", 1)[0] in {str(role) for role in Role}


def _program(path: str) -> str:
    name = path.removesuffix(".txt")
    return f"/{name}" if "/" in name else name


def _texts(folder: Path) -> tuple[TextFile, ...]:
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    return tuple(TextFile(file.relative_to(folder).as_posix(), file.read_text("utf-8", errors="replace")) for file in found)
