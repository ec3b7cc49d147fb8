"""A bundle in the place of the world: sources, environments and images as they were where it was made; no network is asked."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from forge.build.bundle.contents import Contents, Image
from forge.build.bundle.witness import Place, asked_about, asked_of
from forge.errors import HostError, Problem, SourceError
from forge.events import Progress
from forge.files.safetensors import Tensor
from forge.machine.containers import (
    Answers,
    Archiving,
    ContainerRun,
    Containers,
    DaemonFacts,
    FamilyImage,
    ImageBuild,
    ImageFacts,
    Line,
)
from forge.machine.environments import adopt
from forge.plan.steps import MakeEnvironment, Step
from forge.remote import record, transfer
from forge.remote.record import Rotten
from forge.remote.tarred import Packed, damaged
from forge.schema.values import Checkpoint, Environment, Pinned, Source
from forge.schema.wheels import NO_HASHES, Hashes

_AGAIN = "make the bundle anew, with this recipe as it is now"
OWN = frozenset({"bin/python3", "pyvenv.cfg"})
"""What of an environment names places of its machine."""


class PackedOrigin(Struct, frozen=True):
    """What a source was when the bundle was made."""

    contents: Contents
    place: Place

    def pin(self, source: Source, base: Path) -> Pinned:
        found = self.contents.answers.pins.get(asked_of(source, self.place(base)))
        if found is None:
            raise SourceError("the bundle knows nothing of this source", where=source.address, hint=_AGAIN)
        return found

    def read(self, pinned: Pinned) -> Checkpoint:
        found = self.contents.answers.configs.get(asked_about(pinned))
        if found is None:
            raise SourceError("the bundle does not say what its config.json says", where=pinned.name, hint=_AGAIN)
        return Checkpoint(found)

    def tensors(self, pinned: Pinned) -> tuple[Tensor, ...]:
        return self.contents.answers.tensors.get(asked_about(pinned), ())

    def fetch(self, pinned: Pinned, into: Path, progress: Progress) -> None:  # noqa: ARG002 - the port's
        hint = "`forge bundle --with weights` puts it in, where it was made"
        raise SourceError("the bundle does not hold these files", where=pinned.name, hint=hint)


class PackedAnswers(Struct, frozen=True):
    """What images said of themselves when the bundle was made; what they say here is kept as ever."""

    contents: Contents
    here: Answers

    def recall(self, question: str) -> str | None:
        return self.contents.answers.images.get(question) or self.here.recall(question)

    def record(self, question: str, answer: str) -> None:
        self.here.record(question, answer)


class PackedEnvironments(Struct, frozen=True):
    """Environments out of the bundle, for the Python of this machine; every file is verified as it comes."""

    packed: Packed
    contents: Contents

    def make(
        self, environment: Environment, interpreter: str, into: Path, log: Callable[[str], None], hashes: Hashes = NO_HASHES
    ) -> None:
        del hashes  # every file is held to the bundle's own digests
        key = Step("environment", MakeEnvironment(environment, interpreter)).key
        if key not in self.contents.environments:
            words = self.contents
            what = f"the bundle holds no such environment: it was made for Python {words.python} on {words.platform}"
            raise HostError(what, where=f"Python {environment.python} on {environment.platform}", hint=_AGAIN)
        log(f"laid from {Path(self.packed.name).name} for {interpreter}")
        adopt(environment, interpreter, into, lambda tree: self._lay(key, tree))

    def ask(self, environment: Environment, interpreter: str) -> Hashes:
        del environment, interpreter
        raise SourceError("a bundle has no package index")

    def _lay(self, key: str, tree: Path) -> None:
        try:
            told, _, files = record.decode(key, self.packed.record(key) or b"", OWN)
            transfer.lay(told, files, self.packed, tree, lambda _done, _total: None)
        except (Rotten, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise damaged(f"the environment {key[:12]}: {error}", Path(self.packed.name)) from error


class PackedContainers:
    """The container engine of this machine with the bundle's images: loaded when they are first wanted, and known as they were.

    A daemon that has loaded an image does not know which registry it came from; keys go by what the bundle says of that.
    """

    def __init__(self, inner: Containers, packed: Packed, contents: Contents) -> None:
        self._inner = inner
        self._packed = packed
        self._contents = contents

    def inspect(self, reference: str) -> ImageFacts | None:
        image = self._named(reference)
        if image is None:
            return self._inner.inspect(reference)
        found = self._found(image)
        return replace(found, reference=reference, identity=image.identity, base=found.id) if found else None

    def hold(self, reference: str, progress: Progress) -> ImageFacts:
        """The image's facts; loaded first where it is not here. HostError for one that the bundle does not hold."""
        if held := self.inspect(reference):
            return held
        if self._named(reference) is None:
            raise HostError("the bundle does not hold this image", where=reference, hint=_AGAIN)
        self._load(progress)
        if held := self.inspect(reference):
            return held
        raise HostError("the image was loaded and is not there", where=reference, hint="look at the Docker daemon's log")

    def build(self, build: ImageBuild, line: Line) -> str:
        image = next((each for each in self._contents.images if each.key == build.key), None)
        if image is not None and not self._found(image):
            self._load(lambda _done, _total: None)
        return self._inner.build(build, line)

    def check(self, gpus: bool = False) -> tuple[Problem, ...]:
        return self._inner.check(gpus)

    def facts(self) -> DaemonFacts:
        return self._inner.facts()

    def made(self, home: str) -> tuple[FamilyImage, ...]:
        return self._inner.made(home)

    def discard(self, image: FamilyImage) -> bool:
        return self._inner.discard(image)

    def run(self, run: ContainerRun, line: Line) -> None:
        self._inner.run(run, line)

    def read(self, image: str, paths: tuple[str, ...]) -> Mapping[str, bytes]:
        return self._inner.read(image, paths)

    def help_text(self, image: str, argv: tuple[str, ...], gpus: str = "") -> str:
        return self._inner.help_text(image, argv, gpus)

    def reap(self) -> tuple[str, ...]:
        return self._inner.reap()

    # -- inside

    def _named(self, reference: str) -> Image | None:
        return next((each for each in self._contents.images if each.reference == reference), None)

    def _found(self, image: Image) -> ImageFacts | None:
        """The image here with the same layers, whatever it is called."""
        for name in (image.reference, image.id, *self._loaded_names):
            held = self._inner.inspect(name)
            if held is not None and held.content == image.content:
                return held
        return None

    @cached_property
    def _loaded_names(self) -> list[str]:
        return []

    def _load(self, progress: Progress) -> None:
        if not isinstance(self._inner, Archiving):
            raise HostError("this container engine loads no images", hint="build where Docker runs")
        total, free = self._packed.sizes(self._contents.archive), self._inner.facts().free
        if free and total > free:
            what = f"Docker's disk is full: the bundle's images take {total:,} bytes, {free:,} are free"
            raise HostError(what, where=self._packed.name, hint="make room where Docker keeps images (`docker system df`)")
        self._loaded_names.extend(self._inner.load(self._stream(self._contents.archive, progress)))

    def _stream(self, blobs: Sequence[str], progress: Progress) -> Iterator[bytes]:
        """What `docker save` gave, each part verified before the daemon sees it."""
        done, total = 0, self._packed.sizes(blobs)
        for blob in blobs:
            part = self._packed.part(blob)
            yield part
            progress(done := done + len(part), total)
