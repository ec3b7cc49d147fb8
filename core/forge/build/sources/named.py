"""What a person means by the SOURCE that they name: a hub repository, a git URL, or something on this disk."""

import os
import re
from pathlib import Path

from forge.errors import SourceError
from forge.schema.values import Source

_PATH = "a path starts where you are; a hub id is OWNER/NAME; `forge search WORD` looks for one"


def source_of(text: str, revision: str, base: Path) -> Source:
    """What a person means by SOURCE: something on this disk if it is there, a git URL by its looks, else a hub repository.

    SourceError for an empty text, what looks like a path where nothing stands, and what is neither a file nor a folder.
    """
    if not text.strip():
        raise SourceError("the name of a checkpoint is empty", hint=f"{_PATH}; `.` is the current folder")
    local = Path(text).expanduser()
    remote = "://" in text or text.endswith(".git") or re.match(r"[\w.]+@[\w.-]+:", text) is not None
    if not remote and not local.exists() and (text.startswith((".", "/", "~")) or text.endswith(".gguf")):
        raise SourceError("there is no such file or folder", where=text, hint=_PATH)
    if remote or not local.exists():
        url = local.absolute().as_uri() if local.is_dir() else text
        return Source(git=url, revision=revision) if remote else Source(hub=text, revision=revision)
    if not (local.is_file() or local.is_dir()):
        raise SourceError("this is neither a file nor a folder", where=text, hint=_PATH)
    place = os.path.relpath(local.absolute(), base.absolute())
    return Source(gguf=place) if local.is_file() else Source(path=place)


def safe_name(name: str) -> str:
    """``name`` as a folder's: what a recipe would refuse becomes a dash."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:128] or "model"
