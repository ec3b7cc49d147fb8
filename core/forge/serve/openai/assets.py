"""The page's files, which are package data, and what a browser is told to forbid them."""

from importlib.resources import files
from pathlib import PurePath

from starlette.responses import Response

_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Scripts and styles come from here alone, none stands in the page; no text can become markup (Trusted Types)."""
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "cache-control": "no-cache",
}


class Assets:
    """The files by name, read once."""

    def __init__(self) -> None:
        self._held = {
            each.name: each.read_bytes()
            for each in files("forge.serve.openai").joinpath("page").iterdir()
            if PurePath(each.name).suffix in _TYPES
        }

    def response(self, name: str) -> Response | None:
        """One of them; None where there is no such."""
        if name not in self._held:
            return None
        kind = f"{_TYPES[PurePath(name).suffix]}; charset=utf-8"
        return Response(self._held[name], headers={**_HEADERS, "content-type": kind})
