"""A program's output: whole to a file, line by line to a listener, its end kept for an error."""

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from forge.diagnoses import Diagnosis, diagnose
from forge.errors import HostError, StepError
from forge.files.trees import reason
from forge.machine.containers import Line

_LAST = 20
"""Lines of a failed program's output that an error shows."""
_LONGEST = 64 * 1024
"""Bytes after which a line without an end is told all the same."""
_READ = 512 * 1024
"""Bytes of a log's end in which a diagnosis is looked for."""
_KEPT = "fix what it names and build again; finished steps are kept"


class Transcript:
    """Writes what comes, of two streams, in the order in which it comes; lines of one stream are not torn by the other."""

    def __init__(self, path: Path, line: Line) -> None:
        self._path = path
        self._line = line
        self._rest = {1: b"", 2: b""}
        self._last: deque[str] = deque(maxlen=_LAST)

    def __enter__(self) -> "Transcript":
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what was said is in the file when forge is killed.
            self._file = self._path.open("wb", buffering=0)
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None:
            for stream in self._rest:
                self._tell(self._rest[stream])
                self._rest[stream] = b""

    def write(self, data: bytes, stream: int = 1) -> None:
        """Take a piece of standard output (1) or standard error (2)."""
        try:
            self._file.write(data)
        except OSError as error:
            raise self._unwritable(error) from error
        # A progress bar ends its states with a carriage return.
        *whole, rest = (self._rest[stream] + data).replace(b"\r", b"\n").split(b"\n")
        if len(rest) > _LONGEST:
            whole, rest = [*whole, rest], b""
        self._rest[stream] = rest
        for raw in whole:
            self._tell(raw)

    def _tell(self, raw: bytes) -> None:
        if text := raw.decode(errors="replace").rstrip():
            self._last.append(text)
            self._line(text)

    def failure(self, what: str, table: Iterable[Diagnosis]) -> StepError | HostError:
        """What happened, the last lines, the log's place, and what to do where the text is known."""
        known = diagnose(f"{self._end()}\n{what}", table)
        kind = HostError if known is not None and known.host else StepError
        hint = str(known) if known else f"that file holds all of its output; {_KEPT}"
        return kind("\n".join((what, *self._last)), where=str(self._path), hint=hint)

    def require_promised(self, program: str, out: Path, promised: Iterable[str], table: Iterable[Diagnosis]) -> None:
        """The same for a program that ended well and has not left in ``out`` what was promised, or left it empty."""
        if broken := [path for path in promised if not (out / path).is_file() or not (out / path).stat().st_size]:
            raise self.failure(f"{program} ended well and did not write {', '.join(broken)}", table)

    def _end(self) -> str:
        with self._path.open("rb") as file:
            file.seek(max(0, self._path.stat().st_size - _READ))
            return file.read().decode(errors="replace")

    def _unwritable(self, error: OSError) -> HostError:
        return HostError(
            f"the log cannot be written: {reason(error, self._path.parent)}",
            where=str(self._path),
            hint="free space or permissions there; `forge cache gc` makes room",
        )
