"""Who may ask at the OpenAI port: whoever has its key, where it has one; and no web page of another site. Pure, but that a key
is read from its file.

A browser sends along which site a page is of (``Origin``) and what name it asked for (``Host``). Another site's page may send
without being let read, so its origin is refused. A site that has its own name resolve to this machine (DNS rebinding) is of
one origin with what it asks: it is known by that name, which is none of the loopback's.

Programs and proxies of this machine may use other names. A browser is known by what it adds to each request, and what no
page can take away: ``Accept-Language`` always, ``Sec-Fetch-*`` on top where it trusts the address.
"""

import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from forge.errors import ServerError
from forge.files import texts
from forge.serve.openai.api_errors import Fault

_HOST = re.compile(r"(localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d+)?", re.IGNORECASE)
_KEY = re.compile(r"[!-~]{8,512}")
_MOZILLA = "Mozilla/"
"""What every browser begins its name with; a page may have it say another, so this alone would not do."""
_OPEN = ("/live", "/health")
"""Paths that say nothing of anybody's words: what restarts a server by them has no key."""
_ASSETS = re.compile(r"/(ui/[\w.-]+\.(js|css|svg))?")
"""The page itself, which holds nothing: it asks for the key, and for all else with it."""


class Access(Struct, frozen=True):
    """``local``: it listens on the loopback alone. ``key``: what to show in ``Authorization: Bearer``; empty for nothing."""

    local: bool
    key: str = ""

    @property
    def page(self) -> bool:
        """Whether there is a page to look at: for programs of this machine, or for who has the key."""
        return self.local or bool(self.key)

    def require(self, path: str, headers: Mapping[str, str]) -> None:
        """Fault for what is not let in; ``headers`` by their names in small letters."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if "content-length" in headers and "transfer-encoding" in headers:
            raise Fault(
                400, "where its body ends is said twice, which a proxy may read in another way than this", code="framing"
            )
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise Fault(403, f"a page of {origin} asks, and this is {host}: other sites' pages are not served", code="origin")
        if self.local and not self.key and (_own(path) or _browser(headers)) and not _HOST.fullmatch(host):
            said = f"this answers to localhost and 127.0.0.1, and was asked for as {host or 'nothing'}"
            hint = "where a proxy stands before it, have that send Host: localhost; or ask for a key (--api-key-file)"
            raise Fault(421, f"{said}; {hint}", code="host")
        if self.key and path not in _OPEN and not _ASSETS.fullmatch(path):
            self._require_key(headers.get("authorization", ""))

    def _require_key(self, authorization: str) -> None:
        scheme, _, shown = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secrets.compare_digest(shown.strip().encode(), self.key.encode()):
            said = "wrong" if authorization else "missing"
            raise Fault(401, f"the key is {said}: this port asks for Authorization: Bearer KEY", code="invalid_api_key")


def _own(path: str) -> bool:
    return path == "/" or path.startswith("/ui/")


def _browser(headers: Mapping[str, str]) -> bool:
    """Whether it may be a browser that asks: no page can have one leave all of these out."""
    marks = {"origin", "accept-language"}
    return any(name in marks or name.startswith("sec-fetch-") for name in headers) or _MOZILLA in headers.get("user-agent", "")


def key(file: Path) -> str:
    """The key that ``file`` holds; ServerError where it holds none."""
    try:
        said = texts.content(file).decode().strip()
    except (texts.Odd, UnicodeDecodeError) as error:
        raise ServerError("the file with the key cannot be read", where=str(file), hint=str(error)) from error
    if not _KEY.fullmatch(said):
        hint = "one line of 8 to 512 letters, digits and signs: `openssl rand -hex 24 > FILE`"
        raise ServerError("the file holds no key for the OpenAI port", where=str(file), hint=hint)
    return said
