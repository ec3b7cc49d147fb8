"""``forge verify MODEL|RECIPE``: finds who serves the model, or has it served for the time being, and has it verified."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from msgspec import Struct

from forge.build import resolve as resolver
from forge.build.resolve import Resolver
from forge.errors import InferenceError, RepositoryError, ServerError
from forge.events import Event, Listener
from forge.machine import processes
from forge.recipe.shipped import is_path
from forge.recipe.verify_prompts import shipped
from forge.repository import publish
from forge.repository.folders import whole
from forge.schema.adapters import BETWEEN
from forge.schema.values import Ports, VerifyTable
from forge.serve.lookup import StrangerError, Target, adapted
from forge.serve.server_types import Running
from forge.verify import transcripts, verify as proving
from forge.verify.verdicts import Report
from forge.verify.verify import Line, Prover, VerifyOptions

Result = TypeVar("Result")


class ServingForge(Protocol):
    """The part of Forge that serves."""

    def target(self, model: str, repository: str | Path | None = None) -> Target: ...
    def serve(self, repository: str | Path, ports: Ports | None = None) -> Running: ...
    def stop(self, running: Running) -> None: ...


class Proof(Struct, frozen=True):
    """One way from what a person names to a report."""

    prover: Prover
    resolver: Resolver
    forge: ServingForge
    tell: Listener
    usual: Path
    """The repository that is meant where none is named."""

    def verify(self, what: str | Path, repository: str | Path | None, options: VerifyOptions) -> Report:
        """SourceError for the path of no file, RepositoryError where ``what`` is neither served nor published, HostError where
        nobody speaks for its checkpoint."""
        path = Path(what) if Path(what).is_file() or is_path(str(what)) else None
        recipe = self.resolver.read(path) if path else None
        name = recipe.name if recipe else str(what)
        name = f"{name}{BETWEEN}{options.lora}" if options.lora else name
        if options.update and BETWEEN in name:
            hint = "leave the adapter out, or --update"
            raise RepositoryError("golden transcripts are of a checkpoint alone", where=name, hint=hint)
        golden = resolver.golden(path) if path else None
        if options.update and golden is None:
            raise RepositoryError("golden transcripts stand beside a recipe", where=str(what), hint="name the recipe's file")
        asked = self.resolver.questions(path, recipe) if path and recipe else shipped()
        held = resolver.spoken(path) if path else ""
        terms = proving.terms(options, recipe.verify if recipe else VerifyTable(), asked, held)
        with self._served(name, repository) as target:
            reference = self._step("verify: the checkpoint", lambda line: self.prover.reference(target, terms, line))
            if options.update and golden:
                golden.write_text(transcripts.written(reference), encoding="utf-8")
            return self._step(f"verify: {target.named}", lambda line: self.prover.compare(target, reference, terms, line))

    def _step(self, name: str, work: Callable[[Line], Result]) -> Result:
        """``work``, shown as a step."""
        began = time.monotonic()
        self.tell(Event("start", name))
        done = work(lambda text: self.tell(Event("log", name, text=text)))
        self.tell(Event("made", name, seconds=time.monotonic() - began))
        return done

    @contextmanager
    def _served(self, model: str, repository: str | Path | None) -> Generator[Target]:
        """A server that offers ``model``: one that runs, or one on the repository that ends with this."""
        try:
            offered = self.forge.target(model, repository)
        except StrangerError:
            raise
        except (ServerError, InferenceError):
            offered = None
        if offered:
            yield offered
            return
        place = whole(repository or self.usual)
        name, _, lora = model.partition(BETWEEN)
        published = publish.inventory(place)
        if (held := published.find(name)) is None:
            hint = publish.holding(name, [one.name for one in published.models])
            hint += " verify builds nothing: `forge build RECIPE` does; --repository names another place"
            raise RepositoryError(f"{model!r} is neither served nor published here", where=str(place), hint=hint)
        adapted(Target("", held, place), lora)  # that it has it is known before a server is started
        server = self.forge.serve(place, processes.spare_ports())
        try:
            yield self.forge.target(model, place)
        finally:
            self.forge.stop(server)
