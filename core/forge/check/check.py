"""``forge check``: reads a repository folder into values, applies the rules, and fixes what can be fixed safely.

The folder can be anyone's: forge's own, NVIDIA's skeletons filled by hand, or what is left of either.
"""

from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from msgspec import Struct, structs
from msgspec.structs import replace

from forge.check import repository_reader, rules
from forge.check.fix import fixed
from forge.check.rules import Finding, Repository, Severity
from forge.errors import RepositoryError
from forge.files import texts, trees
from forge.recipe.deployment import Deployed
from forge.repository import config as repository, publish
from forge.repository.folders import whole
from forge.schema.manifest import Manifest, PublishedModel
from forge.schema.values import Gpu
from forge.store.store import Store
from forge.trtllm import image_table

T = TypeVar("T")


class Cards(Protocol):
    """A machine, as far as a check asks (``forge.machine.machine.Machine``)."""

    def gpus(self) -> tuple[Gpu, ...]: ...
    def restricts(self, triton: str) -> bool: ...


class Report(Struct, frozen=True):
    """What a check found, and what a fix changed before."""

    repository: str
    findings: tuple[Finding, ...]
    changes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        return {str(severity): sum(each.severity is severity for each in self.findings) for severity in Severity}

    @property
    def failed(self) -> bool:
        return any(each.severity is Severity.ERROR for each in self.findings)


class Checker(Struct, frozen=True):
    """Looks at repositories. The store knows what published engines were built for, the machine what GPUs are here."""

    store: Store
    machine: Cards

    def check(self, folder: Path, deployed: Deployed | None = None, *, image: str = "", fix: bool = False) -> Report:
        """Hold a repository against every rule; ``image`` serves it (a tag or reference), where its manifest does not say.
        ``deployed`` is the deployment that was named in its place.

        RepositoryError where there is no repository. With ``fix`` what is safe to fix is fixed first.
        """
        place = whole(folder)
        if not place.is_dir():
            what = texts.no_folder(place) or "there is no such folder"
            raise RepositoryError(what, where=str(place), hint="name a repository or a deployment's file")
        seen = replace(self.look(place, image), deployed=deployed)
        if not seen.models:
            what = "this is no model repository: no folder in it holds a config.pbtxt"
            hint = "name the folder that tritonserver is given as --model-repository"
            raise RepositoryError(what, where=str(place), hint=hint)
        changes = apply_fixes(place, seen) if fix else ()
        after = replace(self.look(place, image), deployed=deployed) if changes else seen
        return Report(str(place), rules.examine(after), changes)

    def published(self, place: Path, models: Sequence[PublishedModel]) -> tuple[Finding, ...]:
        """What is wrong with some of the models that forge has published at ``place``, whatever stands beside them."""
        names = {model.name for model in models}

        def look() -> tuple[Finding, ...]:
            return self._of(place, publish.inventory(place), names)

        if found := self._still(place, look):  # half of a model may have been seen, which another process takes away
            with suppress(RepositoryError), publish.quiet(place):
                return look()
        return found

    def _of(self, place: Path, held: Manifest, names: Container[str]) -> tuple[Finding, ...]:
        held = structs.replace(held, models=tuple(model for model in held.models if model.name in names))
        folders = frozenset(folder for model in held.models for folder in model.roles.values())
        found = rules.examine(self._seen(place, held, self._image(held), folders))
        return tuple(each for each in found if each.severity is not Severity.REMARK)

    def look(self, place: Path, image: str = "") -> Repository:
        """The repository at ``place`` as values."""

        def seen() -> Repository:
            held = publish.found(place)
            return self._seen(place, held, image_table.toolchain(image).image if image else self._image(held))

        return self._still(place, seen)

    def _still(self, place: Path, look: Callable[[], T]) -> T:
        """What a look at ``place`` finds; where something goes away under it, by one while nobody publishes there."""
        try:
            return look()
        except FileNotFoundError:
            if publish.found(place) is None:
                raise
            with publish.quiet(place):
                return look()

    def _seen(self, place: Path, held: Manifest | None, reference: str, only: frozenset[str] = frozenset()) -> Repository:
        known = image_table.release(reference)
        return replace(
            repository_reader.read(place, held, only),
            image=reference,
            trtllm=known.trtllm if known else "",
            architectures=self._architectures(held),
            gpus=self.machine.gpus(),
            unrestricted=self._unrestricted(held),
        )

    def _unrestricted(self, held: Manifest | None) -> str:
        """The folder of the installed Triton that serves it and is too old to restrict anything; images are not looked into."""
        folders = {model.serving.triton for model in held.models if model.serving} if held else set[str]()
        return next((folder for folder in sorted(folders) if not self.machine.restricts(folder)), "")

    def _image(self, held: Manifest | None) -> str:
        """The reference of the image that serves it, where the store remembers one."""
        for model in held.models if held else ():
            made = self.store.find(model.serving.image) if model.serving and model.serving.image else None
            if made is not None:
                return str(texts.document(made.path / "image.json")[0].get("reference", ""))
        return ""

    def _architectures(self, held: Manifest | None) -> dict[str, str]:
        """Published model -> the GPU that the engine step of its build was for."""
        found: dict[str, str] = {}
        for model in held.models if held else ():
            key = model.keys.get(f"{model.name}: engine")
            made = self.store.find(key) if key else None
            if made is not None:
                found[model.name] = made.manifest.provenance.inputs.get("gpu", "")
        return found


def apply_fixes(place: Path, seen: Repository) -> tuple[str, ...]:
    """Change what is safe to change in the repository at ``place``; each change as a sentence.

    A config is written beside itself and renamed over: a file that shares its blocks with another keeps them. What a published
    one is made from when its repository moves is fixed too, or the move would bring the fault back.
    """
    said: list[str] = []
    held = publish.inventory(place)
    for each in fixed(seen):
        target = place / each.path
        if each.text is None:
            target.mkdir(exist_ok=True)
        else:
            trees.write_whole(target, each.text, aside=target.parent)
            if kept := publish.original(place, held, each.path):
                text = repository.relocate(each.text, repository.ROOT, before=held.root)
                trees.write_whole(kept, text, aside=kept.parent)
        said += [f"{each.path}: {what}" for what in each.what]
    return tuple(said)
