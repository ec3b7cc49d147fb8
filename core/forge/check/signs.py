"""Looks at all that recipes stand on, for ``forge doctor``: gathers signs through the ports; ``doctor`` judges them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field

from forge.build.recipe_facts import image
from forge.build.sources.lookups import refused
from forge.build.sources.source import Origin
from forge.check import doctor
from forge.check.doctor import Finding, RecipeNeeds, Signs
from forge.errors import ForgeError, HostError, Problem, RecipeError
from forge.files import trees
from forge.machine.bonds import temporary
from forge.machine.containers import Containers, DaemonFacts
from forge.machine.machine import Disk, Machine
from forge.plan import families
from forge.plan.steps import Fetch, Step
from forge.recipe.deployment import Asked
from forge.schema.twin_environment import serving_environment
from forge.schema.values import Calibration, Checkpoint, Pinned, Ports, Recipe, RuntimeKind, Source, SourceKind
from forge.store.store import Store
from forge.trtllm import image_table as compatibility


class Checkup(Struct, frozen=True):
    """The ports that it looks through. It changes nothing but what origins remember of an answer, for
    which forge's home is made."""

    home: Path
    store: Store
    origins: Mapping[SourceKind, Origin]
    machine: Machine
    containers: Containers

    def findings(self, files: Sequence[Path], asked: Callable[[Path], Sequence[Asked]]) -> tuple[Finding, ...]:
        """Everything found; ``asked`` gives the recipe of a file, or all of a deployment's, or raises."""
        case = _Case(self)
        for file in files:
            try:
                recipes = asked(file)
            except ForgeError as error:
                case.found += doctor.failed("recipe", str(file), error)
                continue
            for each in recipes:
                case.read(each)
        needs = tuple(case.needs)
        return (*doctor.examine(needs, self._signs(needs)), *case.found)

    def _signs(self, needs: tuple[RecipeNeeds, ...]) -> Signs:
        docker, daemon = self._docker()
        host = self.machine.host()
        return Signs(
            home=self.machine.disk(self.home),
            host=host,
            shared_memory=self.machine.shared_memory(),
            docker=docker,
            daemon=daemon,
            images=self._images(daemon),
            held=self._held(needs) if daemon else frozenset(),
            driver=self.machine.driver(),
            gpus=self.machine.gpus(),
            inside=self.machine.inside(),
            twin=_lacking(lambda: self.machine.check(serving_environment(host))),
            plugins=families.installed(),
            leftovers=len(self.store.leftovers()),
            restricts=self.machine.restricts(host.triton),
            traces=self.machine.traces(),
            temporary=_lacking(temporary),
            refused=refused(self.home),
            writers=trees.writers(self.home) or trees.writers(self.store.root),
        )

    def _docker(self) -> tuple[tuple[Problem, ...], DaemonFacts | None]:
        if problems := self.containers.check():
            return problems, None
        try:
            return (), self.containers.facts()
        except HostError as error:  # it went away in between
            return (Problem(error.where, error.what, error.hint),), None

    def _images(self, daemon: DaemonFacts | None) -> Disk | None:
        """The disk of Docker's images; None where the daemon is on another machine."""
        return self.machine.disk(Path(daemon.storage)) if daemon and daemon.free else None

    def _held(self, needs: tuple[RecipeNeeds, ...]) -> frozenset[str]:
        images = {each.reference for each in needs if each.contained}
        return frozenset(image for image in images if self.containers.inspect(image) is not None)


class _Case(Struct):
    """What was learnt of the recipes so far."""

    checkup: Checkup
    needs: list[RecipeNeeds] = field(default_factory=list[RecipeNeeds])
    found: list[Finding] = field(default_factory=list[Finding])

    def read(self, asked: Asked) -> None:
        """Look at one recipe, or say why it cannot be read."""
        try:
            recipe = asked.read()
        except ForgeError as error:
            self.found += doctor.failed("recipe", str(asked.path), error)
        else:
            self.take(recipe, asked.path.absolute().parent, asked.ports)

    def take(self, recipe: Recipe, base: Path, ports: Ports) -> None:
        """Look at one recipe: its image, its sources, its plugins."""
        try:
            if problems := compatibility.check(recipe, image(recipe)):
                raise RecipeError(problems)
        except ForgeError as error:
            self.found += doctor.failed("image", recipe.name, error)
            return
        sources = [source for source in (recipe.source, recipe.draft) if source is not None]
        pins = [self._source(recipe.name, source, base) for source in sources]
        texts = recipe.convert.calibration if recipe.runtime.kind is RuntimeKind.ENGINE else None
        if texts is not None:
            pins.append(self._source(recipe.name, texts, base))
        pinned = [pin for pin, _ in pins if pin is not None]
        missing = [pin for pin in pinned if self.checkup.store.find(Step("model", Fetch(pin)).key) is None]
        each = RecipeNeeds(
            name=recipe.name,
            kind=recipe.runtime.kind,
            image=recipe.runtime.image,
            gpus=0 if recipe.runtime.gpus == "none" else recipe.convert.tp * recipe.convert.pp,
            size=_bytes(pinned[:1]),
            missing=_bytes(missing),
            plugins=tuple(filter(None, (recipe.family, recipe.variant))) if recipe.family else (),
            ports=ports,
            docker=recipe.runtime.contained and not recipe.runtime.kind.contained,
        )
        self.needs.append(each)
        checkpoint = pins[0][1]
        if checkpoint is None or recipe.runtime.kind is RuntimeKind.VLLM:  # vLLM needs no plugin
            return
        try:
            family = families.Family.of(recipe, checkpoint)
        except ForgeError as error:
            self.found += doctor.failed("plugins", recipe.name, error)
            return
        by = f"served by {family.name}" if family.name else f"{recipe.runtime.kind} needs no family for it"
        self.found.append(Finding("plugins", doctor.Status.OK, f"{recipe.name}: {by}"))

    def _source(self, name: str, source: Source, base: Path) -> tuple[Pinned | None, Checkpoint | None]:
        """Whether it can be found and read: a gated model is found by everybody."""
        origin = self.checkup.origins[source.kind]
        pinned = checkpoint = None
        try:
            pinned = origin.pin(source, base)
            checkpoint = None if isinstance(source, Calibration) else origin.read(pinned)
        except ForgeError as error:
            self.found += doctor.failed("source", name, error)
        else:
            self.found.append(doctor.had(name, pinned))
        return pinned, checkpoint


def _lacking(need: Callable[[], object]) -> Problem | None:
    """What this machine lacks for it."""
    try:
        need()
    except HostError as error:
        return Problem(error.where, error.what, error.hint)
    return None


def _bytes(pins: Sequence[Pinned]) -> int:
    return sum(file.size for pin in pins for file in pin.files)
