"""From a recipe, a hub id or a checkpoint on this disk to a model that is served: what ``forge run`` does before it talks."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from forge.api.outcome import Built
from forge.build.outside import Outside
from forge.build.recipe_facts import image, unknown
from forge.build.resolve import Resolver
from forge.build.sources.named import safe_name, source_of
from forge.errors import ForgeError, HostError, InferenceError, PluginError, RecipeError, ServerError, SourceError
from forge.fit.report import Report
from forge.machine import processes
from forge.plan import families
from forge.recipe import reader, shipped
from forge.repository import publish
from forge.repository.folders import whole
from forge.schema import manifest
from forge.schema.values import LOCAL, BuildOptions, Ports, Recipe, RuntimeKind
from forge.serve.lookup import Target
from forge.serve.server_types import Running, StartingError
from forge.settings import Settings

_MOMENT = 0.2
"""Seconds between two looks for the server that another forge is starting."""
_GPU = (RuntimeKind.ENGINE, RuntimeKind.VLLM, RuntimeKind.TWIN)
_CPU = (RuntimeKind.TWIN, RuntimeKind.VLLM)
"""What is tried, the best first."""


class Verbs(Protocol):
    """The part of Forge that makes and serves."""

    def fit(self, recipes: Sequence[str | Path], *, runtime: RuntimeKind | None = None) -> Report: ...
    def build(
        self, recipes: Sequence[str | Path], options: BuildOptions = ..., *, repository: str | Path | None = None
    ) -> Built: ...
    def serve(self, repository: str | Path, ports: Ports | None = None, *, detach: bool = False) -> Running: ...
    def settled(self, repository: str | Path, model: str) -> Running: ...
    def target(self, model: str, repository: str | Path | None = None) -> Target: ...


class Choice(Struct, frozen=True):
    """What is to be run, on which runtime and why; ``served`` where it answers already, and nothing has to be made."""

    recipe: Path
    """Its file; empty for a model that is served, was asked for by its own name, and has no recipe here."""
    name: str
    runtime: RuntimeKind
    why: str = ""
    fit: Report | None = None
    """None where it was not asked for, or ``unfit`` says why nobody knows."""
    unfit: str = ""
    drafted: bool = False
    """The recipe was written just now."""
    served: Target | None = None


class Run(Struct, frozen=True):
    """One way to a served model: ``choose`` says what would run and changes nothing but a recipe that it writes."""

    verbs: Verbs
    resolver: Resolver
    outside: Outside
    say: Callable[[str], None]
    settings: Settings
    """Where a model is published and served, unless told otherwise."""

    def choose(self, what: str, runtime: RuntimeKind | None = None, repository: str | Path | None = None) -> Choice:
        """The recipe that is meant by ``what``, and the runtime that this machine can do best, or the one that was named.

        SourceError where ``what`` is nothing that can be run; HostError where no runtime can serve it here.
        """
        if (found := self._named(what, runtime, repository)) is not None:
            return Choice(Path(), what, found.model.runtime, served=found)
        recipe, drafted = self.recipe(what)
        wanted = self.resolver.read(recipe)
        served = self._served(recipe, wanted.name, runtime, repository)
        if served is not None:
            return Choice(recipe, wanted.name, served.model.runtime, served=served)
        if problems := unknown(wanted, families.claimed()):  # another runtime than the recipe's is no way out of a typing error
            raise RecipeError(tuple(each.within(str(recipe)) for each in problems))
        if runtime is not None:
            fit, unfit = self._fit(recipe, runtime)
            if fit and not fit.fit:
                hint = f"`forge fit {recipe} --runtime {runtime}` says what is missing and what would help"
                raise HostError(f"{wanted.name} does not fit this machine on the {runtime} runtime", hint=hint)
            return Choice(recipe, wanted.name, runtime, "as you said", fit, unfit, drafted)
        return self._best(recipe, wanted, drafted=drafted)

    def serve(
        self, choice: Choice, repository: str | Path | None = None, ports: Ports | None = None, *, rename_plain: bool = False
    ) -> Target:
        """Build it and serve it, detached; what is served already, or is being started by another forge, is only found.

        The ports are others where those are taken.
        """
        if choice.served is not None:
            try:
                self.verbs.settled(choice.served.repository, choice.served.model.front)
            except ServerError:  # another forge's start came to nothing
                if choice.recipe == Path():
                    raise
            else:
                return choice.served
        place = whole(repository) if repository else self._place(choice.runtime)
        mine = publish.inventory(place).find(choice.name)
        # A newcomer gets a prefix, so that the next one has room beside it.
        options = BuildOptions(choice.runtime, prefixed=mine is None or bool(mine.prefix), rename_plain=rename_plain)
        built = self.verbs.build([choice.recipe], options, repository=place)
        if built.broken:
            problems = "\n".join(f"{each.file}: {each.what}" for each in built.findings)
            raise ServerError(f"what was built would not load:\n{problems}", where=str(place), hint=f"`forge check {place}`")
        self._up(place, choice.name, ports)
        return self.verbs.target(choice.name, place)

    def _up(self, place: Path, name: str, ports: Ports | None) -> None:
        """A server on ``place`` that is ready: the one that is there, another forge's that is on its way, or one of its own."""
        model = publish.inventory(place).find(name)
        front = model.front if model else ""
        while True:
            with suppress(ServerError):
                self.verbs.settled(place, front)
                return
            try:
                self.verbs.serve(place, ports or self._free(self._usual), detach=True)
            except StartingError:
                time.sleep(_MOMENT)  # another forge was faster: it notes its server at any moment, or gives up
            else:
                return

    # -- which recipe

    def recipe(self, what: str) -> tuple[Path, bool]:
        """The file of the recipe that is meant, and whether it was written just now: for a checkpoint, beside the caller."""
        found = Path(shipped.located(what))
        if (found.is_file() and found.suffix != ".gguf") or found.suffix == ".toml":  # one that is not there, its reader tells
            return found, False
        if not (found.exists() or "/" in what):
            close = shipped.close(Path(what).stem)
            hint = f"did you mean {close!r}? " if close else ""
            hint += f"forge ships {', '.join(shipped.names())}; a hub id is OWNER/NAME; `forge search WORD` looks for one"
            raise SourceError("no recipe and no checkpoint has this name", where=what, hint=hint)
        if (found / manifest.NAME).is_file():
            hint = f"`forge serve --repository {what}` serves it; `forge list --repository {what}` says what it holds"
            raise SourceError("this is a model repository, and no checkpoint", where=what, hint=hint)
        source = source_of(what, "main", Path())
        name = safe_name(Path(what).stem if found.is_file() else Path(what).name.removesuffix(".git"))
        beside = Path(f"{name}.toml")
        for candidate in (beside, *self._shipped()):
            if candidate.is_file() and self.resolver.read(candidate).source == source:
                return candidate, False
        return self._drafted(what, beside), True

    def _drafted(self, what: str, beside: Path) -> Path:
        text = self.resolver.draft(what, None, "main", Path())
        try:
            with beside.open("x", encoding="utf-8") as sink:
                sink.write(text)
        except FileExistsError:
            hint = f"choose another name: `forge new {what} -o OTHER.toml`, then `forge run OTHER.toml`"
            raise ForgeError("there is a recipe of another source already", where=str(beside), hint=hint) from None
        return beside

    def _shipped(self) -> list[Path]:
        """The recipes that forge ships, those before that add nothing to their checkpoint."""
        found = [shipped.folder() / f"{name}.toml" for name in shipped.names()]
        return sorted(found, key=lambda file: (_special(reader.read(file.read_text(encoding="utf-8"), str(file))), file.name))

    # -- which runtime

    def _best(self, recipe: Path, wanted: Recipe, *, drafted: bool) -> Choice:
        gpus = self.outside.gpus()
        here = f"{len(gpus)} x {gpus[0].name}" if len(gpus) > 1 else gpus[0].name if gpus else "no GPU is here"
        own = wanted.runtime.kind
        stated = (own,) if own in (RuntimeKind.LLMAPI, RuntimeKind.VLLM) else ()
        against: list[str] = []
        for kind in dict.fromkeys((*stated, *(_GPU if gpus else _CPU))):
            try:
                if problem := self._missing(recipe, kind, gpus=bool(gpus)):
                    against.append(f"{kind}: {problem}")
                    continue
                fit, unfit = self._fit(recipe, kind)
            except (RecipeError, PluginError, HostError) as error:
                against.append(f"{kind}: {_brief(error)}")
                continue
            if fit and not fit.fit:
                against.append(f"{kind}: it does not fit (`forge fit {recipe} --runtime {kind}` says what would help)")
                continue
            why = "; ".join((here, *(["the recipe asks for it"] if kind in stated else []), *against))
            return Choice(recipe, wanted.name, kind, why, fit, unfit, drafted)
        raise HostError("\n".join((f"no runtime can serve {wanted.name} here ({here})", *against)), hint="see `forge doctor`")

    def _missing(self, recipe: Path, kind: RuntimeKind, *, gpus: bool) -> str:
        """What a runtime in a container lacks here; empty where it lacks nothing. Nobody wants 20 GB pulled without a word."""
        wanted = self.resolver.read(recipe, kind)
        if not wanted.runtime.contained:
            return ""
        if not gpus:
            return "no GPU is here"
        if wanted.runtime.executor == LOCAL or (not wanted.runtime.executor and self.outside.here.present()):
            return ""
        if problems := self.outside.containers.check(gpus=True):
            return problems[0].what
        reference = image(wanted).image
        return "" if self.outside.containers.inspect(reference) else f"its image is not here (`docker pull {reference}`)"

    def _fit(self, recipe: Path, kind: RuntimeKind) -> tuple[Report | None, str]:
        """Whether it fits, and refusals of what cannot be built at all; why, where nobody can tell the size."""
        self.resolver.resolve(recipe, runtime=kind)  # what keeps it from being had at all is no matter of its size
        try:
            return self.verbs.fit([recipe], runtime=kind), ""
        except (RecipeError, PluginError):
            raise
        except ForgeError as error:
            return None, error.what

    # -- served already

    def _served(self, recipe: Path, name: str, runtime: RuntimeKind | None, repository: str | Path | None) -> Target | None:
        """The model where it answers as this recipe wants it; None where it has to be built first."""
        try:
            found = self.verbs.target(name, repository)
        except (ServerError, InferenceError):
            return None
        if runtime not in (None, found.model.runtime):
            return None
        was = found.model.recipe
        changed = was is not None and was != manifest.RecipeFile.of(was.file, self.resolver.text(recipe).encode())
        return None if changed else found

    def _named(self, what: str, runtime: RuntimeKind | None, repository: str | Path | None) -> Target | None:
        """The served model of this name, where no recipe here and no shipped one has it."""
        if os.sep in what or os.path.lexists(shipped.located(what)):
            return None
        with suppress(ServerError, InferenceError):
            found = self.verbs.target(what, repository)
            return found if runtime in (None, found.model.runtime) else None
        return None

    def _place(self, kind: RuntimeKind) -> Path:
        """The usual repository; one beside it where that holds models that another Triton serves."""
        usual = whole(self.settings.repository)
        if all(_triton(model.runtime) == _triton(kind) for model in publish.inventory(usual).models):
            return usual
        beside = usual.with_name(f"{usual.name}-{_triton(kind)}")
        self.say(f"{usual} holds models of another runtime: this one goes into {beside}")
        return beside

    @property
    def _usual(self) -> Ports:
        said = self.settings.ports
        return Ports(said.http, said.grpc, said.metrics, said.host, said.openai or 0)

    def _free(self, wanted: Ports) -> Ports:
        """``wanted`` where those ports are free; others on the loopback that nobody has otherwise."""
        if all(processes.free(wanted.host, port) for port in (wanted.http, wanted.grpc, wanted.metrics)):
            return wanted
        ports = processes.spare_ports()
        taken = f"ports {wanted.http} to {wanted.metrics} are taken"
        self.say(f"{taken}: HTTP is at {ports.http}, gRPC at {ports.grpc}, metrics at {ports.metrics}")
        return ports


def _triton(kind: RuntimeKind) -> str:
    """Runtimes of one word can share a repository and its server."""
    return "trtllm" if kind.contained else str(kind)


def _special(recipe: Recipe) -> int:
    """How much a recipe changes about its checkpoint."""
    return (recipe.variant is not None) + (recipe.convert.quantization != "none") + (recipe.draft is not None)


def _brief(error: ForgeError) -> str:
    """An error in one line, as a reason."""
    if isinstance(error, RecipeError):
        return error.problems[0].what
    return error.what.splitlines()[0]
