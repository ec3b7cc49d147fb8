"""What is built together: recipes as they were named, or those of a deployment file."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from forge.build.resolve import Resolver
from forge.build.sizes import Sizing
from forge.errors import ForgeError, Problem, RecipeError, RepositoryError, SourceError
from forge.fit.gpus import find
from forge.fit.report import Report
from forge.plan import gpu_share, one_server
from forge.plan.plan import length_notes, plan, problems_of
from forge.plan.preview import Away, Prospect, outlook
from forge.plan.resolved import Resolved
from forge.plan.steps import Plan
from forge.recipe import deployment
from forge.recipe.deployment import Asked, Deployed, Deployment, Member
from forge.repository import publish
from forge.repository.folders import whole
from forge.schema.values import BuildOptions, Ports, Recipe, RuntimeKind


class Joint(Struct, frozen=True):
    """What is built together: a deployment, and the folder that its paths stand on."""

    stated: Deployment
    base: Path
    file: Path | None = None
    """None where recipes were named one by one."""

    @property
    def repository(self) -> Path:
        return self.base / self.stated.repository if self.file else Path("model-repository")

    @property
    def ports(self) -> Ports:
        """Where it wants to be served, as far as its file says it."""
        return replace(Ports(), **self.stated.ports.stated)

    def path(self, member: Member) -> Path:
        """As a person would write it from here, for errors: a deployment's ``..`` stays only where it goes through a link."""
        path = self.base / member.recipe
        plain = Path(os.path.normpath(path))
        return plain if self.file and os.path.realpath(plain) == os.path.realpath(path) else path


class JointResolver(Struct, frozen=True):
    """Resolves the recipes of one build, and plans them together."""

    resolver: Resolver
    away: Away | None = None
    """What a shared store has, where there is one."""

    def joint(self, files: Sequence[Path], *, deployed: bool = False) -> Joint:
        """The one deployment that was named, or the recipes that were: a file's own words say which it is.

        RecipeError for a mixture, and for recipes where only a deployment says enough (``deployed``); RepositoryError where
        nothing is there that could be one: whoever serves names a deployment or a repository.
        """
        if deployed and (absent := next((file for file in files if not os.path.lexists(file)), None)):
            hint = "name a repository or a deployment's file"
            raise RepositoryError("there is no such folder or file", where=str(absent), hint=hint)
        texts = {file: self._text(file, alone=len(files) == 1) for file in files}
        among = [file for file, text in texts.items() if deployment.is_deployment(text)]
        if among and len(files) > 1:
            what = "a deployment says itself which recipes it has, so it is named alone"
            raise RecipeError((Problem(str(among[0]), what, "add the other recipes to its `recipes`, or build them apart"),))
        if among:
            stated, problems = deployment.looked(texts[among[0]], str(among[0]))
            joint = Joint(stated, among[0].parent, among[0])
            if problems:
                raise RecipeError((*problems, *self._misread(joint)))
            return joint
        if deployed:
            what = "this is a recipe, and says nothing of where it is served (a deployment has the key `recipes`)"
            hint = "serve the repository that it was built into: `forge serve --repository DIR`"
            raise RecipeError(tuple(Problem(str(file), what, hint) for file in files))
        return Joint(Deployment(recipes=tuple(map(str, files))), Path())

    def _text(self, file: Path, *, alone: bool) -> str:
        """What stands in a file; of several, one that cannot be read is empty here, and is told when they are resolved."""
        try:
            return self.resolver.text(file)
        except SourceError:
            if alone:
                raise
            return ""

    def _misread(self, joint: Joint) -> Iterator[Problem]:
        """What is wrong with the recipes that a deployment names, as far as their texts say it."""
        for at, member in enumerate(joint.stated.members):
            try:
                self.resolver.read(joint.path(member))
            except RecipeError as error:
                yield from error.problems
            except ForgeError as error:
                yield self._absent(joint, at, member, error)

    def _absent(self, joint: Joint, at: int, member: Member, error: ForgeError) -> Problem:
        """A member that cannot be read at all, at its place in the deployment."""
        return Problem(f"{joint.file}: recipes[{at}]", error.what, f"it is looked for at {joint.path(member)}")

    def asked(self, file: Path, runtime: RuntimeKind | None = None) -> tuple[Asked, ...]:
        """The recipe at ``file``, or each of the deployment there as that wants it, still to be read (for ``forge doctor``)."""
        joint = self.joint((file,))
        gpu, host = joint.stated.gpu, joint.ports

        def reader(member: Member) -> Callable[[], Recipe]:
            return lambda: deployment.adapted(self.resolver.read(joint.path(member), runtime), member, gpu)

        return tuple(Asked(joint.path(member), reader(member), host) for member in joint.stated.members)

    def checked(self, named: Path) -> tuple[Path, Deployed | None]:
        """The repository that ``forge check`` was given, or that of the deployment whose file it was given."""
        if not (named.is_file() and named.suffix == ".toml"):
            return named, None
        joint = self.joint((named,))
        if joint.file is None:
            what = "this is a recipe, and a check looks at a model repository"
            raise RecipeError((Problem(str(named), what, "name the repository that it was built into, or a deployment"),))
        publish.require_folder(whole(joint.repository))
        if not joint.repository.is_dir():
            hint = f"`forge build {named}` does; `forge doctor {named}` looks at what that and serving it need"
            raise RepositoryError("nothing was built for this deployment yet", where=str(joint.repository), hint=hint)
        return joint.repository, Deployed(str(named), joint.ports)

    def resolve(self, joint: Joint, *, runtime: RuntimeKind | None = None, locked: bool = False) -> list[Resolved]:
        """Every recipe with its facts; RecipeError with the problems of all of them."""
        problems: list[Problem] = []
        found: dict[int, Resolved] = {}
        other: ForgeError | None = None
        for at, member in enumerate(joint.stated.members):
            try:
                found[at] = self._resolve(joint, member, runtime, locked=locked)
            except RecipeError as error:
                problems += error.problems
            except ForgeError as error:
                absent = joint.file is not None and not joint.path(member).is_file()
                other = other or (None if absent else error)
                problems.append(self._absent(joint, at, member, error) if absent else _told(error, joint.path(member)))
        if other and len(problems) == 1:
            raise other
        named = {at: (resolved.recipe.name, joint.path(joint.stated.members[at])) for at, resolved in found.items()}
        problems += (each.within(str(joint.file)) if joint.file else each for each in deployment.twice(named))
        if problems:
            raise RecipeError((*problems, *problems_of(list(found.values()), several=len(joint.stated.members) > 1)))
        return list(found.values())

    def shared(self, joint: Joint, all_resolved: Sequence[Resolved], gpu: str = "") -> list[Resolved]:
        """The recipes with each one's part of the GPUs that they share: those that are here, or one of that name."""
        apart = (*gpu_share.groups(all_resolved), *gpu_share.groups(all_resolved, RuntimeKind.VLLM))
        if all(len(group) < 2 for group in apart) and joint.stated.gpu.memory is None:
            return list(all_resolved)  # nobody is asked for the GPUs of this machine without need
        gpus = (find(gpu),) if gpu else self.resolver.outside.gpus()
        return gpu_share.shared(all_resolved, joint.stated, gpus, self._sizing.load, self.resolver.say)

    def require_one_server(self, joint: Joint, all_resolved: Sequence[Resolved]) -> None:
        """RecipeError where no server could serve the repository that they would make together; RepositoryError where the
        deployment has it in the place of something that is no folder."""
        if problems := tuple(one_server.check(all_resolved, str(joint.file or ""))):
            raise RecipeError((*problems, *problems_of(all_resolved, several=len(all_resolved) > 1)))
        if joint.file:
            publish.require_folder(whole(joint.repository))

    def planned(self, all_resolved: Sequence[Resolved], options: BuildOptions) -> Plan:
        """Everything that a build of ``orders`` would stand on; what is worth knowing beforehand is said."""
        wanted = plan(all_resolved, prefixed=options.apart, inside=options.inside)
        for note in wanted.notes:
            self.resolver.say(note)
        return wanted

    def foresee(self, joint: Joint, all_resolved: Sequence[Resolved], options: BuildOptions) -> Prospect:
        """The plan against the store, and whether it fits; where that cannot be told, why."""
        self.require_one_server(joint, all_resolved)
        wanted = self.planned(all_resolved, options)
        silent = [each for each in all_resolved if not each.facts.checkpoint.config]  # what was built of them before says it
        for note in (note for each in silent for note in length_notes(each, self._sizing.config(each))):
            self.resolver.say(note)
        try:
            fit, unfit = self.fit(joint, all_resolved), ""
        except ForgeError as error:
            fit, unfit = None, str(error)
        return Prospect(wanted, outlook(wanted, self.resolver.store, self.resolver.outside.origins, self.away), fit, unfit)

    def fit(self, joint: Joint, all_resolved: Sequence[Resolved], gpu: str = "") -> Report:
        """Every figure of these recipes, judged for the card of that name, or for what is here, within the budget."""
        gpus = (find(gpu),) if gpu else self.resolver.outside.gpus()
        memory = self.resolver.outside.memory()
        return self._sizing.report(all_resolved, gpu_share.limited(gpus, joint.stated), memory, named=bool(gpu))

    @property
    def _sizing(self) -> Sizing:
        return Sizing(self.resolver.outside.origins, self.resolver.store)

    def _resolve(self, joint: Joint, member: Member, runtime: RuntimeKind | None, *, locked: bool) -> Resolved:
        return self.resolver.resolve(
            joint.path(member),
            runtime=runtime,
            locked=locked,
            adapt=lambda recipe: deployment.adapted(recipe, member, joint.stated.gpu),
        )


def _told(error: ForgeError, file: Path) -> Problem:
    """What keeps a recipe from being had, among what is wrong with others."""
    within = error.where and error.where != str(file)
    return Problem(f"{file}: {error.where}" if within else str(file), error.what, error.hint)
