"""Runs the programs git and git-lfs: which environment they see, which addresses they may have, what their failures mean."""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

from forge.build.sources.lookups import OutOfReachError
from forge.diagnoses import Diagnosis, diagnose, read
from forge.errors import ForgeError, HostError, SourceError, StoreError
from forge.files import texts
from forge.machine.bonds import bound, temporary
from forge.machine.interrupt import Halt

PROTOCOLS = ("https", "ssh", "file")
PATIENCE = 120.0  # seconds for an answer about metadata
_WATCH = 0.1  # seconds between looks at a program that runs
_LAST = 4  # lines of git's own that an error shows
_KEPT = re.compile(r"GIT_(SSH\w*|SSL_\w+|HTTP_\w+|ASKPASS|EXEC_PATH|CONFIG_(GLOBAL|SYSTEM|NOSYSTEM|COUNT|KEY_\d+|VALUE_\d+))")
"""What of git's own variables a caller may say: how to get in. Which repository is meant, and what to trace, is forge's."""
_OURS = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": ":".join(PROTOCOLS),
    "GIT_AUTHOR_NAME": "forge",
    "GIT_AUTHOR_EMAIL": "forge@localhost",
    "GIT_COMMITTER_NAME": "forge",
    "GIT_COMMITTER_EMAIL": "forge@localhost",
    "LC_ALL": "C",
}
_SETTINGS = (
    # A person's own settings say how to get in; these are not left to them, for they run programs or leave some running.
    *("core.hooksPath=/dev/null", "gc.auto=0", "maintenance.auto=false", "fetch.recurseSubmodules=false"),
    "protocol.version=2",  # the first that gives a commit or a file by its id alone
    *("http.lowSpeedLimit=1", "http.lowSpeedTime=60"),  # nothing for a minute: the line is cut
    *("lfs.fetchinclude=", "lfs.fetchexclude=", "lfs.fetchrecentalways=false"),
)
_URL = re.compile(
    r"(?P<scheme>https|ssh)://(?:(?P<user>(?!-)[^/@\s]*)@)?(?P<host>[A-Za-z0-9\[][A-Za-z0-9.:\[\]_-]*)(?P<path>/[^\s]*)"
)
_SCP = re.compile(r"[A-Za-z0-9_.]+@[A-Za-z0-9][A-Za-z0-9.-]*:(?![-:])[^\s]+")
_FILE = re.compile(r"file:///[^\s]+")

_NETWORK = "check the network (proxy, VPN) and run again"
_NO_GIT = "install git and git-lfs (Debian and Ubuntu: apt install git git-lfs), then run again"
_NO_LFS = "install it (Debian and Ubuntu: apt install git-lfs; elsewhere: https://git-lfs.com), then run again"


@cache
def _failures() -> tuple[Diagnosis, ...]:
    return read(texts.part("forge.build.sources", "git_failures.toml")).rows


def address(text: str) -> str:
    """``text`` as git may be given it: https, ssh or file, without the user of an https URL.

    SourceError for anything else. A password is refused, since a source's address stands in locks and manifests.
    """
    shown = redacted(text)
    if _SCP.fullmatch(text) or _FILE.fullmatch(text):
        return text
    match = _URL.fullmatch(text)
    if match is None:
        hint = f"write a URL with {', '.join(f'{each}://' for each in PROTOCOLS)}, or user@host:path"
        raise SourceError("this is no address that forge gives to git", where=shown, hint=hint)
    if ":" in (match["user"] or ""):
        hint = "take it out of the URL and leave it to a git credential helper (`git help credentials`), or use ssh"
        raise SourceError("the URL holds a password, which would end up in locks and manifests", where=shown, hint=hint)
    return text if match["scheme"] == "ssh" else f"{match['scheme']}://{match['host']}{match['path']}"


def redacted(text: str) -> str:
    """``text`` without the credentials of the URLs in it; a user's git settings can put some where the recipe had none."""
    return re.sub(r"(?<=://)[^\s'\"]*@", "***@", text)


class Git:
    """One bare repository, made by the first command, that knows one remote: ``origin``."""

    def __init__(self, folder: Path, url: str, environ: Mapping[str, str], halt: Halt | None = None) -> None:
        self.folder = folder
        self._halt = halt or Halt()
        self.url = address(url)
        kept = {name: value for name, value in environ.items() if not name.startswith("GIT_") or _KEPT.fullmatch(name)}
        self._environ = {**kept, **_OURS}
        # What it holds itself, not what a person keeps for all; git-lfs would look there for a remote on this machine, too.
        storage = () if self.url.startswith("file:") else (f"lfs.storage={folder / 'lfs'}",)
        self._settings = [word for each in (*_SETTINGS, *storage) for word in ("-c", each)]

    def init(self) -> None:
        """Make it, without the hooks that a person's template may bring."""
        self.ask("init", "--bare", "--quiet", "--template=", str(self.folder))
        self.ask("config", "remote.origin.url", self.url)

    def ask(self, *words: str, told: bytes = b"") -> bytes:
        """Standard output of a git command that answers with little."""
        with tempfile.TemporaryFile(dir=temporary()) as out:
            self.run(*words, told=told, out=out, patience=PATIENCE)
            out.seek(0)
            return out.read()

    def run(
        self,
        *words: str,
        told: bytes = b"",
        out: IO[bytes] | None = None,
        patience: float = 0.0,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """Run a git command to its end, which it is given ``patience`` seconds for (0: as long as it takes).

        ``watch`` is called while it runs. It has no terminal, and nothing that it started is left behind.
        """

        def watched() -> None:
            self._halt.check()
            watch()

        argv = ("git", *self._settings, f"--git-dir={self.folder}", *words)
        with tempfile.TemporaryFile(dir=temporary()) as said, tempfile.TemporaryFile(dir=temporary()) as asked:
            asked.write(told)
            asked.seek(0)
            try:
                process = subprocess.Popen(
                    argv,
                    env=bound(self._environ),
                    cwd=self.folder.parent,
                    stdin=asked,
                    stdout=out or subprocess.DEVNULL,
                    stderr=said,
                    start_new_session=True,  # no terminal to ask on, and one group to end
                )
            except FileNotFoundError as error:
                raise HostError("git is not installed", hint=_NO_GIT) from error
            try:
                in_time = _wait(process, patience, watched)
            finally:
                _end(process)
            said.seek(0)
            lines = redacted(said.read().decode("utf-8", "replace")).splitlines()
        if not in_time:
            raise OutOfReachError(f"git had no answer for {patience:.0f} seconds", where=self.url, hint=_NETWORK)
        if process.returncode:
            raise meaning(lines, self.url, words[0])


def meaning(lines: list[str], url: str, doing: str) -> ForgeError:
    """What git's last words mean; they stand in the error."""
    said = [line.strip() for line in lines if line.strip() and not line.startswith("hint:")]
    known = diagnose("\n".join(said), _failures())
    told = "\n    ".join(said[-_LAST:]) or "it said nothing"
    if known is None:
        return SourceError(f"git {doing} failed\n    {told}", where=url, hint="try the same with git yourself")
    kind = {"disk-full": StoreError, "out-of-reach": OutOfReachError}.get(known.name, SourceError)
    return kind(f"{known.meaning}\n    {told}", where=url, hint=known.fix)


def no_lfs(url: str) -> HostError:
    return HostError("its weights are kept by git-lfs, which is not installed", where=url, hint=_NO_LFS)


def _wait(process: subprocess.Popen[bytes], patience: float, watch: Callable[[], None]) -> bool:
    """Whether it ended in time. Most commands take milliseconds, and some hours."""
    began, pause = time.monotonic(), 0.005
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(pause)
            return True
        pause = min(2 * pause, _WATCH)
        watch()
        if patience and time.monotonic() - began > patience:
            return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """One that has not ended ends now, with its group: git's transports and git-lfs go on alone otherwise."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
