"""Changes to a repository that is being served: published, taken in by its server, or put back as it was.

A server of this workshop goes on with the old version of a model until the new one is ready. What does not load is taken out
of the repository again, so that what stands on the disk is what answers, now and after the next start.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from forge import publishing
from forge.errors import RepositoryError, ServerError
from forge.launching import Held, engines, in_turn
from forge.manifest import Manifest, PublishedModel
from forge.ports import Launch, Running, Server
from forge.publishing import Published, Relocate
from forge.store import Store

ANEW = "`forge stop`, build again (what is made is in the store), `forge serve`"
Plan = Callable[[Held, Running], Launch]
"""What the repositories of a server hold -> what one server for all of it needs, the same one if that will do."""


class Turnover:
    """Publishes and withdraws where servers may be running. ``say`` is told what happens to them."""

    def __init__(self, store: Store, server: Server, plan: Plan, say: Callable[[str], None]) -> None:
        self._store = store
        self._server = server
        self._plan = plan
        self._say = say

    def publish(self, place: Path, model: PublishedModel, relocate: Relocate) -> Published:
        """Make ``place`` show ``model``, and a server that runs there answer with it.

        ServerError where that server cannot take it in (nothing has been changed then), or where it did not load (the
        repository and the server have what they had).
        """
        running = self._on(place)
        if running is None:
            return publishing.publish(self._entry(model), place, model, relocate)
        before = publishing.inventory(place)
        wanted = self._fits(running, place, before.having(model), model)
        with self._store.using(before.held):
            done = publishing.publish(self._entry(model), place, model, relocate)
            former = before.find(model.name)
            if done.changed or not set(model.roles.values()) <= set(running.models):
                try:
                    self._take_in(running, wanted, model, former)
                except ServerError as error:
                    raise self._undone(error, place, model, former, relocate) from error
        return done

    def publish_all(self, place: Path, models: Sequence[PublishedModel], relocate: Relocate) -> tuple[Published, ...]:
        """The same for several: in one publish where nobody serves them, else one after the other."""
        with self._store.publishing(place, {key for model in models for key in model.held}):
            if self._on(place) is None:
                return publishing.publish_all([(self._entry(model), model) for model in models], place, relocate)
            return tuple(self.publish(place, model, relocate) for model in models)

    def withdraw(self, place: Path, name: str) -> None:
        """Take a model out of ``place``, after a server that runs there has answered what it was asked and given it up."""
        with self._store.publishing(place):
            self._withdraw(place, name)

    def _withdraw(self, place: Path, name: str) -> None:
        running, model = self._on(place), publishing.inventory(place).find(name)
        if running is None or model is None:
            publishing.withdraw(place, name)
            return
        self._say(f"{name}: being unloaded by the server on {place}")
        running = self._server.unload(running, self._given_up(running, model, ()))
        try:
            publishing.withdraw(place, name)
        except RepositoryError:
            self._server.load(running, self._plan(_held(running), running), in_turn(model), self._say)
            raise

    def reload(self, running: Running, name: str | None = None) -> Running:
        """Have a server take in what its repositories hold by now: all of it, or one recipe's models.

        Triton loads what has changed on the disk and leaves the rest alone. ServerError names what did not load; the version
        of it that was answering goes on.
        """
        held = _held(running)
        found = [model for manifest in held.values() for model in manifest.models if name in (None, model.name)]
        if not found:
            names = ", ".join(model.name for manifest in held.values() for model in manifest.models) or "nothing"
            raise RepositoryError(f"there is no model {name!r}", where=running.repository, hint=f"It holds: {names}.")
        wanted = self._plan(held, running)
        _require_same(running, wanted)
        for model in found:
            running = self._server.load(running, wanted, in_turn(model), self._say)
        gone = [model for model in running.models if name is None and model not in wanted.models]
        return self._server.unload(running, gone) if gone else running

    # -- inside

    def _on(self, place: Path) -> Running | None:
        return next((running for running in self._server.running() if str(place) in running.repositories), None)

    def _entry(self, model: PublishedModel) -> Path:
        held = self._store.find(model.entry)
        if held is None:
            raise RepositoryError(f"what {model.name!r} is published from is not in this store", hint="build it again")
        return held.path

    def _fits(self, running: Running, place: Path, after: Manifest, model: PublishedModel) -> Launch:
        """The launch that the server would be with the new version; ServerError where it would have to be another server."""
        try:
            wanted = self._plan({**_held(running), place: after}, running)
            _require_same(running, wanted)
            _require_whole(wanted, model)
        except ServerError as error:
            what = f"the server that runs here cannot take {model.name!r} in: {error.what}"
            hint = f"nothing was published; {error.hint}"
            raise ServerError(what, where=error.where, hint=hint) from error
        return wanted

    def _take_in(self, running: Running, wanted: Launch, model: PublishedModel, former: PublishedModel | None) -> None:
        self._say(f"{model.name}: being loaded by the server on {running.repository}")
        now = self._server.load(running, wanted, in_turn(model), self._say)
        if former and (gone := self._given_up(now, former, in_turn(model))):
            self._server.unload(now, gone)
        self._say(f"{model.name}: the server answers with it")

    def _undone(
        self, error: ServerError, place: Path, model: PublishedModel, former: PublishedModel | None, relocate: Relocate
    ) -> ServerError:
        """Put the repository back, and the server as far as it lives; what to say of it."""
        if former:
            publishing.publish(self._entry(former), place, former, relocate)
            state = "the version before it is back in the repository and goes on being served"
        else:
            publishing.withdraw(place, model.name)
            state = "it was taken out of the repository again, and the other models go on being served"
        try:
            self._taken_back(place, model, in_turn(former) if former else ())
        except ServerError as second:
            state = f"the repository has what it had before, but the server has not: {second.what.partition(chr(10))[0]}"
        return ServerError(error.what, where=error.where, hint=f"{error.hint}; {state}")

    def _taken_back(self, place: Path, model: PublishedModel, kept: Sequence[str]) -> None:
        running = self._on(place)
        if running is None:
            raise ServerError("it has ended", where=str(place))
        if kept:
            running = self._server.load(running, self._plan(_held(running), running), kept, self._say)
        self._server.unload(running, self._given_up(running, model, kept))

    def _given_up(self, running: Running, model: PublishedModel, kept: Sequence[str]) -> tuple[str, ...]:
        """Those of a recipe's models that the server has and need not keep, the ones that call others first."""
        return tuple(folder for folder in reversed(in_turn(model)) if folder in running.models and folder not in kept)


def _held(running: Running) -> Held:
    return {Path(place): publishing.inventory(Path(place)) for place in running.repositories}


def _require_same(running: Running, wanted: Launch) -> None:
    """ServerError where ``wanted`` stands on something else than the server does."""
    if not running.base:  # started by a forge that did not keep it
        return
    differing = [(old, new) for old, new in zip(running.base, wanted.base, strict=False) if old != new]
    if differing:
        what = "; ".join(f"it runs {old}, and this needs {new}" for old, new in differing)
        raise ServerError(what, where=running.repository, hint=ANEW)


def _require_whole(wanted: Launch, model: PublishedModel) -> None:
    """ServerError where MPI started a server for each part of an engine: only the first of them can be told to load another."""
    if wanted.world > 1 and not wanted.orchestrated and engines(model):
        what = "its engines stand in parts, and only the first of their processes can be told to load another"
        raise ServerError(what, where=str(wanted.repository), hint=ANEW)
