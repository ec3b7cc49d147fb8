"""The Python API: each verb of the command line as a method; ``Forge.here()`` is where both begin."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from msgspec import structs
from msgspec.structs import replace

from forge.api.bundle import Bundled, Bundler
from forge.api.maker import Maker
from forge.api.outcome import Built, Fetched
from forge.api.recipes import AnyPath, Recipes
from forge.api.run import Run
from forge.api.servers import Served
from forge.api.shown import Exhibit
from forge.api.wiring import Wiring
from forge.bench.benchmark import Bench, Clocks, keep
from forge.bench.options import BenchOptions
from forge.bench.results import Results as Measured
from forge.bench.targets import measured
from forge.build import published_model, unchanged
from forge.build.bundle.opened import named_after, opened
from forge.build.cleanup import Upkeep
from forge.build.noted import BuildNotes
from forge.build.recipe_facts import image
from forge.build.resolve import Resolver
from forge.build.scheduler import Allowance
from forge.build.together import Joint, JointResolver
from forge.check.check import Checker, Report as Examined
from forge.check.doctor import Finding
from forge.check.signs import Checkup
from forge.errors import RepositoryError
from forge.events import Event, Listener
from forge.fit.report import Report
from forge.plan.plan import plan, require, require_sizes
from forge.plan.preview import Outlook, Prospect, outlook
from forge.plan.resolved import Resolved
from forge.plan.steps import Fetch, Plan, Stage
from forge.recipe.shipped import located
from forge.repository import config as repository, publish as publishing
from forge.repository.folders import whole
from forge.schema.manifest import Manifest, PublishedModel
from forge.schema.values import AS_STATED, BuildOptions, Command, Ports, RuntimeKind
from forge.serve.digests import Verify
from forge.serve.launch import Held, launch
from forge.serve.lookup import Listed, Target, listed
from forge.serve.port_holders import addressed
from forge.serve.recovery import Care
from forge.serve.scrub import DAY
from forge.serve.server_types import Launch, Running
from forge.serve.update import Turnover
from forge.settings import PLAIN as UNSAID, Executor, Settings, home, read
from forge.verify.served import Proof
from forge.verify.verdicts import Report as Verification
from forge.verify.verify import PLAIN, VerifyOptions

Places = AnyPath | Sequence[AnyPath]

USUAL = BenchOptions()


class Forge(Served, Recipes, Maker):
    """One home folder (store, servers, notes) and all that is asked of the world."""

    def __init__(
        self,
        home: Path,
        environ: Mapping[str, str],
        listener: Listener = lambda _: None,
        wiring: Wiring | None = None,
        *,
        settings: Settings = UNSAID,
    ) -> None:
        """``settings`` are what this person or site has said once and for all (docs/config.md); ``home`` wins over theirs."""
        self.home = home
        self.settings = settings
        self._tell = listener
        self._allowance = Allowance(settings.jobs or min(max(2, (os.cpu_count() or 2) // 2), 4))
        self._wiring = wiring or Wiring(home, environ, self._say, settings.images.mirror)
        self._resolver = Resolver(self.store, self._wiring, self._wiring.templates, self._say, settings.executor or "")
        if self.spreads:
            self._resolver = replace(self._resolver, executor="", architectures=self.cluster.architectures)

    @classmethod
    def here(
        cls,
        listener: Listener = lambda _: None,
        *,
        jobs: int | None = None,
        executor: Executor | None = None,
        remote: str | None = None,
    ) -> "Forge":
        """For this user, as the config file and FORGE_* variables say: the home folder, and what no argument says here."""
        said = read(os.environ, remote).over(jobs, executor)
        return cls(home(os.environ, said), dict(os.environ), listener, settings=said)

    @cached_property
    def _build_notes(self) -> BuildNotes:
        return BuildNotes(unchanged.Notes(self.home), self.store)

    def _say(self, text: str) -> None:
        self._tell(Event("note", "facts", text=text))

    def halt(self) -> None:
        """End, for good, what other threads do for this Forge, as Ctrl-C would."""
        self._wiring.tools.halt.pull()

    def examine(self, recipes: Sequence[AnyPath] = (), runtime: RuntimeKind | None = None) -> tuple[Finding, ...]:
        """What is missing here for ``recipes`` and deployments, or for anything at all, and how to fix it."""
        checkup = Checkup(self.home, self.store, self._wiring.origins, self._wiring.machine, self._wiring.containers)
        return checkup.findings(_files(recipes), lambda path: self._together.asked(path, runtime))

    # -- planning

    def joint(self, recipes: Sequence[AnyPath], *, deployed: bool = False) -> Joint:
        """What ``recipes`` are together, or the deployment that is named; with ``deployed`` a recipe is refused."""
        return self._together.joint(_files(recipes), deployed=deployed)

    @cached_property
    def _together(self) -> JointResolver:
        return JointResolver(self._resolver, self.sharing.has if self.sharing else None)

    def _images(self, recipes: Sequence[AnyPath]) -> tuple[str, ...]:
        joint = self.joint(recipes) if recipes else None
        read = [self._resolver.read(joint.path(member)) for member in joint.stated.members] if joint else []
        return tuple(dict.fromkeys(image(each).image for each in read if each.runtime.contained))

    def _joined(self, joint: Joint, options: BuildOptions) -> list[Resolved]:
        """Its recipes, ready to be planned together."""
        all_resolved = self._together.resolve(joint, runtime=options.runtime, locked=options.locked)
        return self._together.shared(joint, all_resolved)

    def plan(self, recipes: Sequence[AnyPath], options: BuildOptions = AS_STATED) -> Plan:
        """Everything that a build of ``recipes`` would stand on. Metadata only; nothing runs."""
        joint = self.joint(recipes)
        all_resolved = self._joined(joint, options)
        self._together.require_one_server(joint, all_resolved)
        return self._together.planned(all_resolved, options)

    def foresee(self, recipes: Sequence[AnyPath], options: BuildOptions = AS_STATED) -> Prospect:
        """The plan, what of it is held, and whether it fits this machine as far as that can be known."""
        joint = self.joint(recipes)
        return self._together.foresee(joint, self._joined(joint, options), options)

    def outlook(self, wanted: Plan) -> tuple[Outlook, ...]:
        """For each step: held, or to be made and why."""
        return outlook(wanted, self.store, self._wiring.origins, self._together.away)

    def fit(self, recipes: Sequence[AnyPath], *, gpu: str = "", runtime: RuntimeKind | None = None) -> Report:
        """What ``recipes`` need, and whether it fits the GPU of that name or those that are here. Fetches no weights."""
        joint = self.joint(recipes)
        all_resolved = self._together.shared(joint, self._together.resolve(joint, runtime=runtime), gpu)
        require_sizes(all_resolved)
        return self._together.fit(joint, all_resolved, gpu)

    # -- building

    def build(
        self,
        recipes: Sequence[AnyPath],
        options: BuildOptions = AS_STATED,
        *,
        repository: AnyPath | None = None,
    ) -> Built:
        """Make what ``recipes`` (or one deployment) need and publish it into ``repository``; a deployment names its own.

        To rename what is there is to prefix what comes.
        """
        joint = self.joint(recipes)
        inputs = self._build_notes.before(joint)
        place = whole(repository or (joint.repository if joint.file else self.settings.repository))
        rotten = self.integrity.given_up(place)
        all_resolved = self._joined(joint, options)
        self._together.require_one_server(joint, all_resolved)
        publishing.require_writable(place)
        renamed = (
            published_model.renamed(place, [o.recipe.name for o in all_resolved], self.store) if options.rename_plain else ()
        )
        all_resolved = self._prepared(all_resolved)
        wanted = plan(all_resolved, prefixed=options.apart, inside=options.inside)
        coming = [published_model.published(o, e) for o, e in zip(all_resolved, wanted.entries, strict=True)]
        models = published_model.in_order(place, [*(each.model for each in renamed), *coming])
        steps = (*(each.step for each in renamed), *wanted.steps)
        self._prover.require(wanted)
        with self.store.using(step.key for step in steps):
            self._builder.realise(steps)
            done = self._turnover.publish_all(place, models, self._relocate(place, models), rotten)
            self.integrity.fixed(place, (model.name for model in models))
            self._builder.share(steps)
        found = self._checker.published(place, models)
        if not (options.rename_plain or found):
            words = {name: getattr(options, name) for name in ("runtime", "locked", "prefixed", "inside")}
            words |= {} if repository else {"usual": self.settings.repository}
            asked = unchanged.question(_files(recipes), repository, os.getcwd(), words)
            self._build_notes.after(asked, inputs, all_resolved, self._build_notes.done(place, models, steps))
        return Built(
            place, models, sum(each.linked for each in done), sum(each.copied for each in done), found, self._who(steps)
        )

    def add(
        self,
        recipes: Sequence[AnyPath],
        options: BuildOptions = AS_STATED,
        *,
        repository: AnyPath | None = None,
    ) -> Built:
        """Build ``recipes``, each under its prefix, beside what ``repository`` holds."""
        if not options.rename_plain:
            published_model.require_prefixes(self._place(repository))
        return self.build(recipes, replace(options, prefixed=True), repository=repository)

    def remove(self, model: str, repository: AnyPath | None = None) -> None:
        """Take a model out of ``repository``, and first out of a server that runs there; what it stands on stays held."""
        self._turnover.withdraw(self._place(repository), model)

    def models(self, repository: AnyPath | None = None) -> tuple[Listed, ...]:
        """What ``repository`` holds, and which of it is served."""
        place = self._place(repository)
        return listed(place, publishing.inventory(place), self.servers())

    def make(self, recipes: Sequence[AnyPath], until: Stage, options: BuildOptions = AS_STATED) -> Plan:
        """Make the steps of ``recipes`` up to a stage, and publish nothing; the part of the plan that was made."""
        all_resolved = self._prepared(self._joined(self.joint(recipes), options), gpus=until is Stage.BUILD)
        wanted = plan(all_resolved).until(until)
        with self.store.using(step.key for step in wanted.steps):
            self._builder.realise(wanted.steps)
            self._builder.share(wanted.steps)
        return wanted

    def fetch(self, recipes: Sequence[AnyPath], options: BuildOptions = AS_STATED) -> tuple[Fetched, ...]:
        """Bring the checkpoints of ``recipes`` into the store, and make nothing of them; needs neither Docker nor a GPU."""
        all_resolved = self._joined(self.joint(recipes), options)
        require(all_resolved)
        steps = [step for step in plan(all_resolved).steps if isinstance(step.action, Fetch)]
        with self.store.using(step.key for step in steps):
            self._builder.realise(steps)
            held = [(step.name, self.store.find(step.key)) for step in steps]
        return tuple(Fetched(name, each.size, each.path) for name, each in held if each is not None)

    def bundle(
        self, recipes: Sequence[AnyPath], file: AnyPath, options: BuildOptions = AS_STATED, *, weights: bool = False
    ) -> Bundled:
        """Build ``recipes`` (or one deployment), publish nothing, and write all that a build of them needs into one file.

        What was fetched goes in with ``weights`` alone, or where the settings allow to push it.
        """
        tools = (self._wiring, self._resolver, self._maker(self.sharing), self.settings, self._tell, time.time, self.notary)
        return Bundler(self.home, self.store, *tools).bundle(_files(recipes), Path(file), options, weights=weights)

    def unbundle(self, file: AnyPath, into: AnyPath | None = None, *, repository: AnyPath | None = None) -> Built:
        """Build what a bundle was made of, and ask no network; its recipes are laid into ``into``, by default its name's."""
        place = Path(file)
        with opened(place, Path(into or named_after(place)), self.notary.trust) as bundle:
            settings = structs.replace(self.settings, executor=bundle.contents.executor or None)
            there = type(self)(self.home, {}, self._tell, self._wiring.packed(bundle), settings=settings)
            return there.build(bundle.recipes, bundle.options, repository=repository)

    def _relocate(self, place: Path, models: Iterable[PublishedModel]) -> publishing.Relocate:
        """Configs name the repository's place on this machine where the twin serves it, and the container's otherwise."""
        if any(model.serving is None or model.serving.contained for model in models):
            return lambda text: text
        return lambda text: repository.relocate(text, str(place))

    # -- serving

    def run(
        self,
        what: str,
        runtime: RuntimeKind | None = None,
        *,
        repository: AnyPath | None = None,
        ports: Ports | None = None,
        rename_plain: bool = False,
    ) -> Target:
        """From a recipe, a hub id or a checkpoint here to a model that is served, detached; ``runs`` has it in two steps."""
        runs = self.runs
        return runs.serve(runs.choose(what, runtime, repository), repository, ports, rename_plain=rename_plain)

    @property
    def runs(self) -> Run:
        """What would run, and why; then the running."""
        return Run(self, self._resolver, self._wiring, self._say, self.settings)

    def manifest(self, repository: AnyPath) -> Manifest:
        """What forge has published into ``repository``."""
        place = whole(repository)
        held = publishing.inventory(place)
        if not held.models:
            raise RepositoryError("nothing was published here", where=str(place), hint="`forge build RECIPE` does")
        return held

    def launch(self, repository: Places, ports: Ports, *, detach: bool = False, room: bool = False) -> Launch:
        """All that starting one server on one repository, or on several, needs."""
        several = [repository] if isinstance(repository, str | Path) else repository
        held: dict[Path, Manifest] = {}
        for place in dict.fromkeys(map(whole, several)):
            publishing.settle(place, self._relocate(place, self.manifest(place).models))
            held[place] = self.manifest(place)
        return launch(held, self.store, addressed(ports), detach=detach, room=room)

    def command(self, repository: Places, ports: Ports, *, room: bool = False) -> Command:
        """The exact command line that ``serve`` would start."""
        return self._wiring.server.command(self.launch(repository, ports, room=room))

    def serve(  # noqa: PLR0913 - each is an option of its own
        self,
        repository: Places,
        ports: Ports | None = None,
        *,
        detach: bool = False,
        restart: bool = True,
        room: bool = False,
        verify: Verify = "changed",
        scrub: float = DAY,
    ) -> Running:
        """Start one Triton on one repository, or on several, and return when every model is ready; what dies is restarted.

        With ``room`` an engine that is alone gets TensorRT-LLM's orchestrator, so that others can be added while it serves.
        ``verify`` says which published files are read before (RepositoryError for one that is not what was built), ``scrub``
        after how many seconds each is read again while it serves (0: never).
        """
        wanted, began = self.launch(repository, ports or Ports(), detach=detach, room=room), time.monotonic()
        if restart and detach and (alone := self._left_alone(wanted)):
            return self._wiring.server.watch(alone, restart=True, scrub=scrub)
        self._tell(Event("start", "server"))
        self.integrity.require({place: publishing.inventory(place) for place in wanted.repositories}, verify)
        running = self._wiring.server.start(wanted, lambda line: self._tell(Event("log", "server", text=line)))
        try:
            self._turnover.began(running)
            running = self._wiring.server.watch(running, restart=restart, scrub=scrub)
            self._tell(Event("made", "server", seconds=time.monotonic() - began))
        except BaseException:  # Ctrl-C too: nobody knows of the server yet who could stop it
            self.stop(running)
            raise
        return running

    def reload(self, repository: AnyPath | None = None, model: str | None = None) -> Running:
        """Have the server on ``repository`` take in what has changed there, or one recipe's models; restart what is dead."""
        return self.care.revive(self._turnover.reload(self.server(repository), model))

    @cached_property
    def care(self) -> Care:
        """Whether the models of servers answer, and bringing them back."""
        return Care(self._wiring.server, self._planned, lambda text: self._tell(Event("note", "server", text=text)))

    @property
    def exhibit(self) -> Exhibit:
        """What stands behind a model, and what is served with what it uses."""
        return Exhibit(self.store, self._wiring.server, self.servers, self.target, self._wiring.metadata, self._place)

    @cached_property
    def _turnover(self) -> Turnover:
        say, check = self.integrity.say, self.integrity.require_some
        return Turnover(self.store, self._wiring.server, self._planned, say, check)

    def _planned(self, held: Held, running: Running) -> Launch:
        return launch(held, self.store, running.ports, on=running.base)

    @property
    def upkeep(self) -> Upkeep:
        """Gives up what no repository, server or running build uses, in the store and in Docker."""
        return Upkeep(self.home, self.store, self._wiring.containers)

    # -- checking, verifying, measuring

    def check(self, repository: AnyPath | None = None, *, image: str = "", fix: bool = False) -> Examined:
        """What is wrong in any Triton model repository, or a deployment's; with ``fix`` what is safe is fixed before."""
        return self._checker.check(*self._together.checked(Path(repository or self.settings.repository)), image=image, fix=fix)

    @property
    def _checker(self) -> Checker:
        return Checker(self.store, self._wiring.machine)

    def verify(self, what: AnyPath, repository: AnyPath | None = None, options: VerifyOptions = PLAIN) -> Verification:
        """Hold a model to its checkpoint: by its name or recipe, as it is served, or served for the time being."""
        return Proof(self._prover, self._resolver, self, self._tell, self._place()).verify(what, repository, options)

    def bench(self, what: str, repository: AnyPath | None = None, options: BenchOptions = USUAL) -> tuple[Measured, Path]:
        """Put a served model, or every model of a deployment's file, under load; the results, and the file that keeps them."""
        found = self._bench.run(*measured(self, what, repository), options)
        return found, keep(found, self.home / "bench")

    def promptfoo(self, what: str, repository: AnyPath | None = None, options: BenchOptions = USUAL) -> str:
        """The quality file of ``options`` as a promptfoo configuration for what is served; nothing is asked."""
        return self._bench.export(*measured(self, what, repository), options)

    @property
    def _bench(self) -> Bench:
        return Bench(self._wiring, self.store, Clocks(time.perf_counter, time.time), self._tell, lambda: self._builder)


def _files(recipes: Sequence[AnyPath]) -> list[Path]:
    """The files that are meant: a shipped recipe is named without its folder."""
    return [Path(located(each)) for each in recipes]
