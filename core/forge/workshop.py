"""Wires the rooms: the Python API. ``Workshop.here()`` is what the command line uses, and scripts too.

from forge.workshop import Workshop
shop = Workshop.here()
built = shop.build(["recipes/smollm2-135m-instruct.toml"], repository="model-repository")
running = shop.serve("model-repository")
"""

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from forge import drafting, publishing, recipe, repository
from forge import lock as locks
from forge.builder import Builder
from forge.doors import Doors
from forge.errors import InferenceError, LockError, RepositoryError, ServerError, SourceError
from forge.facts import World, gather
from forge.families import Family, find
from forge.manifest import Manifest, PublishedModel, Serving
from forge.model import Command, Facts, Recipe, Role, RuntimeKind, Source, SourceKind
from forge.order import Order
from forge.outlook import Outlook, outlook
from forge.plan import plan
from forge.ports import Chunk, Event, Launch, Listener, Ports, Request, Running
from forge.serving import serving_environment
from forge.steps import Entry, LayBackends, Plan, Step
from forge.store import Store

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


@dataclass(frozen=True)
class Target:
    """A served model to speak to: where, under which Triton name, and what its recipe wants asked."""

    address: str
    model: PublishedModel
    repository: Path

    @property
    def tokenizer(self) -> Path:
        return self.repository / "_assets" / self.model.name / "tokenizer"

    def request(self, prompt: str) -> Request:
        """A request with the recipe's sampling. Without a seed it draws one: the server would reuse a fixed one."""
        wanted = self.model.sampling
        return Request(
            model=self.model.roles[Role.BLS],
            prompt=prompt,
            max_tokens=wanted.max_tokens,
            temperature=wanted.temperature,
            top_k=wanted.top_k,
            top_p=wanted.top_p,
            seed=secrets.randbits(63) if wanted.seed is None else wanted.seed,
            beam_width=wanted.beam_width,
            repetition_penalty=wanted.repetition_penalty,
            presence_penalty=wanted.presence_penalty,
            frequency_penalty=wanted.frequency_penalty,
            min_tokens=wanted.min_tokens,
            stop=wanted.stop,
        )


class Workshop:
    """One home folder (store, servers, notes) and the doors to the world."""

    def __init__(
        self, home: Path, environ: Mapping[str, str], listener: Listener = _silent, doors: Doors | None = None
    ) -> None:
        self.home = home
        self._tell = listener
        self._doors = doors or Doors(home, environ, lambda text: listener(Event("note", "facts", text=text)))
        self._world = World(self._doors.origins, self._doors.host)

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

    # -- planning

    def read(self, path: AnyPath, runtime: RuntimeKind | None = None) -> Recipe:
        """The recipe at ``path``; RecipeError carries everything that is wrong with it."""
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise SourceError(f"cannot read the recipe: {error.strerror}", where=str(file)) from error
        except UnicodeDecodeError as error:
            raise SourceError(f"the recipe is not UTF-8 text: {error}", where=str(file)) from error
        return recipe.read(text, str(file), runtime)

    def order(self, path: AnyPath, *, runtime: RuntimeKind | None = None, locked: bool = False) -> Order:
        """A recipe with its facts and its plugins, ready to be planned."""
        wanted = self.read(path, runtime)
        lock = self._lock(Path(path), wanted, required=locked)
        facts = gather(
            wanted,
            Path(path).absolute().parent,
            self._world,
            lock,
        )
        return Order(wanted, Family.of(wanted, facts.checkpoint), facts)

    def plan(
        self,
        recipes: Sequence[AnyPath],
        *,
        runtime: RuntimeKind | None = None,
        locked: bool = False,
        prefixed: bool = False,
    ) -> Plan:
        """Everything that a build of ``recipes`` would stand on. Metadata only; nothing runs."""
        return plan([self.order(path, runtime=runtime, locked=locked) for path in recipes], prefixed=prefixed)

    def outlook(self, wanted: Plan) -> tuple[Outlook, ...]:
        """For each step: held, or to be made and why."""
        return outlook(wanted, self.store)

    def draft(self, source: str, name: str | None = None, revision: str = "main", base: AnyPath = ".") -> str:
        """The text of a recipe for a checkpoint: a hub id, or a folder or .gguf file seen from here.

        Paths in the recipe are relative to ``base``, the folder that it will stand in.
        """
        origin = _source_of(source, revision, Path(base))
        found = self._doors.origins[origin.kind]
        checkpoint = found.read(found.pin(origin, Path(base).absolute()))
        stem = Path(source).stem if origin.kind is SourceKind.GGUF else Path(source).name
        family = find(checkpoint) if checkpoint.architectures else ""
        return drafting.draft(name or _safe(stem), origin, checkpoint, family)

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
        orders = [self.order(path, runtime=runtime, locked=locked) for path in recipes]
        wanted = plan(orders, prefixed=prefixed)
        place = Path(repository).absolute()
        models = _in_order(place, [_published(o.recipe, e) for o, e in zip(orders, wanted.entries, strict=True)])
        with self.store.using(step.key for step in wanted.steps):
            artifacts = Builder(self.store, self._doors.tools, self._tell).realise(wanted)
            self.store.remember(place)
            done = [publishing.publish(artifacts[m.entry].path, place, m, self._relocate(place)) for m in models]
        return Built(place, models, sum(each.linked for each in done), sum(each.copied for each in done))

    def _relocate(self, place: Path) -> Callable[[str], str]:
        return lambda text: repository.relocate(text, str(place), self._doors.blank)

    # -- locks

    def lock(self, path: AnyPath, *, upgrade: bool = False) -> tuple[Path, bool]:
        """Write ``<recipe>.lock``; what a valid one pins stays unless ``upgrade``. Says whether the file changed."""
        wanted = self.read(path)
        file = Path(f"{path}.lock")
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        kept = None if upgrade or not before else self._fitting(before, file, wanted)
        facts = gather(wanted, Path(path).absolute().parent, self._world, kept)
        after = locks.write(locks.lock(wanted, facts.source, facts.draft, *_versions(wanted, facts)))
        if after != before:
            scratch = file.with_name(f"{file.name}.new")
            scratch.write_text(after, encoding="utf-8")
            scratch.replace(file)
        return file, after != before

    def _fitting(self, text: str, file: Path, wanted: Recipe) -> locks.Lock | None:
        with suppress(LockError):  # one that cannot be read is written anew
            found = locks.read(text, str(file))
            return None if locks.stale(found, wanted) else found
        return None

    def _lock(self, path: Path, wanted: Recipe, *, required: bool) -> locks.Lock | None:
        file = Path(f"{path}.lock")
        if not file.is_file():
            if required:
                raise LockError("there is no lock", where=str(file), hint=f"write it with `forge lock {path}`")
            return None
        found = locks.read(file.read_text(encoding="utf-8"), str(file))
        reasons = locks.stale(found, wanted)
        if not reasons:
            return found
        hint = f"move it with `forge lock {path}`"
        if required:
            raise LockError(f"the lock is stale: {'; '.join(reasons)}", where=str(file), hint=hint)
        self._tell(Event("note", str(file), text=f"the lock is stale and was not used: {'; '.join(reasons)}; {hint}"))
        return None

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
        publishing.settle(place, self._relocate(place))
        held = self.manifest(place)
        tables = [model.serving for model in held.models if model.serving]
        if len(tables) != len(held.models):
            raise ServerError(
                "these models are served in NVIDIA's container, which this version of forge does not run yet",
                where=str(place),
                hint="build them with `--runtime twin` to serve them here",
            )
        if len({(each.environment, each.backends) for each in tables}) > 1:
            raise ServerError(
                "its models were built for different serving environments",
                where=str(place),
                hint="build all of them again in one `forge build`",
            )
        tools = [self.store.find(key) for key in (tables[0].environment, tables[0].backends)]
        if any(tool is None for tool in tools):
            raise ServerError(
                "its serving environment is no longer held",
                where=str(place),
                hint="build it again: `forge build RECIPE`",
            )
        environment, backends = (tool.path for tool in tools if tool)
        models = tuple(folder for model in held.models for folder in model.roles.values())
        return Launch(place, models, environment, backends, ports, tables[0].triton, detach)

    def command(self, repository: AnyPath, ports: Ports) -> Command:
        """The exact command line that ``serve`` would start."""
        return self._doors.server.command(self.launch(repository, ports))

    def serve(self, repository: AnyPath, ports: Ports | None = None, *, detach: bool = False) -> Running:
        """Start Triton on ``repository``; returns when every model is ready."""
        launch = self.launch(repository, ports or Ports(), detach=detach)
        self._tell(Event("start", "server"))
        began = time.monotonic()
        self.store.remember(launch.repository)
        running = self._doors.server.start(launch, lambda line: self._tell(Event("log", "server", text=line)))
        self.store.lend(self.manifest(launch.repository).held, running.pid, running.started)
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


def _in_order(place: Path, models: Sequence[PublishedModel]) -> tuple[PublishedModel, ...]:
    """The models as they can be published one after another: those already there first, for one may give up plain names.

    RepositoryError where one has no room, before anything is built.
    """
    held = publishing.inventory(place)
    ordered = sorted(models, key=lambda model: held.find(model.name) is None)
    for model in ordered:
        publishing.check_room(place, held, model)
        held = held.having(model)
    return tuple(ordered)


def _versions(wanted: Recipe, facts: Facts) -> tuple[locks.Image | None, dict[str, str]]:
    """The image of a lock, and the packages that serve the twin."""
    if wanted.runtime.kind is not RuntimeKind.TWIN:
        return locks.Image(reference=facts.toolchain.image, trtllm=facts.toolchain.trtllm), {}
    environment = serving_environment(facts.host, wanted.runtime.packages)
    pins = (package.partition("==") for package in (*environment.packages, *environment.bare))
    return None, {name: version for name, _, version in pins}


def _published(wanted: Recipe, entry: Entry) -> PublishedModel:
    steps: dict[str, Step] = {}
    entry.gather(steps)
    table = None
    if entry.serving:
        environment, backends = entry.serving
        triton = backends.action.triton if isinstance(backends.action, LayBackends) else ""
        table = Serving(environment=environment.key, backends=backends.key, triton=triton)
    return PublishedModel(
        name=wanted.name,
        entry=entry.step.key,
        runtime=wanted.runtime.kind,
        roles=entry.names.all(),
        prefix=entry.names.prefix,
        keys={step.name: key for key, step in steps.items()},
        serving=table,
        sampling=wanted.sampling,
    )


def _source_of(text: str, revision: str, base: Path) -> Source:
    """What a person means by SOURCE: something on this disk if it is there, a hub repository otherwise."""
    local = Path(text).expanduser()
    if not local.exists():
        return Source(hub=text, revision=revision)
    place = os.path.relpath(local.absolute(), base.absolute())
    return Source(gguf=place) if local.is_file() else Source(path=place)


def _safe(name: str) -> str:
    """``name`` as a folder's: what a recipe would refuse becomes a dash."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:128] or "model"
