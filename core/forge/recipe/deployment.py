"""``deployments/*.toml``: which recipes share a repository, how much of the GPUs they may take, and where they are served.

The tables say what is allowed (``forge.recipe.validate`` holds texts against them); what they change in a recipe is computed
here. Pure.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, cast

import msgspec
from msgspec import Meta, Struct, field, inspect
from msgspec.structs import replace

from forge.errors import Problem, RecipeError
from forge.recipe.validate import Walk, document, is_table, schema as form_schema
from forge.schema.spelling import Architecture, FolderName, Gpus, LocalPath
from forge.schema.values import Ports, Recipe, Role, RuntimeKind, Scalar, ServeTable

MARK = "recipes"
"""The key that a deployment has and a recipe has not."""
NO_GPUS = "none"
Count = Annotated[int, Meta(ge=1, le=1024)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Size = Annotated[
    str,
    Meta(pattern=r"^[0-9]+(\.[0-9]+)? ?([kMGT]i?B|B)\Z", description='bytes with their unit, as "20 GB" or "16 GiB"'),
]
Share = Annotated[float, Meta(gt=0, le=1)]
Address = Annotated[str, Meta(pattern=r"^[A-Za-z0-9.:-]+\Z", description="a host name or an address of this machine")]
RecipePath = Annotated[LocalPath, Meta(description="the path of a recipe, relative to this file; no leading '-'")]
_UNITS = {"B": 0, "kB": 1, "MB": 2, "GB": 3, "TB": 4}


class Replicas(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[replicas]: instances of each model. An engine carries many requests at once and has one."""

    preprocessing: Count | None = None
    tensorrt_llm: Annotated[Count | None, Meta(description="always 1: an engine carries many requests at once")] = None
    postprocessing: Count | None = None
    bls: Annotated[Count | None, Meta(description="instances of tensorrt_llm_bls: parallel streams")] = None

    def over(self, other: "Replicas") -> "Replicas":
        """These, and ``other``'s where these say nothing."""
        stated = {key: value for key, value in msgspec.structs.asdict(self).items() if value is not None}
        return replace(other, **stated)


class Member(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[[recipes]]: one recipe, and what this deployment wants otherwise."""

    recipe: RecipePath
    name: Annotated[FolderName, Meta(description="its name here, instead of the recipe's own")] | None = None
    replicas: Replicas = Replicas()
    gpu: Architecture | None = None


class GpuTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[gpu]: the budget of all models together, on each GPU that they share."""

    memory: Annotated[Share | Size, Meta(description="a part of each GPU's memory, or bytes of it")] | None = None
    devices: Gpus | None = None


class PortsTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """[ports]: where `forge serve` listens; what it leaves out is a person's or a site's to say (forge.settings)."""

    http: Port | None = None
    grpc: Port | None = None
    metrics: Port | None = None
    host: Address | None = None

    @property
    def stated(self) -> dict[str, int | str]:
        return {key: value for key, value in msgspec.structs.asdict(self).items() if value is not None}


class Deployment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A deployment as its TOML states it; paths are relative to the file."""

    recipes: tuple[RecipePath | Member, ...]
    repository: Annotated[LocalPath, Meta(description="the model repository, relative to this file")] = "../model-repository"
    gpu: GpuTable = GpuTable()
    ports: PortsTable = PortsTable()
    replicas: Replicas = Replicas()

    @property
    def members(self) -> tuple[Member, ...]:
        """Every recipe as a table, with the replicas that hold for it."""
        stated = (Member(recipe=each) if isinstance(each, str) else each for each in self.recipes)
        return tuple(replace(each, replicas=each.replicas.over(self.replicas)) for each in stated)

    def budget(self, memory: int) -> int:
        """Bytes that the models may take of a GPU with so much ``memory``."""
        stated = self.gpu.memory
        if stated is None:
            return memory
        return min(_bytes(stated), memory) if isinstance(stated, str) else int(stated * memory)


_FORM = inspect.type_info(Deployment)


def is_deployment(text: str) -> bool:
    """Whether a TOML text is a deployment's and no recipe's; false for what is no TOML, which a recipe's reader explains."""
    try:
        return MARK in document(text, "")
    except RecipeError:
        return False


def read(text: str, where: str) -> Deployment:
    """The deployment that ``text`` states; RecipeError with all problems, each with ``where`` and its key."""
    stated, problems = looked(text, where)
    if problems:
        raise RecipeError(problems)
    return stated


def looked(text: str, where: str) -> tuple[Deployment, tuple[Problem, ...]]:
    """What can be used of a text, and all that is wrong with the rest: between keys too, where both can be used."""
    walk = Walk(_FORM)
    clean = walk.table(_FORM, document(text, where, "deployment"), "")
    problems = [Problem(path, what, hint) for path, (what, hint) in walk.problems.items()]
    members = [each for each in cast("list[object]", clean.get(MARK, [])) if not is_table(each) or "recipe" in each]
    stated = msgspec.convert({**clean, MARK: members}, Deployment)
    told = tuple(walk.problems)
    problems += [each for each in _contradictions(stated) if not any(path.startswith(each.where) for path in told)]
    return stated, tuple(each.within(where) for each in problems)


def schema() -> dict[str, object]:
    """The JSON schema (2020-12) of a deployment, for editors and other tools."""
    return form_schema(Deployment, "forge deployment")


def adapted(recipe: Recipe, member: Member, gpu: GpuTable) -> Recipe:
    """The recipe as a deployment wants it: under its name there, on its GPUs, with its replicas."""
    runtime = recipe.runtime
    if gpu.devices and runtime.kind is not RuntimeKind.TWIN and runtime.gpus != NO_GPUS:
        runtime = replace(runtime, gpus=gpu.devices)
    if member.gpu is not None and runtime.kind is RuntimeKind.ENGINE:
        runtime = replace(runtime, gpu=member.gpu)
    serve = _replicated(recipe.serve, member.replicas) if runtime.kind is not RuntimeKind.LLMAPI else recipe.serve
    return replace(recipe, name=member.name or recipe.name, runtime=runtime, serve=serve)


def twice(named: Mapping[int, tuple[str, Path]]) -> tuple[Problem, ...]:
    """Names that two members share; ``named`` are the members' names by their places, each with the file it comes from."""
    found: list[Problem] = []
    seen: dict[str, Path] = {}
    for at, (name, file) in named.items():
        if name in seen:
            hint = 'give one of them a name of its own: [[recipes]] with recipe = "..." and name = "..."'
            found.append(Problem(f"recipes[{at}]", f"{name!r} is the name of {seen[name]} too", hint))
        seen.setdefault(name, file)
    return tuple(found)


def _replicated(serve: ServeTable, wanted: Replicas) -> ServeTable:
    parameters: dict[Role, dict[str, Scalar]] = {role: dict(values) for role, values in serve.parameters.items()}
    for role, count in ((Role.PREPROCESSING, wanted.preprocessing), (Role.POSTPROCESSING, wanted.postprocessing)):
        if count is not None:
            parameters.setdefault(role, {})[f"{role}_instance_count"] = count
    if wanted.bls is not None:
        parameters.get(Role.BLS, {}).pop("bls_instance_count", None)
    return replace(serve, parameters=parameters, instances=serve.instances if wanted.bls is None else wanted.bls)


def _contradictions(stated: Deployment) -> Iterator[Problem]:
    if not stated.recipes:
        yield Problem(MARK, "a deployment without recipes", 'write recipes = ["../recipes/gemma-2b-it.toml"]')
    tables = {"replicas": stated.replicas}
    tables |= {f"{MARK}[{at}].replicas": each.replicas for at, each in enumerate(stated.recipes) if isinstance(each, Member)}
    for where, replicas in tables.items():
        if (replicas.tensorrt_llm or 1) > 1:
            what = (
                f"{replicas.tensorrt_llm} instances of an engine: each would load all weights again, and one instance carries "
                "many requests at once (in-flight batching)"
            )
            yield Problem(f"{where}.tensorrt_llm", what, "leave it at 1, and raise build.max_batch_size in the recipe")
    usual = replace(Ports(), **stated.ports.stated)
    ports = (usual.http, usual.grpc, usual.metrics)
    if len(set(ports)) < len(ports):
        yield Problem("ports", f"http, grpc and metrics each need their own; found {', '.join(map(str, ports))}")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9.]+) ?(\w+)", text)
    assert match is not None  # noqa: S101 - the form's pattern has said so
    power = _UNITS[match[2].replace("i", "")]
    return int(float(match[1]) * (1024 if "i" in match[2] else 1000) ** power)


class Asked(Struct, frozen=True):
    """One recipe to look at, still to be read, and where a deployment wants it to be served."""

    path: Path
    read: Callable[[], Recipe]
    ports: Ports = field(default_factory=Ports)


class Deployed(Struct, frozen=True):
    """The file of a deployment, and where it wants its repository to be served."""

    file: str
    ports: Ports
