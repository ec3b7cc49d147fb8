"""A bundle that is built from: the file, what it says of itself, and the folder where its recipes lie now."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from forge.build.bundle.contents import Contents, read, require, whose
from forge.build.bundle.replay import OWN
from forge.errors import HostError
from forge.files import texts, trees
from forge.remote import record
from forge.remote.record import Rotten
from forge.remote.signature import NOBODY, Trust, UntrustedError
from forge.remote.tarred import BundleError, Packed, damaged
from forge.schema.values import BuildOptions, Host, RuntimeKind


class Opened(Struct, frozen=True):
    """An open bundle. ``folder`` is where its recipes lie."""

    packed: Packed
    contents: Contents
    folder: Path

    @property
    def recipes(self) -> list[Path]:
        """The recipes, or the deployment, that it was made of."""
        return [self.folder / name for name in self.contents.named]

    @property
    def options(self) -> BuildOptions:
        """As it was planned where it was made."""
        said = self.contents
        return BuildOptions(RuntimeKind(said.runtime) if said.runtime else None, prefixed=said.prefixed, inside=said.inside)

    @property
    def templates(self) -> Path:
        """Dockerfiles of the person who made it."""
        return self.folder / "Dockerfiles"

    def place(self, base: Path) -> str:
        """A recipe's folder as questions to sources name it."""
        return base.absolute().relative_to(self.folder).as_posix()

    def host(self, found: Host, other: Callable[[str], Host | None]) -> Host:
        """This machine, ``found``, with the bundle's Python; ``other`` is it with a Python of another version, where one is.

        BundleError or HostError where the bundle's programs cannot run here.
        """
        said, where = self.contents, self.packed.name
        if found.platform != said.platform:
            what = f"this bundle was made on {said.platform}, and this machine is {found.platform}"
            raise BundleError(what, where=where, hint="make one on a machine of this kind")
        if not said.environments or (found.python, found.triton) == (said.python, said.triton):
            return found
        if said.triton:
            hint = f"install Triton at {said.triton}, or make the bundle on a machine without one there"
            raise HostError(f"the bundle was made with the Triton at {said.triton}", where=where, hint=hint)
        if fitting := other(said.python):
            return fitting
        hint = f"install Python {said.python}, or make the bundle with Python {found.python}"
        raise HostError(f"the bundle's environments are for Python {said.python}, and none is here", where=where, hint=hint)


def named_after(file: Path) -> str:
    """The folder for a bundle's recipes, where nobody names one: its name without what follows the dot."""
    return file.stem if file.suffix else f"{file.name}-recipes"


@contextmanager
def opened(file: Path, folder: Path, trust: Trust) -> Generator[Opened]:
    """A bundle for a build, its recipes laid into ``folder``; BundleError where it is not whole, or other files stand there.

    UntrustedError where ``trust`` wants a signature that it has not.
    """
    packed = Packed(file)
    try:
        contents = read(packed)
        try:
            require(contents, trust)
        except UntrustedError as error:
            raise UntrustedError(
                f"nothing is built from this bundle: {error.what}", where=packed.name, hint=error.hint
            ) from error
        found = Opened(packed, contents, folder.absolute())
        _lay(found)
        yield found
    finally:
        packed.close()


class Packable(Struct, frozen=True):
    """One artifact of a bundle: its key, the step that made it, and bytes."""

    key: str
    step: str
    action: str
    size: int


class Inside(Struct, frozen=True):
    """What is in a bundle; ``size`` is that of the file."""

    contents: Contents
    held: tuple[Packable, ...]
    size: int
    signed: str
    """Whose signature it has, in words."""

    @property
    def date(self) -> str:
        """When it was made."""
        return f"{datetime.fromtimestamp(self.contents.by.at, UTC):%Y-%m-%d %H:%M} UTC"


def look(file: Path, trust: Trust = NOBODY) -> Inside:
    """What a bundle says of itself and of its artifacts, whose own bytes are not read. BundleError where it is not whole."""
    packed = Packed(file)
    try:
        contents = read(packed)
        return Inside(contents, tuple(_held(packed, key) for key in contents.records), packed.size, whose(contents, trust))
    finally:
        packed.close()


def _held(packed: Packed, key: str) -> Packable:
    try:
        _, manifest, _ = record.decode(key, packed.record(key) or b"", OWN)
    except Rotten as error:
        raise damaged(f"{key[:12]}: {error}", Path(packed.name)) from error
    made = manifest.provenance
    return Packable(key, made.step, made.action, manifest.size)


def _lay(found: Opened) -> None:
    """Its texts, into the folder; one that stands there already has to say the same."""
    for name, text in found.contents.texts.items():
        target = found.folder / name
        there = texts.there(target, BundleError, "what stands in the bundle's place")
        if there is not None and there != text:
            hint = "name another folder with --into, or move the file away"
            raise BundleError("another file stands where the bundle's own would be laid", where=str(target), hint=hint)
    for name, text in found.contents.texts.items():
        target = found.folder / name
        if not target.exists():
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                trees.write_whole(target, text)
            except OSError as error:
                hint = "name another folder with --into"
                raise BundleError(f"it cannot be written: {error.strerror}", where=str(target), hint=hint) from error
