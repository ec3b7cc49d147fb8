"""Runs AIPerf over Triton's HTTP: in an environment and a process group of its own, without a network beside the server.

Each repeat is one run of it, some ten seconds longer than the load itself: AIPerf starts its services, warms up, loads, and
writes what it has measured into a folder, which is kept.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from msgspec import Struct

from forge.bench.aiperf import records
from forge.bench.driver import Answer, Drive, Watch
from forge.bench.workload import Tokenizer
from forge.client.tensors import body
from forge.client.types import ModelMetadata
from forge.errors import BenchError, HostError
from forge.machine.bonds import bound, temporary
from forge.machine.interrupt import Halt
from forge.machine.processes import inherited, kill_group
from forge.schema.values import TextFile

EXPORT = "profile_export.jsonl"
LOG = "forge.log"
_POLL = 0.01
_SAMPLE = "one two three"


class Aiperf(Struct, frozen=True):
    """Where AIPerf is installed, and what the driver asks forge for. ``hold`` keeps the environment from being collected."""

    python: Path
    hold: Callable[[], AbstractContextManager[None]]
    describe: Callable[[str, str], ModelMetadata]
    """(address, model) -> what the model takes."""
    tokens: Callable[[Path], Tokenizer]


class Gate:
    """Where the plugin holds the last of so many requests of the warm-up until the server is looked at. See the plugin."""

    def __init__(self, folder: Path, warm: int) -> None:
        folder.mkdir()
        self._folder = folder
        self._warm = warm

    def variables(self) -> dict[str, str]:
        return {"FORGE_AIPERF_GATE": str(self._folder), "FORGE_AIPERF_WARM": str(self._warm)}

    def reached(self) -> bool:
        return bool(self._warm) and len(list(self._folder.glob("warm-*"))) == self._warm

    def open(self) -> None:
        (self._folder / "open").touch()


class AiperfDriver:
    """The Driver that is NVIDIA's tool. ``folder`` is where its artifacts are kept, one folder for each repeat."""

    def __init__(self, tool: Aiperf, folder: Path, environ: Mapping[str, str], halt: Halt, say: Callable[[str], None]) -> None:
        self._tool = tool
        self._folder = folder
        self._environ = environ
        self._halt = halt
        self._say = say

    @property
    def name(self) -> str:
        return f"aiperf {records.version()}"

    def drive(self, drive: Drive, watch: Watch) -> tuple[Answer, ...]:
        """BenchError, with the end of its log, where AIPerf fails."""
        with self._tool.hold():
            return self._one(drive, watch)

    def _one(self, drive: Drive, watch: Watch) -> tuple[Answer, ...]:
        if not self._tool.python.is_file():
            raise HostError(
                "AIPerf's environment is no longer held", where=str(self._tool.python), hint="ask again: it is made anew"
            )
        model = self._tool.describe(drive.address, drive.asks[0].request.model)
        bodies = {id(ask): body(ask.request, model) for ask in (*drive.warm, *drive.asks)}
        into = self._place(drive.asks[0].request.model)
        # A short path: AIPerf's processes speak over sockets in the temporary folder, whose names are at most 107 long.
        with tempfile.TemporaryDirectory(prefix="a-", dir=temporary()) as scratch:
            place = Path(scratch)
            (place / "asks.jsonl").write_text(records.dataset(drive, bodies), encoding="utf-8")
            self._lay(place, drive)
            told = records.arguments(drive, str(place / "asks.jsonl"), str(into))
            gate = Gate(place / "gate", len(drive.warm))
            code = self._run(told, {**self._variables(place, drive, model), **gate.variables()}, into, gate, watch)
        export = into / EXPORT
        found = records.answers(export.read_bytes(), drive, str(export)) if export.is_file() else ()
        if not found:
            raise self._failed(f"AIPerf ended with code {code} and no records", into)
        if code and not all(answer.error for answer in found):  # where nothing came through it ends with 1: no fault of its own
            raise self._failed(f"AIPerf ended with code {code}", into)
        self._say(f"AIPerf's own files: {into}")
        return found

    def _lay(self, place: Path, drive: Drive) -> None:
        """The plugin, and the model's tokenizer as a cache of Hugging Face's."""
        texts = [TextFile(f"plugin/{text.path}", text.content) for text in records.plugin()]
        texts.append(TextFile(f"hf/{records.REFERENCE.path}", records.REFERENCE.content))
        for text in texts:
            target = place / text.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text.content, encoding="utf-8")
        if drive.tokenizer is not None:
            snapshot = place / "hf" / records.SNAPSHOT
            snapshot.parent.mkdir(parents=True)
            snapshot.symlink_to(drive.tokenizer.absolute(), target_is_directory=True)

    def _variables(self, place: Path, drive: Drive, model: ModelMetadata) -> dict[str, str]:
        special = 0
        if drive.tokenizer is not None and not (own := self._tool.tokens(drive.tokenizer)).missing:
            special = own.count(_SAMPLE) - own.spoken(_SAMPLE)
        request = drive.asks[0].request
        beams = request.stream and (request.beam_width or 1) > 1  # streaming beams come whole each time, counts too
        spoken = records.Spoken(special, "all" if beams else "text" if request.stream and model.accumulates else "")
        return {
            **inherited(self._environ),
            **spoken.variables(),
            "HOME": str(place),  # caches and histories
            "TMPDIR": str(place),
            "PYTHONPATH": str(place / "plugin"),
            "HF_HOME": str(place / "hf"),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }

    def _run(self, told: Sequence[str], variables: Mapping[str, str], into: Path, gate: Gate, watch: Watch) -> int:
        log = into / LOG
        argv = (str(self._tool.python), "-m", "aiperf", *told)
        with log.open("wb") as out, ExitStack() as stack:
            process = subprocess.Popen(
                argv,
                env=bound(variables),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            # Whatever ends this, its workers end with it.
            stack.callback(process.wait)
            stack.callback(kill_group, process.pid)
            with self._halt.ending(lambda: kill_group(process.pid)):
                self._follow(process, log, gate, watch)
        return process.returncode

    def _follow(self, process: subprocess.Popen[bytes], log: Path, gate: Gate, watch: Watch) -> None:
        """Look at the server while it is under load: from the end of the warm-up, as the gate or else the log says."""
        looking = False
        with ExitStack() as watching, log.open("rb") as lines:
            for line in _said(process, lines.readline):
                if not looking and (gate.reached() or records.STARTED in line):
                    watching.enter_context(watch())
                    looking = True
                    gate.open()
                elif records.COMPLETE in line:
                    watching.close()

    def _failed(self, what: str, into: Path) -> BenchError:
        log = into / LOG
        told = records.heard(log.read_text(encoding="utf-8", errors="replace").splitlines())
        return BenchError(f"{what}\n{told}", where=str(log), hint="its whole log is there; forge's own driver needs no AIPerf")

    def _place(self, model: str) -> Path:
        """A new folder for one run."""
        number = 1
        while True:
            place = self._folder / f"{model}-{number:03}"
            try:
                place.mkdir(parents=True)
            except FileExistsError:
                number += 1
            else:
                return place


def _said(process: subprocess.Popen[bytes], readline: Callable[[], bytes]) -> Iterator[str]:
    """Lines as they are written, until the process has ended and all is read; an empty one after each look."""
    part = b""
    while True:
        ended = process.poll() is not None
        while line := readline():
            part += line
            if part.endswith(b"\n"):
                yield part.decode(errors="replace")
                part = b""
        yield ""
        if ended:
            return
        time.sleep(_POLL)
