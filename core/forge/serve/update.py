"""Changes to a repository that is being served: published, taken in by its server, or put back as it was.

A server of this home folder goes on with the old version of a model until the new one is ready. What does not load is taken out
of the repository again, so that what stands on the disk is what answers, now and after the next start.
"""

from collections.abc import Callable, Container, Sequence
from pathlib import Path

from msgspec import Struct, field

from forge.errors import ForgeError, RepositoryError, ServerError
from forge.repository import publish
from forge.repository.publish import Published, Relocate
from forge.schema.manifest import Manifest, PublishedModel
from forge.serve.launch import Plan, engines, holdings, in_turn
from forge.serve.server_types import ORCHESTRATED, Launch, Running, Server
from forge.store.store import Store

ANEW = "`forge stop`, build again (what is made is in the store), `forge serve`"
MORE = (
    "`forge stop`, `forge serve --room-for-more`, then this again: a server takes further engines only where it was started so"
)
_GOES_ON = "the versions that were answering go on; what did load answers anew"


class _Change(Struct):
    """What was published under a server: all that taking it back needs."""

    place: Path
    before: Manifest
    relocate: Relocate
    published: list[PublishedModel] = field(default_factory=list[PublishedModel])
    begun: list[PublishedModel] = field(default_factory=list[PublishedModel])
    """Those that the server was told to load."""

    def replaces(self, model: PublishedModel) -> bool:
        """Whether it takes the place of a version before it."""
        return self.before.find(model.name) is not None


class Turnover(Struct, frozen=True):
    """Publishes and withdraws where servers may be running. ``say`` is told what happens to them."""

    store: Store
    server: Server
    plan: Plan
    say: Callable[[str], None]
    require: Callable[[Path, Sequence[str]], None] = lambda _place, _models: None
    """Raises where what a repository shows of models, by name, is not what was built."""

    def publish_all(
        self, place: Path, models: Sequence[PublishedModel], relocate: Relocate, anew: Container[str] = ()
    ) -> tuple[Published, ...]:
        """Make ``place`` show ``models``, in one publish, and a server that runs there answer with them.

        ServerError where that server cannot take one of them in (nothing has been changed then), or where one did not load: the
        repository has what it had, and so has the server as far as it lives, which the error says. Models that are new to the
        server are loaded before those that take the place of others; names that are given up go when all are loaded. Those in
        ``anew`` are published whether or not they seem to stand.
        """
        with self.store.publishing(place, {key for model in models for key in model.held}):
            coming, running = [(self._entry(model), model) for model in models], self._on(place)
            if running is None:
                return publish.publish_all(coming, place, relocate, anew=anew)
            before = publish.inventory(place)
            wanted = self._fits(running, place, before, models)
            with self.store.using(before.held):
                done = publish.publish_all(coming, place, relocate, anew=anew)
                after = publish.inventory(place)
                change = _Change(place, before, relocate, [m for m in models if after.find(m.name) != before.find(m.name)])
                late = [m for m, each in zip(models, done, strict=True) if each.changed or _is_behind(running, m)]
                try:
                    self.require(place, [model.name for model in late])
                    running = self._catch_up(running, wanted, {model.name for model in models})
                    self._take_in(running, wanted, sorted(late, key=change.replaces), change)
                except BaseException as error:  # Ctrl-C too: what is on the disk has to be what answers
                    raise self._told(error, self._undo(change)) from error
        return done

    def withdraw(self, place: Path, name: str) -> None:
        """Take a model out of ``place``, after a server that runs there has answered what it was asked and given it up.

        Where either fails, both have it as before, or the error says which has not.
        """
        with self.store.publishing(place):
            running, model = self._on(place), publish.inventory(place).find(name)
            if running is None or model is None:
                publish.withdraw(place, name)
                return
            self.say(f"{name}: being unloaded by the server on {place}")
            try:
                self.server.unload(running, _given_up(model, ()))
                publish.withdraw(place, name)
            except BaseException as error:
                raise self._told(error, self._restored(place, in_turn(model), ())) from error

    def reload(self, running: Running, name: str | None = None) -> Running:
        """Have a server take in what its repositories hold by now: all of it, or one recipe's models.

        Triton loads what has changed on the disk and leaves the rest alone. ServerError names what did not load; the version
        of it that was answering goes on.
        """
        held = holdings(running)
        found = [model for manifest in held.values() for model in manifest.models if name in (None, model.name)]
        if not found:
            hint = publish.holding(name or "", [model.name for manifest in held.values() for model in manifest.models])
            raise RepositoryError(f"there is no model {name!r}", where=running.repository, hint=hint)
        wanted = self.plan(held, running)
        _require_same(running, wanted)
        for place, manifest in held.items():
            self.require(place, [model.name for model in manifest.models if model in found])
        failures: list[ServerError] = []
        for model in found:
            try:
                running = self.server.load(running, wanted, in_turn(model), self.say)
            except ServerError as error:
                failures.append(error)
                running = self._on(Path(running.repository)) or running
        gone = [model for model in running.models if name is None and model not in wanted.models]
        try:
            running = self.server.unload(running, gone) if gone else running
        except ServerError as error:
            failures.append(error)
        if failures:
            what = "\n".join(dict.fromkeys(error.what for error in failures))
            raise ServerError(what, where=running.repository, hint=_also(failures[0].hint, _GOES_ON))
        return running

    def began(self, running: Running) -> None:
        """Remember what a server that has just been started serves, and that it stands on that while it lives."""
        for place in running.repositories:
            self.store.remember(Path(place))
        lend(self.store, running)

    # -- inside

    def _told(self, error: BaseException, state: str) -> BaseException:
        """``error`` with how repository and server are after it."""
        if isinstance(error, ForgeError):
            return type(error)(error.what, where=error.where, hint=_also(error.hint, state))
        self.say(state)
        return error

    def _on(self, place: Path) -> Running | None:
        return next((running for running in self.server.running() if str(place) in running.repositories), None)

    def _entry(self, model: PublishedModel) -> Path:
        held = self.store.find(model.entry)
        if held is None:
            raise RepositoryError(f"what {model.name!r} is published from is not in this store", hint="build it again")
        return held.path

    def _fits(self, running: Running, place: Path, before: Manifest, models: Sequence[PublishedModel]) -> Launch:
        """The launch that the server would be with all of ``models``; ServerError where it would have to be another server."""
        after = before
        for model in models:
            after = after.having(model)
        try:
            wanted = self.plan({**holdings(running), place: after}, running)
            _require_same(running, wanted)
            _require_whole(wanted, models)
        except ServerError as error:
            names = ", ".join(repr(model.name) for model in models if before.find(model.name) is None) or repr(models[0].name)
            what = f"the server that runs here cannot take {names} in: {error.what}"
            raise ServerError(what, where=error.where, hint=f"nothing was published; {error.hint}") from error
        return wanted

    def _catch_up(self, running: Running, wanted: Launch, others: Container[str]) -> Running:
        """Have a server load what was published while nobody told it: a publish that was killed, and that a later command has
        finished. What does not load is said, and goes on as it was: ``others``, published now, do not depend on it."""
        for model in (each for manifest in holdings(running).values() for each in manifest.models):
            if model.name in others or not _is_behind(running, model):
                continue
            self.say(f"{model.name}: published before, and being loaded by the server on {running.repository} now")
            try:
                running = self.server.load(running, wanted, in_turn(model), self.say)
            except ServerError as error:
                self.say(f"{error.what.partition(chr(10))[0]}; `forge reload` has it try again")
                running = self._on(Path(running.repository)) or running
        return running

    def _take_in(self, running: Running, wanted: Launch, models: Sequence[PublishedModel], change: _Change) -> None:
        for model in models:
            self.say(f"{model.name}: being loaded by the server on {running.repository}")
            change.begun.append(model)
            running = self.server.load(running, wanted, in_turn(model), self.say)
        for model in models:
            former = change.before.find(model.name)
            if former and (gone := _given_up(former, in_turn(model))):
                running = self.server.unload(running, gone)
            self.say(f"{model.name}: the server answers with it")
        if left := [folder for folder in running.models if folder not in wanted.models]:  # names that a killed publish gave up
            self.server.unload(running, left)

    def _undo(self, change: _Change) -> str:
        """Put back the repository, then the server; what to say of how they are."""
        before, place = change.before, change.place
        try:
            for model in change.published:
                if before.find(model.name) is None:
                    publish.withdraw(place, model.name)
            formers = [former for model in change.published if (former := before.find(model.name))]
            if formers:
                publish.publish_all([(self._entry(former), former) for former in formers], place, change.relocate)
        except ForgeError as error:
            return f"the repository could not be put back: {error.what}; the server has what it had, but for what it has loaded"
        kept = [folder for model in change.published if (former := before.find(model.name)) for folder in in_turn(former)]
        return self._restored(place, kept, [folder for model in change.begun for folder in in_turn(model)])

    def _restored(self, place: Path, kept: Sequence[str], begun: Sequence[str]) -> str:
        """Have the server load those of ``kept`` that it lacks, or may have another version of, and give up the rest of
        ``begun``; what to say of it."""
        back = "the repository has what it had before"
        running = self._on(place)
        if running is None:
            return f"{back}, and the server has ended: `forge serve` starts it with that"
        try:
            again = [folder for folder in kept if folder in begun or folder not in running.models]
            if again:
                running = self.server.load(running, self.plan(holdings(running), running), again, self.say)
            own = {folder for model in publish.inventory(place).models for folder in in_turn(model)}
            if gone := [folder for folder in reversed(begun) if folder not in own]:
                self.server.unload(running, gone)
        except ForgeError as error:
            failed = error.what.partition("\n")[0]
            return f"{back}, and the server could not follow: {failed}; `forge reload` has it try again"
        return f"{back}, and so has the server"


def _is_behind(running: Running, model: PublishedModel) -> bool:
    """Whether a server lacks some of a recipe's models, or has loaded them from something else than they are published from."""
    folders = model.roles.values()
    return not {*folders} <= {*running.models} or any(running.loaded.get(each, model.entry) != model.entry for each in folders)


def _given_up(model: PublishedModel, kept: Sequence[str]) -> tuple[str, ...]:
    """Those of a recipe's models that a server need not keep, the ones that call others first."""
    return tuple(folder for folder in reversed(in_turn(model)) if folder not in kept)


def _also(hint: str, state: str) -> str:
    return f"{hint}; {state}" if hint else state


def lend(store: Store, running: Running) -> None:
    """Have nobody collect what a server's process stands on while that lives."""
    if running.started:  # a container is no process of this machine's, and what serves it is no artifact
        held = frozenset[str]().union(*(manifest.held for manifest in holdings(running).values()))
        store.lend(held, running.pid, running.started)


def _require_same(running: Running, wanted: Launch) -> None:
    """ServerError where ``wanted`` stands on something else than the server does."""
    if not running.base:  # started by a forge that did not keep it
        return
    differing = [(old, new) for old, new in zip(running.base, wanted.base, strict=False) if old != new]
    if differing:
        what = "; ".join(f"it runs {old}, and this needs {new}" for old, new in differing)
        more = [new for _, new in differing] == [ORCHESTRATED]
        raise ServerError(what, where=running.repository, hint=MORE if more else ANEW)


def _require_whole(wanted: Launch, models: Sequence[PublishedModel]) -> None:
    """ServerError where MPI started a server for each part of an engine: only the first of them can be told to load another."""
    if wanted.world > 1 and not wanted.orchestrated and any(map(engines, models)):
        what = "its engines stand in parts, and only the first of their processes can be told to load another"
        raise ServerError(what, where=str(wanted.repository), hint=ANEW)
