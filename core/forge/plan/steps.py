"""What a build can make: actions as data, and steps that put them in order. A step's key says all it stands on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from functools import cached_property
from typing import cast

import msgspec
from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from forge.schema.values import Command, Environment, Names, Patch, Pinned, Requirements, Role, Scalar, TextFile

FORMAT = 1
"""Enters every key: raise it when the meaning of an action changes without its words changing."""
LONG = 200
"""Characters of an input above which only its digest is kept for comparing."""


class Stage(IntEnum):
    """Where a build can end before it publishes, in order."""

    FETCH = 1
    CONVERT = 2
    BUILD = 3


class Fetch(Struct, frozen=True):
    """Bring a checkpoint's files."""

    source: Pinned


class MakeEnvironment(msgspec.Struct, frozen=True, omit_defaults=True):
    """Make a private Python environment.

    ``interpreter`` is where this machine has the Python, ``hashes`` what a lock holds its pins to: they enter no key.
    """

    environment: Environment
    interpreter: str
    hashes: dict[str, tuple[str, ...]] = {}


class LayBackends(Struct, frozen=True):
    """Lay the folder of Triton backends: the Python backend out of the need ``environment``, and the twin's sources.

    ``triton`` is the folder of an installed Triton to take the Python backend from instead.
    """

    sources: tuple[TextFile, ...]
    triton: str = ""


class LayTexts(Struct, frozen=True):
    """Write these texts, and nothing else."""

    texts: tuple[TextFile, ...]


class ReadToolchain(Struct, frozen=True):
    """Read skeletons, scripts and the programs' help texts out of an image.

    ``base`` is its identity; ``reference`` is how it is found and ``gpus`` which GPUs a help text may see: they enter no key.
    """

    base: str
    programs: tuple[tuple[str, ...], ...]
    reference: str = ""
    gpus: str = ""


class MakeImage(Struct, frozen=True):
    """Put a family's requirements on top of NVIDIA's image.

    ``base`` is the image's identity, or its reference while nobody has looked; ``reference`` is how it is found; that and the
    family enter no key. ``template`` is the Dockerfile that the requirements are put into.
    """

    family: str
    base: str
    requirements: Requirements
    template: str = ""
    reference: str = ""


class PatchCheckpoint(Struct, frozen=True):
    """Set keys of the checkpoint's JSON files."""

    patches: tuple[Patch, ...]


class LayAdapter(Struct, frozen=True):
    """Turn the need ``adapter``, as PEFT saves it, into TensorRT-LLM's arrays; ``modules`` is what the checkpoint calls a
    module -> its number there. ``layout`` is raised when the arrays change."""

    modules: Mapping[str, int]
    layout: int = 1


class Run(Struct, frozen=True):
    """Run commands with the needs at /forge/<need>; ``patches`` change copies of the scripts, mounted over them."""

    commands: tuple[Command, ...]
    patches: tuple[Patch, ...] = ()
    gpu: str = ""
    """The architecture that the result is for, where it is for one (``sm_89``)."""
    gpus: str = ""
    """Which GPUs the commands may use; it enters no key."""


class Link(Struct, frozen=True):
    """A file of a need's result that stands in the entry too."""

    need: str
    path: str
    target: str


class Assemble(Struct, frozen=True):
    """Lay one model's part of a repository: filled configs, model.py files, and the assets by hard link."""

    names: Names
    skeletons: tuple[TextFile, ...]
    settings: Mapping[Role, Mapping[str, Scalar]]
    links: tuple[Link, ...]
    texts: tuple[TextFile, ...] = ()


class Rename(Struct, frozen=True):
    """Lay a finished entry once more under other names; ``entry`` is its key, ``texts`` (as skeletons) are what joins it."""

    entry: str
    recipe: str
    before: Names
    names: Names
    texts: tuple[TextFile, ...] = ()


class Verify(Struct, frozen=True):
    """Serve the need ``entry`` for the time being and hold it to its checkpoint (docs/verify.md); only what passes is kept.

    ``prompts`` is JSONL; ``golden`` the transcripts that speak for the checkpoint in place of transformers. ``tie`` and
    ``diverging`` override the table of tolerances. ``judge`` is raised when the judging changes. ``gpus`` enters no key.
    """

    name: str
    names: Names
    runtime: str
    prompts: str
    max_tokens: int
    tie: float | None
    diverging: float | None
    streaming: bool
    golden: str = ""
    triton: str = ""
    gpus: str = ""
    world: int = 1
    judge: int = 1


Action = (
    Fetch
    | MakeEnvironment
    | LayBackends
    | LayTexts
    | ReadToolchain
    | MakeImage
    | PatchCheckpoint
    | LayAdapter
    | Run
    | Assemble
    | Rename
    | Verify
)


def _identity(action: Action) -> Action:
    """The action without what is true of this machine only."""
    match action:
        case Fetch(source):
            return Fetch(replace(source, location=""))
        case MakeEnvironment():
            return MakeEnvironment(action.environment, "")
        case MakeImage():
            return replace(action, family="", reference="")  # families that require the same share one image
        case ReadToolchain():
            return replace(action, reference="", gpus="")
        case Run() | Verify():
            return replace(action, gpus="")
        case _:
            return action


class Step(Struct, frozen=True, dict=True):
    """One thing to make. It holds the steps it needs, by the names it has for them: a cycle cannot be written down."""

    name: str
    action: Action
    needs: tuple[tuple[str, "Step"], ...] = ()
    promises: tuple[str, ...] = ()
    """Files that the result holds, or the step has failed."""

    @property
    def stage(self) -> Stage | None:
        """Where in a build the step stands; None for what only serves the others."""
        match self.action:
            case Fetch() | PatchCheckpoint():
                return Stage.FETCH
            case Run(gpu=gpu):
                return Stage.BUILD if gpu else Stage.CONVERT
            case _:
                return None

    @cached_property
    def words(self) -> object:
        return msgspec.to_builtins(_identity(self.action), str_keys=True)

    @cached_property
    def key(self) -> str:
        """The address of this step's result: its action and, through their keys, all it stands on."""
        words = {
            "format": FORMAT,
            "kind": type(self.action).__name__,
            "action": self.words,
            "needs": {name: need.key for name, need in self.needs},
        }
        return blake3(msgspec.json.encode(words, order="deterministic")).hexdigest()

    @cached_property
    def inputs(self) -> dict[str, str]:
        """The action as flat label -> value, for saying later which input changed; long texts by their digest."""
        return dict(_flat("", self.words))

    @property
    def size(self) -> int | None:
        """Bytes of the result, where they are known beforehand."""
        if isinstance(self.action, Fetch) and all(file.size for file in self.action.source.files):
            return sum(file.size for file in self.action.source.files)
        return None


def fetching(name: str, pinned: Pinned) -> Step:
    """The step that brings a source, which promises all its files."""
    return Step(name, Fetch(pinned), promises=tuple(file.path for file in pinned.files))


def _flat(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        items = list(cast("Mapping[object, object]", value).items())
    elif isinstance(value, list | tuple):
        items = [_labelled(number, one) for number, one in enumerate(cast("Sequence[object]", value))]
    else:
        text = str(value)
        yield prefix, text if len(text) <= LONG else f"blake3:{blake3(text.encode()).hexdigest()[:16]}"
        return
    for name, inner in items:
        yield from _flat(f"{prefix}.{name}" if prefix else str(name), inner)


def _labelled(number: int, value: object) -> tuple[object, object]:
    """A list's member under its path, if it has one: a file added in front must not make all others look changed."""
    words = cast("Mapping[str, object]", value) if isinstance(value, Mapping) else dict[str, object]()
    if "path" not in words:
        return number, cast("object", value)  # type: ignore[redundant-cast,unused-ignore]
    return words["path"], {name: word for name, word in words.items() if name != "path"}


class Entry(Struct, frozen=True):
    """One model's place in the plan: what to publish, under which names."""

    recipe: str
    names: Names
    step: Step
    serving: tuple[Step, ...] | None
    """(environment, backends) for a twin, and vLLM's environment after them for vLLM; None where the image brings Triton."""
    verdict: Step | None = None
    """What has to pass before the entry is published, where the recipe asks for it."""

    def gather(self, into: dict[str, Step]) -> None:
        """Add every step of this entry to ``into``, by key, each after those it needs."""
        for root in (*(self.serving or ()), self.step, *((self.verdict,) if self.verdict else ())):
            _gather(root, into)


class Plan(Struct, frozen=True, dict=True):
    """All that a build makes. Steps with the same key are one step."""

    entries: tuple[Entry, ...]
    stage: Stage | None = None
    notes: tuple[str, ...] = ()
    """What is worth knowing beforehand: which patches apply, what could not be looked at."""

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Every step once, each after those it needs; up to ``stage`` where one is set."""
        seen: dict[str, Step] = {}
        for entry in self.entries:
            entry.gather(seen)
        if self.stage is None:
            return tuple(seen.values())
        wanted: dict[str, Step] = {}
        for step in seen.values():
            if step.stage is not None and step.stage <= self.stage:
                _gather(step, wanted)
        return tuple(wanted.values())

    def until(self, stage: Stage) -> "Plan":
        """The part that ends with ``stage``."""
        return replace(self, stage=stage)


def demanded(steps: Sequence[Step], has: Callable[[Step], bool]) -> frozenset[str]:
    """Keys of those of ``steps`` (each after those it needs) that a build wants: what the plan is for, and what making takes.

    ``has`` says whether a step's result is there or can be had; it is asked once, and only of what is wanted. A checkpoint
    whose engine is there is not wanted.
    """
    used = {need.key for step in steps for _, need in step.needs}
    wanted = {step.key for step in steps if step.stage is None or step.key not in used}
    for step in reversed(steps):
        if step.key in wanted and not has(step):
            wanted.update(need.key for _, need in step.needs)
    return frozenset(wanted)


def with_needs(step: Step) -> tuple[Step, ...]:
    """A step and all it stands on, each after those it needs."""
    seen: dict[str, Step] = {}
    _gather(step, seen)
    return tuple(seen.values())


def _gather(step: Step, seen: dict[str, Step]) -> None:
    if step.key not in seen:
        for _, need in step.needs:
            _gather(need, seen)
        seen[step.key] = step
