"""Wires the rooms: the Python API. ``Workshop.here()`` is what the command line uses, and scripts too.

from forge.workshop import Workshop
shop = Workshop.here()
built = shop.build(["recipes/smollm2-135m-instruct.toml"], repository="model-repository")
running = shop.serve("model-repository")
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from forge import drafting, entering, publishing, repository
from forge.asking import Target
from forge.builder import Builder
from forge.checkup import Checkup
from forge.containers import dockerfile
from forge.doctor import Finding
from forge.doors import Doors
from forge.errors import InferenceError, RepositoryError, ServerError
from forge.families import find
from forge.fitting import Report
from forge.intake import Intake, safe_name, source_of
from forge.launching import launch
from forge.manifest import Manifest, PublishedModel
from forge.model import Command, Recipe, RuntimeKind, SourceKind
from forge.order import Order
from forge.outlook import Outlook, outlook
from forge.plan import plan
from forge.ports import Chunk, Event, Launch, Listener, Ports, Request, Running
from forge.sizing import Sizing
from forge.steps import Plan, Stage
from forge.store import Store
from forge.toolchain import template

AnyPath = str | Path


def _silent(_: Event) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Built:
    """A repository after a build: which models it published, and how many bytes had to be copied instead of linked."""

    repository: Path
    models: tuple[PublishedModel, ...]
    linked: int
    copied: int


class Workshop:
    """One home folder (store, servers, notes) and the doors to the world."""

    def __init__(
        self, home: Path, environ: Mapping[str, str], listener: Listener = _silent, doors: Doors | None = None
    ) -> None:
        self.home = home
        self._tell = listener
        self._doors = doors or Doors(home, environ, self._say)
        self._intake = Intake(self.store, self._doors, Path("Dockerfiles"), self._say)

    @classmethod
    def here(cls, listener: Listener = _silent) -> "Workshop":
        """The workshop of this user: FORGE_HOME, or the platform's cache folder."""
        if named := os.environ.get("FORGE_HOME"):
            return cls(Path(named).expanduser().absolute(), dict(os.environ), listener)
        from platformdirs import user_cache_path

        return cls(user_cache_path("forge"), dict(os.environ), listener)

    @cached_property
    def store(self) -> Store:
        return Store(self.home / "store", clock=time.time)

    def _say(self, text: str) -> None:
        self._tell(Event("note", "facts", text=text))

    def examine(self, recipes: Sequence[AnyPath] = (), runtime: RuntimeKind | None = None) -> tuple[Finding, ...]:
        """What is missing here for ``recipes``, or for anything at all, and how to mend it."""
        checkup = Checkup(self.home, self.store, self._doors.origins, self._doors.machine, self._doors.containers)
        return checkup.findings([Path(path) for path in recipes], lambda path: self.read(path, runtime))

    # -- planning

    def read(self, path: AnyPath, runtime: RuntimeKind | None = None) -> Recipe:
        """The recipe at ``path``; RecipeError carries everything that is wrong with it."""
        return self._intake.read(Path(path), runtime)

    def order(self, path: AnyPath, *, runtime: RuntimeKind | None = None, locked: bool = False) -> Order:
        """A recipe with its facts and its plugins, ready to be planned."""
        return self._intake.order(Path(path), runtime=runtime, locked=locked)

    def lock(self, path: AnyPath, *, upgrade: bool = False) -> tuple[Path, bool]:
        """Write ``<recipe>.lock``; what a valid one pins stays unless ``upgrade``. Says whether the file changed."""
        return self._intake.lock(Path(path), upgrade=upgrade)

    def plan(
        self,
        recipes: Sequence[AnyPath],
        *,
        runtime: RuntimeKind | None = None,
        locked: bool = False,
        prefixed: bool = False,
    ) -> Plan:
        """Everything that a build of ``recipes`` would stand on. Metadata only; nothing runs."""
        wanted = plan([self.order(path, runtime=runtime, locked=locked) for path in recipes], prefixed=prefixed)
        for note in wanted.notes:
            self._say(note)
        return wanted

    def dockerfile(self, path: AnyPath) -> str:
        """What a build would make the recipe's image from; the base as the recipe names it, where it is not here."""
        order = self.order(path)
        held = order.facts.toolchain.identity and self._doors.containers.inspect(order.facts.toolchain.image)
        base = held.base if held else order.facts.toolchain.image
        return dockerfile(base, order.family.requirements(order.facts.toolchain), order.dockerfile or template())

    def outlook(self, wanted: Plan) -> tuple[Outlook, ...]:
        """For each step: held, or to be made and why."""
        return outlook(wanted, self.store)

    def fit(self, recipes: Sequence[AnyPath], *, gpu: str = "", runtime: RuntimeKind | None = None) -> Report:
        """What ``recipes`` need, and whether it fits the GPU of that name or those that are here. Fetches no weights."""
        orders = [self.order(path, runtime=runtime) for path in recipes]
        return Sizing(self._doors.origins, self.store).report(orders, self._doors.gpus(), self._doors.memory(), gpu)

    def draft(self, source: str, name: str | None = None, revision: str = "main", base: AnyPath = ".") -> str:
        """The text of a recipe for a checkpoint: a hub id, a git URL, or a folder or .gguf file seen from here.

        Paths in the recipe are relative to ``base``, the folder that it will stand in.
        """
        origin = source_of(source, revision, Path(base))
        found = self._doors.origins[origin.kind]
        checkpoint = found.read(found.pin(origin, Path(base).absolute()))
        stem = Path(source).stem if origin.kind is SourceKind.GGUF else Path(source).name.removesuffix(".git")
        family = find(checkpoint) if checkpoint.architectures else ""
        return drafting.draft(name or safe_name(stem), origin, checkpoint, family)

    # -- building

    def build(
        self,
        recipes: Sequence[AnyPath],
        *,
        repository: AnyPath = "model-repository",
        runtime: RuntimeKind | None = None,
        locked: bool = False,
        prefixed: bool = False,
    ) -> Built:
        """Make what ``recipes`` need and publish it into ``repository``."""
        orders = self._prepared([self.order(path, runtime=runtime, locked=locked) for path in recipes])
        wanted = plan(orders, prefixed=prefixed)
        place = Path(repository).absolute()
        models = entering.in_order(place, [entering.published(o, e) for o, e in zip(orders, wanted.entries, strict=True)])
        with self.store.using(step.key for step in wanted.steps):
            artifacts = self._builder.realise(wanted.steps)
            self.store.remember(place)
            relocate = self._relocate(place, models)
            done = [publishing.publish(artifacts[m.entry].path, place, m, relocate) for m in models]
        return Built(place, models, sum(each.linked for each in done), sum(each.copied for each in done))

    def make(
        self, recipes: Sequence[AnyPath], until: Stage, *, runtime: RuntimeKind | None = None, locked: bool = False
    ) -> Plan:
        """Make the steps of ``recipes`` up to a stage, and publish nothing; the part of the plan that was made."""
        orders = [self.order(path, runtime=runtime, locked=locked) for path in recipes]
        wanted = plan(self._prepared(orders, gpus=until is Stage.BUILD)).until(until)
        with self.store.using(step.key for step in wanted.steps):
            self._builder.realise(wanted.steps)
        return wanted

    def _prepared(self, orders: list[Order], *, gpus: bool = True) -> list[Order]:
        """The orders with what their images say of themselves; HostError, before any download, for what is missing here."""
        contained = [order for order in orders if order.recipe.runtime.kind is not RuntimeKind.TWIN]
        if not contained:
            return orders
        plan(orders)  # what can be refused without an image is refused before one is pulled
        self._intake.require(contained, gpus=gpus)
        return [self._intake.furnished(order, self._builder, self._tell) for order in orders]

    @cached_property
    def _builder(self) -> Builder:
        return Builder(self.store, self._doors.tools, self._tell)

    def _relocate(self, place: Path, models: Iterable[PublishedModel]) -> publishing.Relocate:
        """Configs name the repository's place on this machine where the twin serves it, and the container's otherwise."""
        if any(model.serving is None or model.serving.image for model in models):
            return lambda text: text
        return lambda text: repository.relocate(text, str(place), self._doors.blank)

    # -- serving

    def manifest(self, repository: AnyPath) -> Manifest:
        """What forge has published into ``repository``."""
        place = Path(repository).absolute()
        held = publishing.inventory(place)
        if not held.models:
            raise RepositoryError("nothing was published here", where=str(place), hint="`forge build RECIPE` does")
        return held

    def launch(self, repository: AnyPath, ports: Ports, *, detach: bool = False) -> Launch:
        """All that starting a server on ``repository`` needs."""
        place = Path(repository).absolute()
        publishing.settle(place, self._relocate(place, self.manifest(place).models))
        held = self.manifest(place)
        return launch(place, held, self.store, ports, detach=detach)

    def command(self, repository: AnyPath, ports: Ports) -> Command:
        """The exact command line that ``serve`` would start."""
        return self._doors.server.command(self.launch(repository, ports))

    def serve(self, repository: AnyPath, ports: Ports | None = None, *, detach: bool = False) -> Running:
        """Start Triton on ``repository``; returns when every model is ready."""
        wanted = self.launch(repository, ports or Ports(), detach=detach)
        self._tell(Event("start", "server"))
        began = time.monotonic()
        self.store.remember(wanted.repository)
        running = self._doors.server.start(wanted, lambda line: self._tell(Event("log", "server", text=line)))
        self.store.lend(self.manifest(wanted.repository).held, running.pid, running.started)
        self._tell(Event("made", "server", seconds=time.monotonic() - began))
        return running

    def servers(self) -> tuple[Running, ...]:
        """The servers of this workshop that are alive."""
        return self._doors.server.running()

    def server(self, repository: AnyPath) -> Running:
        """The one that serves ``repository``."""
        place = str(Path(repository).absolute())
        for running in self.servers():
            if running.repository == place:
                return running
        raise ServerError("no server runs on this repository", where=place, hint="start one: `forge serve`")

    def stop(self, running: Running) -> None:
        """Stop it; returns when no process and no shared memory is left."""
        self._doors.server.stop(running)

    def logs(self, repository: AnyPath, *, follow: bool = False) -> Iterator[str]:
        """The lines of the server's log; with ``follow`` until it ends."""
        running = self.server(repository)
        with Path(running.log).open(encoding="utf-8", errors="replace") as log:
            while True:
                yield from (line.rstrip("\n") for line in log)
                if not follow or all(other.pid != running.pid for other in self.servers()):
                    return
                time.sleep(0.2)

    def wait(self, running: Running) -> None:
        """Return when the server has ended."""
        while any(other.pid == running.pid for other in self.servers()):
            time.sleep(0.5)

    # -- asking

    def target(self, model: str, repository: AnyPath | None = None) -> Target:
        """Find a served model by its recipe's name, among the running servers or in one repository's."""
        running = self.servers() if repository is None else (self.server(repository),)
        known: list[str] = []
        for server in running:
            for each in self.manifest(server.repository).models:
                known.append(each.name)
                if each.name == model:
                    return Target(f"{server.ports.host}:{server.ports.grpc}", each, Path(server.repository))
        if not running:
            raise ServerError("no server is running", hint="start one: `forge serve --detach`")
        raise InferenceError(f"no running server offers {model!r}", hint=f"offered: {', '.join(known) or 'nothing'}")

    def generate(self, address: str, request: Request) -> Iterator[Chunk]:
        """Ask and stream the answer; closing the iterator cancels the request."""
        return self._doors.client.generate(address, request)

    def templated(self, target: Target, messages: Sequence[tuple[str, str]]) -> str:
        """``messages`` as (role, text), put into the model's own chat template, ready for its answer."""
        return self._doors.templated(target.tokenizer, messages)
