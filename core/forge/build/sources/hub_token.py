"""The token for the Hugging Face hub, from where huggingface_hub itself looks; what no request can carry is an error."""

import re
from collections.abc import Mapping
from pathlib import Path

from forge.errors import SourceError
from forge.files import texts

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_MOST = 1 << 16
"""Bytes of the longest file of a token that is read."""
_CARRIED = re.compile(r"[!-~]*")
"""What stands for itself in a request's header after "Bearer": ASCII that shows, without blanks."""


def find(environ: Mapping[str, str]) -> str:
    """The token, empty where nobody is logged in. SourceError names the place of one that cannot be used, never its text."""
    for variable in VARIABLES:
        hint = f"set {variable} to the token alone, as the hub shows it, or unset it"
        if token := _usable(environ.get(variable, ""), variable, hint):
            return token
    file = _file(environ)
    try:
        text = texts.content(file, _MOST).decode(errors="replace")
    except texts.Missing:
        return ""
    except texts.Odd as odd:
        raise SourceError(f"the hub's token cannot be read: {odd}", where=str(file), hint=_anew(file)) from None
    return _usable(text, str(file), _anew(file))


def _file(environ: Mapping[str, str]) -> Path:
    """Where `hf auth login` leaves it."""
    cache = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".cache")
    return Path(environ.get("HF_TOKEN_PATH") or Path(environ.get("HF_HOME") or cache / "huggingface") / "token").expanduser()


def _anew(file: Path) -> str:
    return f"write it anew with `hf auth login`, set HF_TOKEN, or move {file.name} away to ask without one"


def _usable(text: str, where: str, hint: str) -> str:
    """Lines are joined and blanks around it cut, as huggingface_hub does."""
    token = text.replace("\r", "").replace("\n", "").strip()
    if not _CARRIED.fullmatch(token):
        raise SourceError(f"the hub's token cannot be sent: {_wrong(token)}", where=where, hint=hint)
    return token


def _wrong(token: str) -> str:
    found = next(letter for letter in token if not _CARRIED.fullmatch(letter))
    if found == "\0":
        return "a NUL stands in it"
    if found.isspace():
        return "a blank stands in it"
    return "a control character stands in it" if found.isascii() else "something stands in it that is not ASCII"
