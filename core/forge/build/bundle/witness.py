"""What the world answers while recipes are resolved, noted for a machine that cannot ask it."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import msgspec
from blake3 import blake3
from msgspec import Struct, field, structs

from forge.build.bundle.contents import Answers as Noted
from forge.build.outside import Outside
from forge.build.sources.source import Origin
from forge.events import Progress
from forge.files.safetensors import Tensor
from forge.machine.containers import Answers, Containers, Inside
from forge.machine.machine import Machine
from forge.plan.lock import placed
from forge.schema.values import Checkpoint, Environment, Gpu, Host, Pinned, Source, SourceKind
from forge.schema.wheels import Hashes

Place = Callable[[Path], str]
"""Where a recipe's folder is inside a bundle."""


class Memory(Struct, frozen=True):
    """Answers by question, as they come in. ``place`` says where a recipe's folder is in the bundle."""

    place: Place
    pins: dict[str, Pinned] = field(default_factory=dict[str, Pinned])
    configs: dict[str, Mapping[str, object]] = field(default_factory=dict[str, Mapping[str, object]])
    tensors: dict[str, tuple[Tensor, ...]] = field(default_factory=dict[str, tuple[Tensor, ...]])
    images: dict[str, str] = field(default_factory=dict[str, str])

    def noted(self) -> Noted:
        """All of them."""
        return Noted(pins=self.pins, configs=self.configs, tensors=self.tensors, images=self.images)


def asked_of(source: Source, place: str) -> str:
    """The question which bytes a source is; a local one depends on the folder that its recipe stands in."""
    local = source.kind in (SourceKind.PATH, SourceKind.GGUF) or source.address.startswith(("file:", "."))
    words = (type(source).__name__, structs.asdict(source), place if local else "")
    return blake3(msgspec.json.encode(words, order="sorted")).hexdigest()


def asked_about(pinned: Pinned) -> str:
    """The question what a pinned source says of itself, wherever it lies."""
    return blake3(msgspec.json.encode(placed(pinned, ""), order="sorted")).hexdigest()


class Witness(Struct, frozen=True):
    """An origin whose answers are noted."""

    origin: Origin
    memory: Memory

    def pin(self, source: Source, base: Path) -> Pinned:
        found = self.origin.pin(source, base)
        self.memory.pins[asked_of(source, self.memory.place(base))] = placed(found, "")
        return found

    def read(self, pinned: Pinned) -> Checkpoint:
        found = self.origin.read(pinned)
        self.memory.configs[asked_about(pinned)] = found.config
        return found

    def tensors(self, pinned: Pinned) -> tuple[Tensor, ...]:
        found = self.origin.tensors(pinned)
        self.memory.tensors[asked_about(pinned)] = found
        return found

    def fetch(self, pinned: Pinned, into: Path, progress: Progress) -> None:
        self.origin.fetch(pinned, into, progress)


class WitnessedAnswers(Struct, frozen=True):
    """What images have said of themselves, noted."""

    answers: Answers
    memory: Memory

    def recall(self, question: str) -> str | None:
        found = self.answers.recall(question)
        if found is not None:
            self.memory.images[question] = found
        return found

    def record(self, question: str, answer: str) -> None:
        self.memory.images[question] = answer
        self.answers.record(question, answer)


class Witnessed:
    """The world as ``forge.build.outside.Outside``, its answers noted in ``memory``."""

    def __init__(self, world: Outside, memory: Memory) -> None:
        self._world = world
        self._memory = memory

    @cached_property
    def origins(self) -> Mapping[SourceKind, Origin]:
        return {kind: Witness(origin, self._memory) for kind, origin in self._world.origins.items()}

    @cached_property
    def machine(self) -> Machine:
        return self._world.machine

    @cached_property
    def containers(self) -> Containers:
        return self._world.containers

    @cached_property
    def answers(self) -> Answers:
        return WitnessedAnswers(self._world.answers, self._memory)

    @cached_property
    def here(self) -> Inside:
        return self._world.here

    def host(self) -> Host:
        return self._world.host()

    def package_hashes(self, environment: Environment) -> Hashes:
        return self._world.package_hashes(environment)

    def gpus(self) -> tuple[Gpu, ...]:
        return self._world.gpus()

    def memory(self) -> int:
        return self._world.memory()
