"""Writes a bundle: artifacts and environments by their files, images as `docker save` gives them, and what all of it is."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct, structs

from forge.build.bundle.choice import Chosen
from forge.build.bundle.contents import Contents, Image, encode
from forge.build.bundle.replay import OWN
from forge.build.in_containers import Contained
from forge.build.resolve import golden
from forge.build.together import Joint
from forge.errors import HostError
from forge.events import Event, Listener
from forge.files import copies, texts
from forge.machine.containers import Archiving, Containers
from forge.plan.resolved import Resolved
from forge.plan.steps import MakeImage, Step
from forge.remote import record, transfer
from forge.remote.record import Builder
from forge.remote.signature import Notary
from forge.remote.tarred import BundleError, Packing, parts
from forge.schema.values import LOCAL
from forge.store.artifact import Artifact

_ROOM = "free space there, or name another place with -o"


class Texts(Struct, frozen=True):
    """The files of persons that a build reads, and the folder that they have in common, whose name stays behind."""

    root: Path
    named: tuple[Path, ...]
    files: tuple[Path, ...]

    def place(self, path: Path) -> str:
        """Where something below the folder in common is in the bundle."""
        return Path(os.path.relpath(path.absolute(), self.root)).as_posix()


def gathered(joint: Joint, asked: Sequence[str | None]) -> Texts:
    """The deployment, its recipes with their locks and transcripts, and the prompts that each has ``asked`` for."""
    recipes = [joint.path(member) for member in joint.stated.members]
    wanted = list(recipes)
    for recipe, file in zip(recipes, asked, strict=True):
        beside = (recipe.with_name(f"{recipe.name}.lock"), golden(recipe))
        wanted += [each for each in beside if each.is_file()]
        wanted += [recipe.parent / file] if file else []
    if joint.file:
        wanted.append(joint.file)
        stated = [member.recipe for member in joint.stated.members]
    else:
        stated = []
    if outside := [each for each in (*stated, *(file for file in asked if file)) if os.path.isabs(each)]:
        hint = "name it relative to the file that names it: the bundle is built from in another folder"
        raise BundleError(f"{outside[0]} is named by its whole path", where=str(joint.file or recipes[0]), hint=hint)
    files = tuple(dict.fromkeys(Path(os.path.normpath(each.absolute())) for each in wanted))
    root = Path(os.path.commonpath([each.parent for each in files]))
    named = (joint.file,) if joint.file else tuple(recipes)
    return Texts(root, tuple(Path(os.path.normpath(each.absolute())) for each in named), files)


def read(found: Texts, templates: Mapping[str, str]) -> dict[str, str]:
    """Their texts by path in the bundle, with Dockerfiles of one's own (name -> text)."""
    held = {found.place(file): texts.read(file, BundleError, "what a bundle has to hold") for file in found.files}
    return held | {f"Dockerfiles/{name}": text for name, text in templates.items()}


def images(
    all_resolved: Sequence[Resolved], steps: Sequence[Step], contained: Callable[[], Contained], home: Path, tell: Listener
) -> tuple[Image, ...]:
    """What the recipes' commands and servers run in: the images that were pulled, and those made on top of them.

    ``home`` is whose forge has made the latter. One that somebody has pruned since is made again.
    """
    if not any(each.recipe.runtime.contained for each in all_resolved):
        return ()
    engine = contained()
    containers = engine.containers
    found: dict[str, Image] = {}
    for reference in dict.fromkeys(each.facts.toolchain.image for each in all_resolved if each.recipe.runtime.contained):
        if reference != LOCAL:
            found[reference] = _image(containers, reference, "")
    for step in steps:
        if isinstance(step.action, MakeImage) and step.action.reference != LOCAL:
            identity = engine.image(step, step.action, tell)
            if identity not in {each.id for each in found.values()}:
                made = {one.key: one.name for one in containers.made(str(home))}
                found[identity] = _image(containers, made.get(step.key, identity), step.key)
    return tuple(found.values())


def _image(containers: Containers, reference: str, key: str) -> Image:
    held = containers.inspect(reference)
    if held is None:
        raise HostError("this machine no longer holds the image", where=reference, hint="run `forge bundle` again")
    words = {name: getattr(held, name) for name in ("reference", "id", "identity", "base", "content", "size")}
    return Image(**words, key=key)


class Writer(Struct, frozen=True):
    """Writes one bundle to ``file``; nothing stands there before all of it does."""

    file: Path
    tell: Listener
    notary: Notary

    def write(self, contents: Contents, chosen: Chosen, containers: Containers) -> int:
        """The bytes of the file. Its artifacts and images are stated in ``contents`` anew, as they were written."""
        if short := copies.shortage(chosen.size, self.file.absolute().parent):
            raise BundleError(short, where=str(self.file), hint=_ROOM)
        packing = self._begun()
        with ExitStack() as stack:
            stack.callback(packing.discard)  # once it has its name nothing is left to be removed
            try:
                for artifact in (*chosen.artifacts, *chosen.environments):
                    self._send(artifact, packing, contents.by)
                archive = self._save(contents.images, packing, containers)
                held = structs.replace(
                    contents,
                    records=packing.digests(),
                    environments=tuple(one.key for one in chosen.environments),
                    archive=archive,
                )
                return packing.publish(encode(held, self.notary.signer))
            except OSError as error:
                hint = _ROOM if error.errno else ""
                raise BundleError(f"it is not written: {error.strerror or error}", where=str(self.file), hint=hint) from error

    def _begun(self) -> Packing:
        try:
            return Packing(self.file.absolute())
        except OSError as error:
            hint = "name a folder that is there and can be written"
            raise BundleError(f"it cannot be written: {error.strerror}", where=str(self.file), hint=hint) from error

    def _send(self, artifact: Artifact, packing: Packing, by: Builder) -> None:
        step = artifact.manifest.provenance.step
        if problems := [
            f"{one.path} {why}" for one in artifact.files() if one.path not in OWN and (why := record.misplaced(one))
        ]:
            raise BundleError(f"{step} cannot be moved: {problems[0]}", where=str(artifact.path))
        name = f"{step}, into the bundle"
        self.tell(Event("start", name, artifact.key, total=artifact.size))

        def progress(done: int, total: int) -> None:
            self.tell(Event("progress", name, artifact.key, done=done, total=total))

        done = transfer.send(artifact, packing, progress, anew=False)
        text = record.encode(artifact, done.parts, by, self.notary.attest(artifact, by))
        packing.write(artifact.key, text, done.blobs, anew=False)
        self.tell(Event("sent", name, artifact.key, size=done.sent))

    def _save(self, wanted: Sequence[Image], packing: Packing, containers: Containers) -> tuple[str, ...]:
        if not wanted:
            return ()
        if not isinstance(containers, Archiving):
            raise BundleError("this container engine saves no images", hint="bundle where Docker runs")
        name, done = "images, into the bundle", 0
        self.tell(Event("start", name, total=sum(each.size for each in wanted)))

        def keep(data: bytes) -> str:
            blob = packing.address(data, "")
            packing.put(blob, data)
            return blob

        def told(stream: Iterator[bytes]) -> Iterator[bytes]:
            nonlocal done
            for piece in stream:
                yield piece
                done += len(piece)
                self.tell(Event("progress", name, done=done, total=done))

        archive = parts(told(containers.save([each.reference for each in wanted])), keep)
        self.tell(Event("sent", name, size=done))
        return archive
