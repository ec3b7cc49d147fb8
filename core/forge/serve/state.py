"""What is kept of servers: a state file and a log for each repository, and the guardian of those in the foreground."""

import os
import secrets
import shutil
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout
from msgspec import Struct

import forge
from forge.errors import ServerError
from forge.files.interpreter import own_python
from forge.machine import processes, stillness
from forge.serve import vitals
from forge.serve.server_types import Running
from forge.serve.vitals import Healths

DISMISSED = b"."
"""What forge writes when it has ended the server itself."""


_KEY = ".key"
"""Suffix of the file that holds the secret of a server's model control, beside its log."""
DOOR_KEY = ".openai.key"
"""Suffix of the file with the key of its OpenAI port, drawn or copied at its start."""
HEALTH = ".health"
"""Suffix of the note on what was done about its models, beside its state file."""
ENDED = ".ended"
"""Suffix of the note on how a server ended that nobody asked to."""
DIED_LOG = ".died.log"
"""Suffix of the log of a Triton that died, beside that of its successor."""
_ASKED = ".asked"
"""Suffix of the note that somebody stops a server."""
VIEW = ".view"
"""Suffix of the folder that stands for several repositories in a container, beside the server's log."""


class States:
    """The state files in ``folder``, each there from before a server starts until nothing is left of it.

    A server's is named by the first of its repositories. What another user laid there is none: it would say whom to end, and
    where to send a secret.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def marker(self, repository: Path) -> str:
        """What tells this repository's server, and all that it starts, from every other's."""
        return f"forge-serve-{_digest(f'{self._folder}:{repository}')}"

    def file(self, repository: Path) -> Path:
        return self._folder / f"{_digest(str(repository))}.json"

    def log(self, repository: Path) -> Path:
        return self.file(repository).with_suffix(".log")

    @contextmanager
    def lock(self, repositories: Iterable[Path], patience: float = 0.0) -> Generator[None]:
        """Held while a server starts on them or its models change; Timeout when another forge holds it all the time,
        ServerError where the folder is another user's."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if not _own(self._folder.stat()):
            raise ServerError(
                "what is kept of servers here belongs to another user, who could read and change it",
                where=str(self._folder),
                hint="servers of yours need a home of yours: FORGE_HOME=FOLDER",
            )
        self._folder.chmod(0o700)
        with ExitStack() as stack:
            for file in sorted({self.file(repository).with_suffix(".lock") for repository in repositories}):
                stack.enter_context(FileLock(file, timeout=patience, mode=0o600))
            yield

    def busy(self, running: Running) -> bool:
        """Whether somebody starts it, or changes its models, just now."""
        try:
            with self.lock(map(Path, running.repositories)):
                return False
        except Timeout:
            return True

    def keep(self, running: Running) -> None:
        """Write the state file; a reader sees the old one or the new one."""
        _put(self.file(Path(running.repository)), running)

    def note(self, running: Running, healths: Healths) -> None:
        """Write what is known of its models' health; a reader sees the old note or the new one."""
        _put(self.file(Path(running.repository)).with_suffix(HEALTH), healths)

    def health(self, running: Running) -> Healths:
        """What is noted of its models."""
        try:
            return vitals.read(self.file(Path(running.repository)).with_suffix(HEALTH).read_bytes())
        except OSError:
            return {}

    def draw_key(self, running: Running) -> None:
        """A new secret for a server that is about to start; what befell the models of one before it is forgotten."""
        for note in (HEALTH, ENDED, _ASKED):
            self.file(Path(running.repository)).with_suffix(note).unlink(missing_ok=True)
        key_file(running).unlink(missing_ok=True)
        make_private(key_file(running), secrets.token_urlsafe(32).encode())

    def forget(self, repository: Path, why: str = "") -> None:
        """Forget a server; what it died of is noted first, so that whoever sees no server any more finds the reason."""
        ended = self.file(repository).with_suffix(ENDED)
        ended.unlink(missing_ok=True)
        if why:
            with suppress(OSError):  # a full disk: what is forgotten goes all the same
                make_private(ended, f"{repository}\n{why}".encode())
        self.file(repository).unlink(missing_ok=True)
        for note in (_KEY, DOOR_KEY, HEALTH, _ASKED):
            self.file(repository).with_suffix(note).unlink(missing_ok=True)
        shutil.rmtree(self.file(repository).with_suffix(VIEW), ignore_errors=True)

    def ask(self, running: Running) -> None:
        """Note that somebody stops it, whatever it dies of from now on."""
        with suppress(OSError):  # on a full disk, too, a server can be stopped
            make_private(self.file(Path(running.repository)).with_suffix(_ASKED))

    def asked(self, running: Running) -> bool:
        return self.file(Path(running.repository)).with_suffix(_ASKED).exists()

    def ended(self) -> dict[str, str]:
        """Repository that is there -> how its server ended, for those that nobody has asked to, or started again."""
        said: list[str] = []
        for file in sorted(self._folder.glob(f"*{ENDED}")):
            with suppress(OSError):  # it is started again just now
                said.append(file.read_text(encoding="utf-8", errors="replace"))
        return {place: why for place, _, why in (text.partition("\n") for text in said) if why and Path(place).is_dir()}

    def kept(self) -> tuple[Running, ...]:
        """What the state files say, whether or not it is still so."""
        read = (_read(file) for file in sorted(self._folder.glob("*.json")))
        return tuple(running for running in read if running is not None)


class Guard(Struct, frozen=True):
    """A guardian process, and the end of the pipe whose closing tells it that we are gone."""

    pid: int
    pipe: int

    @classmethod
    def post(cls, running: Running, state: Path, environ: Mapping[str, str]) -> "Guard":
        """Start one for a server, in the environment that its end needs."""
        words = (running.shared_memory, str(state), running.log, running.container, running.nonce)
        argv = (own_python(), "-P", "-m", "forge.serve.guardian", *words)
        env = {**environ, "PYTHONPATH": str(Path(forge.__file__).parents[1])}
        reading, writing = os.pipe()
        try:
            pid = processes.detached(argv, env, Path(os.devnull), hears=reading)
        finally:
            os.close(reading)
        return cls(pid, writing)

    def dismiss(self) -> None:
        """Tell it that nothing is left to guard, and see it off."""
        with suppress(BrokenPipeError):
            os.write(self.pipe, DISMISSED)
        os.close(self.pipe)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def cared_for(running: Running) -> bool:
    """Whether somebody starts a server again where it has died."""
    return bool(running.vigil) and processes.started(running.vigil) == running.vigil_started


def died(running: Running) -> str:
    """That a server does not run just now, as a sentence."""
    why = f": {running.crashes[-1].why}" if running.crashes and not running.pid else ""
    return f"its Triton died, and is being started again{why}"


def coming(running: Running) -> str:
    """That a server is not ready yet, as a sentence."""
    again = " again" if running.crashes else ""
    return f"its Triton (process {running.pid}) is being started{again}, and is not ready yet"


def stopped(running: Running) -> str:
    """That a server stands still, as a sentence; empty where it does not, or nobody sees that from here."""
    if not (running.started and stillness.stands(running.pid)):
        return ""
    on = f"`kill -CONT {running.pid}` has it go on" if processes.stopped(running.pid) else "whoever froze it has it go on"
    return f"Triton (process {running.pid}) stands still, by SIGSTOP, a debugger or a freezer: {on}"


def key_file(running: Running) -> Path:
    """Where the secret of its model control is; only the user that started it can read it."""
    return Path(running.log).with_suffix(_KEY)


def _put(file: Path, what: object) -> None:
    scratch = file.with_suffix(f".{os.getpid()}")
    make_private(scratch, msgspec.json.encode(what))
    scratch.replace(file)


def make_private(file: Path, content: bytes = b"") -> None:
    """Write a file that only this user can read, also where it was there before."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as opened:
        os.fchmod(opened.fileno(), 0o600)
        opened.write(content)


def _own(found: os.stat_result) -> bool:
    """Whether it is this user's; root, who may have been given another's home, takes everybody's."""
    return os.geteuid() in (0, found.st_uid)


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _read(file: Path) -> Running | None:
    """The state in ``file``; one that is damaged is removed, one that has just gone is no error."""
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as opened:
            return msgspec.json.decode(opened.read(), type=Running) if _own(os.fstat(opened.fileno())) else None
    except OSError:
        return None
    except msgspec.MsgspecError:
        file.unlink(missing_ok=True)
        return None
