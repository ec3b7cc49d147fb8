"""A file tree as data, and archives of it that are the same bytes each time."""

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

DIRECTORY_MODES = {"tmp": 0o1777, "var/tmp": 0o1777}


@dataclass(frozen=True)
class File:
    """A file of the tree; what it holds is a file of this machine, or bytes."""

    content: Path | bytes
    mode: int = 0o644


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


Tree = Mapping[str, File | Link]
"""Path without a leading slash -> what stands there. Folders are implied; one that is empty is named with a trailing slash."""


@dataclass(frozen=True)
class Image:
    """An image that ``docker load`` takes. ``id`` is what Docker will call it, ``reference`` the tag it gets."""

    archive: Path
    id: str
    reference: str


@dataclass(frozen=True)
class Settings:
    """What an image's containers start with."""

    env: Mapping[str, str] = field(default_factory=dict[str, str])
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ("/bin/sh",)
    folder: str = "/"
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


def under(folder: Path, at: str, names: Iterable[str] | None = None) -> dict[str, File | Link]:
    """The files of ``folder`` (all, or these) as a tree below ``at``, without byte code; links stay links."""
    wanted = sorted(names) if names is not None else sorted(_walk(folder))
    found: dict[str, File | Link] = {}
    for name in wanted:
        path = folder / name
        if path.is_symlink() and not os.readlink(path).startswith("/"):
            found[f"{at}/{name}"] = Link(os.readlink(path))
        else:
            found[f"{at}/{name}"] = File(path, 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
    return found


def _walk(folder: Path) -> Iterable[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if each != "__pycache__"]
        yield from (os.path.relpath(os.path.join(place, each), folder) for each in files)


def key(tree: Tree, settings: Settings) -> str:
    """A digest of all that goes into an archive."""
    digest = hashlib.sha256(json.dumps([repr(settings)]).encode())
    for path, entry in sorted(tree.items()):
        digest.update(path.encode() + b"\0")
        match entry:
            case Link(target):
                digest.update(b"link " + target.encode())
            case File(content, mode):
                digest.update(f"file {mode:o} ".encode() + _sha256(content))
    return digest.hexdigest()


def _sha256(content: Path | bytes) -> bytes:
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def write(tree: Tree, settings: Settings, reference: str, into: Path) -> Image:
    """Write an archive for ``docker load``: one layer, no times and no owners, so that the id is a digest of the content."""
    layer = into.with_suffix(".layer")
    _layer(tree, layer)
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = json.dumps(_config(settings, digest), sort_keys=True).encode()
    name = hashlib.sha256(config).hexdigest()
    manifest = [{"Config": f"{name}.json", "RepoTags": [reference], "Layers": [f"{digest}/layer.tar"]}]
    with tarfile.open(into, "w") as archive:
        _add(archive, f"{name}.json", File(config))
        _add(archive, f"{digest}/layer.tar", File(layer))
        _add(archive, "manifest.json", File(json.dumps(manifest).encode()))
    layer.unlink()
    return Image(into, f"sha256:{name}", reference)


def _layer(tree: Tree, into: Path) -> None:
    folders = sorted({str(parent) for path in tree for parent in Path(path).parents} - {"."})
    empty = [path.rstrip("/") for path in tree if path.endswith("/")]
    with tarfile.open(into, "w") as archive:
        for folder in sorted({*folders, *empty}):
            about = tarfile.TarInfo(folder)
            about.type, about.mode = tarfile.DIRTYPE, DIRECTORY_MODES.get(folder, 0o755)
            archive.addfile(about)
        for path, entry in sorted(tree.items()):
            if not path.endswith("/"):
                _add(archive, path, entry)


def _add(archive: tarfile.TarFile, path: str, entry: File | Link) -> None:
    about = tarfile.TarInfo(path)
    if isinstance(entry, Link):
        about.type, about.linkname, about.mode = tarfile.SYMTYPE, entry.target, 0o777
        archive.addfile(about)
        return
    about.mode = entry.mode
    content = entry.content
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        about.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        archive.addfile(about, file)


def _config(settings: Settings, digest: str) -> dict[str, object]:
    born = "1970-01-01T00:00:00Z"
    return {
        "architecture": "arm64" if os.uname().machine == "aarch64" else "amd64",
        "os": "linux",
        "created": born,
        "config": {
            "Env": [f"{name}={value}" for name, value in settings.env.items()],
            "Entrypoint": list(settings.entrypoint),
            "Cmd": list(settings.command),
            "WorkingDir": settings.folder,
            "Labels": dict(settings.labels),
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created": born, "created_by": "forge's tests"}],
    }
