"""The page's files, which are package data, and how they are sent (``assets.toml``)."""

from importlib.resources import files
from pathlib import PurePath

from msgspec import Struct
from starlette.responses import Response

from forge.files import texts


class _Sent(Struct):
    types: dict[str, str]
    """Ending -> media type; other files are none of the page's."""
    headers: dict[str, str]


class Assets:
    """The files by name, read once."""

    def __init__(self) -> None:
        self._sent = texts.shipped("forge.serve.openai", "assets.toml", _Sent)
        self._held = {
            each.name: each.read_bytes()
            for each in files("forge.serve.openai").joinpath("page").iterdir()
            if PurePath(each.name).suffix in self._sent.types
        }

    def response(self, name: str) -> Response | None:
        """One of them; None where there is no such."""
        if name not in self._held:
            return None
        kind = f"{self._sent.types[PurePath(name).suffix]}; charset=utf-8"
        return Response(self._held[name], headers={**self._sent.headers, "content-type": kind})
