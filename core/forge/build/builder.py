"""Makes a plan true: skips what the store holds, performs the rest through the ports."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field

from forge.build import entry as assembling
from forge.build.in_containers import Contained
from forge.build.scheduler import Allowance, Scheduler
from forge.build.sources.source import Origin
from forge.build.supply import Supplier
from forge.errors import StepError
from forge.events import Event, Listener
from forge.files import texts
from forge.files.trees import Laid, lay
from forge.machine.containers import Environments, Executor, Job
from forge.machine.interrupt import Halt
from forge.plan.preview import provenance
from forge.plan.steps import (
    Assemble,
    Fetch,
    LayAdapter,
    LayBackends,
    LayTexts,
    MakeEnvironment,
    MakeImage,
    PatchCheckpoint,
    ReadToolchain,
    Rename,
    Run,
    Step,
    Verify,
)
from forge.schema.values import Command, JsonPatch, SourceKind, TextFile
from forge.store.store import Artifact, Store
from forge.trtllm import patches as patching

DEFAULT = Allowance()
LayBackendsPort = Callable[[Path, str, Path, tuple[TextFile, ...]], None]

Prove = Callable[[Step, Verify, Mapping[str, Path], Path, Callable[[str], None]], None]
"""Takes a step, its action, its needs, where to write the verdict, and whom to tell each line."""


def _unproved(step: Step, action: Verify, needs: Mapping[str, Path], out: Path, line: Callable[[str], None]) -> None:  # noqa: ARG001
    raise StepError("nobody here can verify a candidate", where=step.name)


class Tools(Struct, frozen=True):
    """The ports that performing needs. ``lay_backends`` takes (environment, triton, into, sources).

    ``contained`` gives what happens in containers; it is asked for when the first such step is made. ``halt`` ends what the
    ports wait for, on Ctrl-C.
    """

    origins: Mapping[SourceKind, Origin]
    environments: Environments
    executor: Executor
    lay_backends: LayBackendsPort
    contained: Callable[[], Contained]
    logs: Path
    halt: Halt = field(default_factory=Halt)
    prove: Prove = _unproved
    """Serves and verifies a candidate (``forge.verify.verify``); Forge puts it here."""


class Builder:
    """Realises steps, each once, independent ones side by side; what it made or found is told to the listener."""

    def __init__(
        self, store: Store, tools: Tools, listener: Listener, allowance: Allowance = DEFAULT, shared: Supplier | None = None
    ) -> None:
        """``shared`` is the store that several machines share, where there is one, or those machines themselves."""
        self._shared = shared
        self._built = False
        self._store = store
        self._tools = tools
        self._tell = listener
        self._allowance = allowance

    def realise(self, steps: Iterable[Step]) -> dict[str, Artifact]:
        """Make every one of ``steps`` that the store does not hold; the artifacts by key. The caller keeps the keys in use.

        Where a step fails, nothing new begins, those under way are finished and kept, and the error names the step. On
        Ctrl-C all of them are ended, and nothing that they started is left.
        """
        held: dict[str, Artifact] = {}
        missing: list[Step] = []
        steps = tuple(steps)
        for step in steps:
            if found := self._store.find(step.key):
                held[step.key] = found
                self._tell(Event("held", step.name, step.key, size=found.size))
            else:
                missing.append(step)
        self._built |= bool(missing)
        if missing and self._shared:
            taken = self._shared.supply(steps, missing, self._store)
            held |= taken.artifacts
            missing = [step for step in missing if step.key in taken.lacking]
        if missing:
            self._tools.halt.reset()
            held |= Scheduler(self._allowance, self._make, self._tell, self._tools.halt).run(missing)
        return held

    def share(self, steps: Iterable[Step]) -> None:
        """Send what was made, and what an earlier build could not send; nothing where all was held."""
        if self._shared and self._built:
            self._shared.send(held for step in steps if (held := self._store.find(step.key)))

    def _make(self, step: Step, tell: Listener) -> Artifact:
        told: list[str] = []

        def waiting(text: str) -> None:
            tell(Event("log" if told else "note", step.name, step.key, text=text))
            told.append(text)

        artifact, made = self._store.make(
            step.key,
            provenance(step),
            Making(self._store, self._tools, tell, step).fill,
            waiting=waiting,
        )
        kind = "made" if made else "held"
        tell(Event(kind, step.name, step.key, seconds=artifact.seconds if made else 0.0, size=artifact.size))
        return artifact


class Making:
    """One step being made, on whichever thread."""

    def __init__(self, store: Store, tools: Tools, listener: Listener, step: Step) -> None:
        self._store = store
        self._tools = tools
        self._tell = listener
        self._step = step

    def fill(self, out: Path) -> None:
        """Write the step's result into ``out``; StepError where it does not keep its promises."""
        step = self._step
        self._tell(Event("start", step.name, step.key, total=step.size or 0))
        needs = {name: self._held(need) for name, need in step.needs}
        self._perform(needs, out)
        broken = [path for path in step.promises if not (out / path).is_file()]
        if broken:
            raise StepError(
                f"the step ran and did not write {', '.join(broken)}",
                where=step.name,
                hint="its log says why; a plugin that promises what its command does not write is at fault",
            )

    def _held(self, step: Step) -> Path:
        held = self._store.find(step.key)
        if held is None:
            raise StepError(f"its need {step.name!r} is gone from the store", hint="run the build again")
        return held.path

    def _perform(self, needs: Mapping[str, Path], out: Path) -> None:
        step, tools = self._step, self._tools
        match step.action:
            case Fetch(source):
                tools.origins[source.kind].fetch(source, out, self._progress)
            case MakeEnvironment(environment, interpreter, hashes):
                tools.environments.make(environment, interpreter, out, self._line, hashes)
            case LayBackends(sources, triton):
                tools.lay_backends(needs["environment"], triton, out, sources)
            case Run() if "image" in needs:
                tools.contained().run(step, step.action, needs, out, self._tell)
            case Run(commands):
                self._run(commands, {**needs, "out": out})
            case LayTexts() | PatchCheckpoint() | LayAdapter() | Assemble() | Rename():
                self._lay(step.action, needs, out)
            case ReadToolchain():
                tools.contained().read_toolchain(step.action, out, self._line)
            case MakeImage():
                tools.contained().make_image(step, step.action, out, self._tell)
            case Verify():
                tools.prove(step, step.action, needs, out, self._line)

    def _lay(
        self, action: LayTexts | PatchCheckpoint | LayAdapter | Assemble | Rename, needs: Mapping[str, Path], out: Path
    ) -> None:
        """What takes nothing but files."""
        match action:
            case LayTexts(texts):
                assembling.write(out, texts)
            case PatchCheckpoint(patches):
                _patch(needs["model"], out, patches)
            case LayAdapter(modules):
                from forge.build import adapter_arrays  # numpy is for those who have adapters

                adapter_arrays.write(needs["adapter"], modules, out)
            case Assemble():
                self._copied(assembling.assemble(action, needs, out))
            case Rename(entry):
                self._copied(assembling.rename(action, self._entry(entry), out))

    def _progress(self, done: int, total: int) -> None:
        self._tell(Event("progress", self._step.name, self._step.key, done=done, total=total))

    def _line(self, text: str) -> None:
        self._tell(Event("log", self._step.name, self._step.key, text=text))

    def _run(self, commands: Sequence[Command], mounts: Mapping[str, Path]) -> None:
        self._tools.logs.mkdir(parents=True, exist_ok=True)
        for number, command in enumerate(commands):
            log = self._tools.logs / f"{self._step.key[:16]}-{number}.log"
            self._tools.executor.run(Job(command, mounts, log), self._line)

    def _entry(self, key: str) -> Path:
        held = self._store.find(key)
        if held is None:
            raise StepError("the entry to be renamed is gone from the store", hint="build the model again, with --prefixed")
        return held.path

    def _copied(self, laid: Laid) -> None:
        if laid.copied:
            self._tell(Event("note", self._step.name, self._step.key, text=f"{laid.copied} bytes had to be copied, not linked"))


def _patch(model: Path, out: Path, patches: tuple[object, ...]) -> None:
    lay(model, out)
    for patch in patches:
        if not isinstance(patch, JsonPatch):
            continue
        file = out / patch.file
        held = texts.there(file, StepError, "what is to be patched")
        text = json.dumps({}) if held is None else patching.apply(patch, held).text
        file.unlink(missing_ok=True)
        file.write_text(text, encoding="utf-8")
