"""Reads from Triton's log which models did not load, and why, and whether it is done with its requests."""

import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from forge.diagnoses import diagnose
from forge.machine.unlisted import SHOWN, SHUT
from forge.serve.server_types import Running

_FAILED = re.compile(r"failed to load '(?P<model>[^']+)'[^:]*: (?P<why>.*)")
_DEPENDS = re.compile(r"ensemble '(?P<model>[^']+)' depends on '(?P<why>[^']+)' which has no loaded version")
_ENTRY = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.|error: |terminate called ")
"""How a log entry begins, or C++'s word of an exception that nobody caught; other lines continue the one before."""
SERVED = b"All models are stopped, unloading models"
_END = 1 << 16
"""Bytes of a log's end that are read."""
_CAUGHT = re.compile(r"^Signal \((\d+)\) received|^mpirun noticed that process rank .* exited on signal (\d+)", re.MULTILINE)
"""How Triton says what signal came, and mpirun that a rank died of one."""
_UNLOADS = re.compile(rf'^I.* server\.cc:\d+\] "?{SERVED.decode()}', re.MULTILINE)
_ASKED = (signal.SIGINT, signal.SIGTERM)
_FIRST = 50
"""Lines at the beginning of a log in which its start says something: an image's entrypoint may have spoken before."""
_MOVED = ".moved.log"
"""Suffix of no file: it stands for a log that is gone."""
_ROOM = 15
"""Lines of a log that an error shows."""


def entries(text: str) -> Iterator[str]:
    """The log's entries, each with its continuation lines (a Python traceback, a table)."""
    held: list[str] = []
    for line in text.splitlines():
        if _ENTRY.match(line) and held:
            yield _plain(held)
            held = []
        held.append(line)
    if held:
        yield _plain(held)


def failures(text: str) -> dict[str, str]:
    """Model -> why it did not load, the cause before those that only needed it."""
    found: dict[str, str] = {}
    for entry in entries(text):
        if match := _FAILED.search(entry):
            found.setdefault(match["model"], entry[match.start("why") :].strip(' \n"'))
    for model, status in _table(text):
        if status.startswith("UNAVAILABLE"):
            found.setdefault(model, status.removeprefix("UNAVAILABLE:").strip())
    for match in _DEPENDS.finditer(text):
        found.setdefault(match["model"], f"it needs {match['why']!r}")
    return found


def part(text: str, model: str = "") -> str:
    """The end of what the log says of ``model``; of all that is no information, without one; of everything, failing both."""
    said = list(entries("\n".join(line for line in text.splitlines() if not line.startswith(("+", "|")))))
    # The line that begins with error repeats what was said of every model.
    wanted = [entry for entry in said if (model in entry and entry[0] in "IWEF" if model else entry[0] != "I")]
    return "\n".join("\n".join(wanted or said).splitlines()[-_ROOM:])


def written(running: Running) -> Path:
    """The file that a server writes into: its log, also where that was renamed (logrotate); one that is not there where it is
    not found any more, as when it was compressed."""
    log = Path(running.log)
    if not running.inode:
        return log
    for place in (log, *sorted(log.parent.glob(f"{log.stem}*log*")), Path(f"/proc/{running.pid}/fd/1")):
        with suppress(OSError):
            if place.stat().st_ino == running.inode:
                return place
    return log.with_suffix(_MOVED)


def served(log: Path) -> Callable[[], bool]:
    """Asks a server's log whether, from now on, it has finished all requests and only unloads."""
    began = size(log)
    return lambda: SERVED in since(log, began)


def size(log: Path) -> int:
    """Bytes of a log by now."""
    return log.stat().st_size if log.is_file() else 0


def since(log: Path, began: int = 0) -> bytes:
    """What a log says from byte ``began`` on; nothing where it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(began)
            return file.read()
    except OSError:
        return b""


def hint(log: str, said: str) -> str:
    """What to do about a failure that ``said`` tells of, and where the rest of it stands."""
    known = diagnose(said)
    return f"{known}; the whole log: {log}" if known else f"the whole log: {log}"


def _plain(lines: list[str]) -> str:
    """Triton quotes its messages and writes their line ends as two characters."""
    return "\n".join(lines).replace("\\n", "\n").replace('\\"', '"')


def _table(text: str) -> Iterator[tuple[str, str]]:
    """Rows of the last table of models: name and status; a cell's further lines follow in rows without a name."""
    lines = text[text.rfind("| Model ") :].splitlines()[1:] if "| Model " in text else []
    name, status = "", ""
    for line in lines:
        if line.startswith("+"):
            continue
        if not line.startswith("|"):
            break
        first, _, rest = (cell.strip() for cell in line.strip("|").split("|", 2))
        if first:
            if name:
                yield name, status
            name, status = first, rest.strip("| ")
        else:
            status += "\n" + rest.strip("| ")
    if name:
        yield name, status


def cannot_restrict(log: Path) -> bool:
    """Whether a server ended because it does not know the options that keep model control to forge."""
    return any(b"unrecognized option" in line and b"-restricted-" in line for line in since(log).splitlines())


def traced_not(log: Path) -> str:
    """What a server's start said where tracing is forbidden to it; empty where it is not."""
    with suppress(OSError), log.open(encoding="utf-8", errors="replace") as lines:
        for line in islice(lines, _FIRST):
            if (said := line.strip()) in {SHUT, SHOWN}:
                return said
    return ""


def stumbled(log: Path) -> bool:
    """Whether a server died of a lock in its own shared memory: no fault of its models, and gone with the next start.

    Reported of busy machines: triton-inference-server/server #8882.
    """
    return b"boost::interprocess::lock_exception" in since(log)


def cause(status: int | None, log: Path) -> str:
    """Of what a server died; empty where it was asked to end. ``status`` is a child's, negative for a signal; None: unknown.

    What models print stands in the log as well: a signal that nobody sends to end a server goes before it.
    """
    text = _end(log)
    caught = _caught(text)
    if status is not None and status < 0 and -status not in (*_ASKED, signal.SIGKILL):
        return _named(-status)
    if status == 0 or _UNLOADS.search(text) or caught in _ASKED:
        return ""
    if status is None and not caught and not log.is_file():
        return "nobody has seen how, and its log, which may say it, is not where it was"
    if status is None and not caught:
        return "no signal is in its log: most likely it was killed (SIGKILL), as the system does where memory runs out"
    if status is not None and status > 0 and not caught:
        return f"exit code {status}"
    return _named(caught or -(status or 0))


def broke(log: Path) -> str:
    """What ``fault`` says of a log's end."""
    return fault(_end(log))


def fault(text: str) -> str:
    """The signal of a fault that Triton's own handler says to have caught, before it prints a stack and ends the process; empty
    where it says none. A model may print such a line too: it is a reason to look, and none to act."""
    caught = _caught(text)
    return _named(caught) if caught and caught not in _ASKED else ""


def _caught(text: str) -> int:
    """The last signal that a log tells of; 0 where it tells of none."""
    found = _CAUGHT.findall(text)
    return int(found[-1][0] or found[-1][1]) if found else 0


def _named(number: int) -> str:
    return f"signal {number}, {signal.Signals(number).name if number in {*signal.Signals} else 'no name'}"


def last(log: Path) -> str:
    """The last that a log says: of a signal, where it tells of one, with the line before it, in which glibc says what broke."""
    text = _end(log)
    if found := [match.start() for match in _CAUGHT.finditer(text)]:
        before = text.rfind("\n", 0, max(0, found[-1] - 1)) + 1
        return "\n".join(text[before:].splitlines()[:_ROOM])
    return part(text)


def _end(log: Path) -> str:
    return since(log, max(0, size(log) - _END)).decode(errors="replace")


def lines(log: Path, now: Callable[[], Path | None] | None = None, tail: int | None = None) -> Iterator[str]:
    """What the log holds, or its last ``tail`` lines; also what comes, with ``now``, which says where it stands by now, and
    None where the server has ended."""
    with log.open(encoding="utf-8", errors="replace") as text:
        if tail is not None:
            yield from (line.rstrip("\n") for line in deque(text, min(tail, sys.maxsize)))
        while True:
            place, again = now() if now else None, False  # asked first: what a server says last is read after its end
            with suppress(OSError):
                again = place is not None and place.stat().st_ino != os.fstat(text.fileno()).st_ino
            yield from (line.rstrip("\n") for line in text)
            if place is None:
                return
            if again:
                break
            time.sleep(0.2)
    yield from lines(place, now)
