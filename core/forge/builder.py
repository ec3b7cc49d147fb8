"""Makes a plan true: skips what the store holds, performs the rest through the ports."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from forge import patching, repository
from forge.contained import Contained
from forge.errors import StepError
from forge.model import JsonPatch, SourceKind, TextFile
from forge.outlook import provenance
from forge.ports import Environment, Environments, Event, Executor, Job, Listener, Origin
from forge.steps import (
    Assemble,
    Fetch,
    LayBackends,
    LayTexts,
    MakeEnvironment,
    MakeImage,
    PatchCheckpoint,
    ReadToolchain,
    Run,
    Step,
)
from forge.store import Artifact, Store
from forge.trees import lay, link

LayBackendsPort = Callable[[Path, str, Path, tuple[TextFile, ...]], None]


@dataclass(frozen=True, slots=True)
class Tools:
    """The ports that performing needs. ``lay_backends`` takes (environment, triton, into, sources).

    ``contained`` gives what happens in containers; it is asked for when the first such step is made.
    """

    origins: Mapping[SourceKind, Origin]
    environments: Environments
    executor: Executor
    lay_backends: LayBackendsPort
    blank: repository.Blank
    contained: Callable[[], Contained]
    logs: Path


class Builder:
    """Realises steps, each once; what it made or found is told to the listener."""

    def __init__(self, store: Store, tools: Tools, listener: Listener) -> None:
        self._store = store
        self._tools = tools
        self._tell = listener

    def realise(self, steps: Iterable[Step]) -> dict[str, Artifact]:
        """Make every one of ``steps`` that the store does not hold; the artifacts by key. The caller keeps the keys in use."""
        return {step.key: self._hold(step) for step in steps}

    def _hold(self, step: Step) -> Artifact:
        if held := self._store.find(step.key):
            self._tell(Event("held", step.name, step.key, size=held.size))
            return held
        artifact, made = self._store.make(
            step.key,
            provenance(step),
            lambda out: self._fill(step, out),
            waiting=lambda text: self._tell(Event("note", step.name, step.key, text=text)),
        )
        kind = "made" if made else "held"
        self._tell(Event(kind, step.name, step.key, seconds=artifact.seconds if made else 0.0, size=artifact.size))
        return artifact

    def _fill(self, step: Step, out: Path) -> None:
        self._tell(Event("start", step.name, step.key, total=step.size or 0))
        needs = {name: self._held(need) for name, need in step.needs}
        self._perform(step, needs, out)
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

    def _perform(self, step: Step, needs: Mapping[str, Path], out: Path) -> None:
        match step.action:
            case Fetch(source):
                self._tools.origins[source.kind].fetch(source, out, self._progress(step))
            case MakeEnvironment(environment, interpreter):
                self._environment(step, environment, interpreter, out)
            case LayBackends(sources, triton):
                self._tools.lay_backends(needs["environment"], triton, out, sources)
            case LayTexts(texts):
                _write(out, texts)
            case PatchCheckpoint(patches):
                _patch(needs["model"], out, patches)
            case Run():
                self._run(step, step.action, needs, out)
            case Assemble():
                self._assemble(step, step.action, needs, out)
            case ReadToolchain():
                self._tools.contained().read_toolchain(step.action, out, self._line(step))
            case MakeImage():
                self._tools.contained().make_image(step, step.action, out, self._line(step))

    def _progress(self, step: Step) -> Callable[[int, int], None]:
        return lambda done, total: self._tell(Event("progress", step.name, step.key, done=done, total=total))

    def _line(self, step: Step) -> Callable[[str], None]:
        return lambda text: self._tell(Event("log", step.name, step.key, text=text))

    def _environment(self, step: Step, environment: Environment, interpreter: str, out: Path) -> None:
        self._tools.environments.make(environment, interpreter, out, self._line(step))

    def _run(self, step: Step, action: Run, needs: Mapping[str, Path], out: Path) -> None:
        if "image" in needs:
            self._tools.contained().run(step, action, needs, out, self._line(step))
            return
        mounts = {**needs, "out": out}
        self._tools.logs.mkdir(parents=True, exist_ok=True)
        for number, command in enumerate(action.commands):
            log = self._tools.logs / f"{step.key[:16]}-{number}.log"
            self._tools.executor.run(Job(command, mounts, log), self._line(step))

    def _assemble(self, step: Step, action: Assemble, needs: Mapping[str, Path], out: Path) -> None:
        rendered = repository.render(action.names, action.skeletons, action.settings, self._tools.blank)
        _write(out, (*rendered, *action.texts))
        copied = 0
        for each in action.links:
            target = out / each.target
            target.parent.mkdir(parents=True, exist_ok=True)
            copied += link(needs[each.need] / each.path, target).copied
        if copied:
            self._tell(Event("note", step.name, step.key, text=f"{copied} bytes had to be copied, not linked"))


def _write(out: Path, texts: tuple[TextFile, ...]) -> None:
    for text in texts:
        target = out / text.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.content, encoding="utf-8")


def _patch(model: Path, out: Path, patches: tuple[object, ...]) -> None:
    lay(model, out)
    for patch in patches:
        if not isinstance(patch, JsonPatch):
            continue
        file = out / patch.file
        text = patching.apply(patch, file.read_text(encoding="utf-8")).text if file.is_file() else json.dumps({})
        file.unlink(missing_ok=True)
        file.write_text(text, encoding="utf-8")
