"""From what repositories hold to what starting one server on them needs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from forge.errors import ServerError
from forge.repository import publish
from forge.schema.manifest import Manifest, PublishedModel, Serving
from forge.schema.values import LOCAL, Ports, Role, RuntimeKind
from forge.serve.server_types import ORCHESTRATED, Launch, RepositoryFolders, Running
from forge.store.artifact import IMAGE, Artifact, noted
from forge.store.store import Store

AGAIN = "build it again: `forge build RECIPE`"
APART = "build one of them into another --repository, and `forge serve` that one by itself, on other ports"
_PACKAGES = ("requirements.", "environment.packages.")
"""What an artifact's provenance calls the packages that it has on top of what it stands on."""
_SILENT = ("family", "reference", "interpreter")
"""What of a provenance says nothing about what is inside."""
_TEMPLATE = "template"

Held = Mapping[Path, Manifest]
"""What each repository of one server holds, in the order in which they were named."""
Plan = Callable[[Held, Running], Launch]
"""What the repositories of a server hold -> what one server for all of it needs, the same one if that will do."""


def holdings(running: Running) -> Held:
    return {Path(place): publish.inventory(Path(place)) for place in running.repositories}


class _Ground(Struct, frozen=True):
    """What a server for one model stands on: an image; or an environment, backends and the folder of a Triton, and vLLM's."""

    model: str
    stated: Artifact
    backends: Artifact | None
    triton: str
    vllm: Artifact | None = None

    @property
    def packages(self) -> frozenset[str]:
        return frozenset(value for label, value in self._inputs.items() if label.startswith(_PACKAGES))

    def serves(self, other: "_Ground") -> bool:
        """Whether all that ``other`` has is here: the same but for packages, and those of ``other`` among these."""
        installs = bool(other.packages)  # how packages are put in says nothing of an image that has none
        return other.packages <= self.packages and self.bare(template=installs) == other.bare(template=installs)

    @property
    def kind(self) -> str:
        """Whose Triton it is."""
        return "NVIDIA's container" if self.backends is None else "vLLM on this machine" if self.vllm else "the twin"

    @property
    def image(self) -> str:
        """The image's id."""
        return noted(self.stated.path)["id"]

    def named(self) -> str:
        """As ``Launch.base`` names it."""
        return f"environment {self.stated.path}" if self.backends else f"image {self.image}"

    def described(self) -> str:
        """For a person: the image as its recipe names it, and the packages."""
        on = self._inputs.get("base", "") or self._inputs.get("environment.python", "")
        if (self.stated.path / IMAGE).is_file():
            on = noted(self.stated.path).get("reference") or on
        return f"{self.model}: {on} with {', '.join(sorted(self.packages)) or 'nothing'} on top"

    def bare(self, *, template: bool) -> tuple[dict[str, str], dict[str, str], str, str]:
        drop = (*_PACKAGES, *_SILENT, *(() if template else (_TEMPLATE,)))
        bare = {label: value for label, value in self._inputs.items() if not label.startswith(drop)}
        backends = dict(self.backends.manifest.provenance.inputs) if self.backends else {}
        return bare, backends, self.triton, str(self.vllm.path) if self.vllm else ""

    @property
    def _inputs(self) -> Mapping[str, str]:
        return self.stated.manifest.provenance.inputs


def launch(
    held: Held, store: Store, ports: Ports, *, detach: bool = False, room: bool = False, on: Sequence[str] = ()
) -> Launch:
    """All that one server for every model of ``held`` needs; ServerError where one cannot serve them all.

    With ``room`` an engine that is alone is served so that others can come beside it. ``on`` is what a server stands on already
    (``Launch.base``): where that will do, nothing else is chosen.
    """
    if not held:
        raise ServerError("no repository is named", hint="`forge serve --repository DIR`, once for each")
    _require_apart(held)
    place, models = next(iter(held)), [model for manifest in held.values() for model in manifest.models]
    plain = Launch(place, tuple(folder for model in models for folder in model.roles.values()), ports=ports, detach=detach)
    entries = {folder: model.entry for model in models for folder in model.roles.values()}
    plain = replace(plain, several=_several(held), entries=entries)
    if not models:
        return plain
    ground = _common([_ground(place, model, store) for model in models], place, on)
    if ground.backends:
        local = replace(plain, environment=ground.stated.path, backends=ground.backends.path, triton=ground.triton)
        return replace(local, vllm=ground.vllm.path, turns=_turns(models)) if ground.vllm else local
    tables = [model.serving or Serving() for model in models]
    gpus = {each for table in tables if table.gpus for each in table.gpus.split(",")}
    served = tuple(folder for model in models for folder in engines(model))
    # llmapi's one process starts those of its other ranks, which need their GPUs all the same
    world = max((table.world for model, table in zip(models, tables, strict=True) if engines(model)), default=1)
    wanted = replace(
        plain,
        image="" if ground.image == LOCAL else ground.image,
        triton=next((table.triton for table in tables if table.triton), ""),
        gpus="all" if "all" in gpus else ",".join(sorted(gpus)),
        engines=served,
        world=world,
        ranks=max(table.world for table in tables),
        room=room or ORCHESTRATED in on,
    )
    return replace(wanted, turns=_turns(models)) if world == 1 or wanted.orchestrated else wanted


def in_turn(model: PublishedModel) -> tuple[str, ...]:
    """A recipe's models in the order in which a server takes them in: those that call others come last."""
    late = {Role.BLS: 1, Role.ENSEMBLE: 2}
    roles = sorted(model.roles, key=lambda role: (late.get(role, 0), role))
    return tuple(model.roles[role] for role in roles)


def engines(model: PublishedModel) -> tuple[str, ...]:
    """The folders that TensorRT-LLM's own backend serves; llmapi's model is Python and starts its ranks itself."""
    if model.runtime is not RuntimeKind.ENGINE:
        return ()
    return tuple(model.roles[role] for role in (Role.TENSORRT_LLM, Role.DRAFT) if role in model.roles)


def _turns(models: Sequence[PublishedModel]) -> tuple[tuple[str, ...], ...]:
    """Every recipe but the first, in the order of the manifests: each takes its share of the GPU memory that is free then.
    vLLM takes its part of the whole card, less what it sees come into use while it looks: also what another loads meanwhile.

    Not where MPI starts a server for each part of an engine: only the first of those can be told to load something later.
    """
    return tuple(in_turn(model) for model in models[1:])


def _several(held: Held) -> tuple[RepositoryFolders, ...]:
    """None where there is one repository only."""
    if len(held) == 1:
        return ()
    return tuple(
        RepositoryFolders(place, tuple(folder for model in manifest.models for folder in model.folders))
        for place, manifest in held.items()
    )


def _require_apart(held: Held) -> None:
    """ServerError where two repositories have a recipe, or a folder, of one name: clients could not tell them apart."""
    seen: dict[str, tuple[Path, str]] = {}
    for place, manifest in held.items():
        for model in manifest.models:
            for what in (f"recipe {model.name!r}", *(f"model {folder!r}" for folder in model.roles.values())):
                other, name = seen.setdefault(what, (place, model.name))
                if other != place:
                    hint = _other_names(place, model, name, what)
                    both = f"{what} stands in two of the repositories: {other} and {place}"
                    raise ServerError(both, where=str(place), hint=hint)


def _other_names(place: Path, model: PublishedModel, other: str, what: str) -> str:
    if what.startswith("recipe"):
        return "serve each by itself, on other ports; or give one of the two recipes another name and build it again"
    if model.prefix:
        return f"give {model.name!r} or {other!r} another name in its recipe and build it again"
    return f"`forge build RECIPE --prefixed --repository {place}` publishes {model.name!r} under names of its own"


def _ground(place: Path, model: PublishedModel, store: Store) -> _Ground:
    table = model.serving or Serving()
    if table.image:
        return _Ground(model.name, _held(place, table.image, store), None, "")
    stated, backends = (_held(place, key, store) for key in (table.environment, table.backends))
    vllm = _held(place, table.vllm, store) if table.vllm else None
    return _Ground(model.name, stated, backends, table.triton, vllm)


def _common(grounds: Sequence[_Ground], place: Path, on: Sequence[str]) -> _Ground:
    """The one that has all that the others have."""
    fit = [ground for ground in grounds if all(ground is other or ground.serves(other) for other in grounds)]
    if fit:
        return next((ground for ground in fit if ground.named() in on), fit[0])
    if len(kinds := {ground.kind for ground in grounds}) > 1:
        raise _refused(f"models of {' and of '.join(sorted(kinds))} cannot share one Triton", grounds, place, APART)
    if len({str(ground.bare(template=False)) for ground in grounds}) == 1:
        raise _refused("its models need packages that no one of their images and environments has", grounds, place, APART)
    if grounds[0].backends is None:
        hint = f"give their recipes one `runtime.image` and build them again, all of them; or {APART}"
        raise _refused("its models were built in different images", grounds, place, hint)
    hint = f"build all of them again with this forge (what is in the store is not made twice); or {APART}"
    raise _refused("its models were built for different environments", grounds, place, hint)


def _refused(what: str, grounds: Sequence[_Ground], place: Path, hint: str) -> ServerError:
    lines = "\n".join(dict.fromkeys(f"    {ground.described()}" for ground in grounds))
    return ServerError(f"{what}\n{lines}", where=str(place), hint=hint)


def _held(place: Path, key: str, store: Store) -> Artifact:
    artifact = store.find(key) if key else None
    if artifact is None:
        raise ServerError("what serves it is no longer held", where=str(place), hint=AGAIN)
    return artifact
