"""Runs ``forge.verify.transformers_script`` where torch and transformers are: another Python of this machine, or a
container's.
"""

import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import msgspec
from msgspec import Struct, field, structs

from forge.errors import HostError, StepError
from forge.files.interpreter import own_python
from forge.machine import processes
from forge.machine.bonds import bound, child, temporary
from forge.machine.containers import ContainerRun, Containers
from forge.machine.interrupt import Halt
from forge.schema.values import Command
from forge.verify import transcripts
from forge.verify.reference import NEEDED, SCRIPT, Job
from forge.verify.transcripts import Reference

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_LAST = 12
_OUT = "transcripts.json"


class OwnPython(Struct, frozen=True):
    """A Python of this machine: the one that runs forge, unless ``python`` names another. Nothing is imported into forge."""

    environ: Mapping[str, str]
    python: str = ""
    halt: Halt = field(default_factory=Halt)

    def lacks(self) -> str:
        """What is missing, in a sentence."""
        if self.python:
            probe = f"import {', '.join(NEEDED)}"
            try:
                done = subprocess.run(
                    (self.python, "-c", probe), env=bound(self._environ()), capture_output=True, text=True, check=False
                )
            except OSError as error:
                return f"{self.python} cannot be started: {error.strerror}"
            return f"{self.python} has not got {' and '.join(NEEDED)}" if done.returncode else ""
        missing = [name for name in NEEDED if find_spec(name) is None]
        return f"this Python has not got {' and '.join(missing)}" if missing else ""

    def recite(self, folder: Path, job: Job, line: Callable[[str], None]) -> Reference:
        """HostError where the packages are missing, StepError with the end of the output where the run failed."""
        if lacking := self.lacks():
            raise HostError(lacking, hint="install `triton-forge[verify]`, or name a Python that has them: --python PATH")
        python = self.python or own_python()
        line(f"{python} {SCRIPT.name} {folder}")
        with tempfile.TemporaryDirectory(prefix="reference-", dir=temporary()) as scratch:
            written, out = Path(scratch) / "job.json", Path(scratch) / _OUT
            written.write_bytes(msgspec.json.encode(job))
            # -I: the script's own folder holds modules of forge's, whose names are nobody else's business.
            argv = (python, "-I", str(SCRIPT), str(folder), str(written), str(out))
            with child(argv, self._environ(), self.halt) as process:
                said = deque[str](maxlen=_LAST)
                for text in process.stdout or ():
                    said.append(text.rstrip("\n"))
                    line(said[-1])
            if process.wait() or not out.is_file():
                text = "\n".join(said)
                raise StepError(f"transformers could not answer for the checkpoint\n{text}", where=str(folder))
            return transcripts.read(out.read_bytes(), str(out))

    def _environ(self) -> dict[str, str]:
        return {**processes.inherited(self.environ), **OFFLINE}


class InImage(Struct, frozen=True):
    """The image that serves the model: NVIDIA's have torch and transformers for their own pre- and postprocessing."""

    containers: Containers
    image: str
    key: str
    logs: Path

    def lacks(self) -> str:
        """What keeps containers from running here, in a sentence."""
        return "; ".join(problem.what for problem in self.containers.check())

    def recite(self, folder: Path, job: Job, line: Callable[[str], None]) -> Reference:
        """StepError with the end of its log where the run failed."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="reference-", dir=temporary()) as scratch:
            written, out = Path(scratch) / "job.json", Path(scratch) / "out"
            adapter = {"adapter": Path(job.adapter)} if job.adapter else {}
            seen = structs.replace(job, adapter="/forge/adapter" if adapter else "")
            written.write_bytes(msgspec.json.encode(seen))
            out.mkdir()
            argv = ("python3", "/forge/script", "/forge/model", "/forge/job", f"/forge/out/{_OUT}")
            run = ContainerRun(
                self.image,
                Command(argv, OFFLINE),
                {"script": SCRIPT, "model": folder, "job": written, **adapter},
                out,
                self.logs / f"{self.key[:16]}-reference.log",
                self.key,
                promised=(_OUT,),
            )
            self.containers.run(run, line)
            return transcripts.read((out / _OUT).read_bytes(), _OUT)
