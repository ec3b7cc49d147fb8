"""``forge.json``: what a model repository holds and which artifacts it stands on. Pure, but that ``named`` draws an id."""

from typing import Annotated
from uuid import uuid4

import msgspec
from blake3 import blake3
from msgspec import Meta, Struct
from msgspec.structs import replace

from forge.errors import RepositoryError
from forge.files import texts
from forge.schema.values import Edit, LimitsTable, Names, Role, RuntimeKind, SamplingTable

NAME = "forge.json"
"""The manifest's file name in a repository."""
FORMAT = 6
"""Raised when a manifest says what an older forge does not know; those of older formats are read as well."""


_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,191}"
Folder = Annotated[str, Meta(pattern=rf"\A{_NAME}\Z")]
"""One name of a folder, made as recipes say it: a manifest can come with somebody else's repository, and its names are shown by
terminals, pages and metrics."""
Key = Annotated[str, Meta(pattern=r"\A([A-Za-z0-9][A-Za-z0-9_-]{0,127})?\Z")]
"""Of an artifact in the store; empty for none."""


class Serving(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What serves a model: on this machine keys of two artifacts (``vllm`` is a third: the environment that holds vLLM) and the
    folder of a Triton (empty: forge's own); in a
    container the key of the artifact that names the image, the GPUs, and how many ranks it has. Both ``image`` and
    ``triton``: built inside NVIDIA's container, and served by the Triton that is installed there."""

    environment: Key = ""
    backends: Key = ""
    triton: str = ""
    image: Key = ""
    gpus: str = ""
    world: int = 1
    vllm: Key = ""

    @property
    def contained(self) -> bool:
        """Whether the server is a container, which has a place of its own for the repository."""
        return bool(self.image) and not self.triton


class RecipeFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The recipe that a model was built by: where it was, and the hex blake3 of its bytes. No key hashes it."""

    file: str
    digest: str

    @classmethod
    def of(cls, file: str, content: bytes) -> "RecipeFile":
        return cls(file=file, digest=blake3(content).hexdigest())


class PublishedModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One recipe's models in a repository."""

    name: Folder
    entry: Key
    """Key of the artifact that was laid into the repository."""
    runtime: RuntimeKind
    roles: dict[Role, Folder]
    """Role -> its folder in the repository."""
    prefix: Annotated[str, Meta(pattern=rf"\A({_NAME})?\Z")] = ""
    keys: dict[str, Key] = {}
    """Step -> key, for every step that the entry stands on."""
    serving: Serving | None = None
    sampling: SamplingTable = SamplingTable()
    limits: LimitsTable = LimitsTable()
    num_draft_tokens: int | None = None
    """Tokens that a request lets the draft guess at once; only where a draft model is asked."""
    linked: bool = True
    """Whether every weight shares its blocks with the store. Filled in by publishing."""
    inside: bool = False
    """Whether the assets stand inside the folder of the model over the engine."""
    edits: tuple[Edit, ...] = ()
    """What forge wrote or changed in models that are not its own."""
    recipe: RecipeFile | None = None
    """None where a forge before format 6 published it."""

    @property
    def names(self) -> Names:
        return Names(self.prefix, tuple(self.roles), self.inside)

    @property
    def assets(self) -> str:
        """The folder of its tokenizer and engine, relative to the repository."""
        return self.names.assets(self.name)

    def asset(self, kind: str) -> str:
        """Where its ``tokenizer``, ``engines``, ``checkpoint`` (an engine's: config.json) or ``model`` (llmapi's whole
        checkpoint) stands, relative to the repository."""
        return f"{self.assets}/{kind}"

    @property
    def front(self) -> str:
        """The folder of the one that clients ask: it takes text and streams text."""
        return next(self.roles[role] for role in (Role.VLLM, Role.BLS, Role.TENSORRT_LLM) if role in self.roles)

    @property
    def calls(self) -> dict[str, tuple[str, ...]]:
        """Folder -> those of the models that it calls and waits for, where it calls any."""
        parts = tuple(folder for role, folder in self.roles.items() if role not in (Role.BLS, Role.ENSEMBLE))
        return {self.roles[role]: parts for role in (Role.BLS, Role.ENSEMBLE) if role in self.roles}

    @property
    def folders(self) -> tuple[str, ...]:
        """Every folder that is this model's, relative to the repository; none inside another."""
        own = tuple(folder for _, folder in sorted(self.roles.items()))
        return own if self.inside else (self.assets, *own)

    @property
    def held(self) -> frozenset[str]:
        """Keys of every artifact that this model needs to be served or built again."""
        held = self.serving or Serving()
        serving = (held.environment, held.backends, held.image, held.vllm)
        return frozenset({self.entry, *self.keys.values(), *serving} - {""})


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that forge has put into one repository, by name."""

    format: int = FORMAT
    models: tuple[PublishedModel, ...] = ()
    root: str = ""
    """Where the repository stood when its config.pbtxt files were written; they name this path."""
    id: Annotated[str, Meta(pattern=r"\A([0-9a-f]{32})?\Z")] = ""
    """Drawn once for each repository, so that it is known wherever it stands; empty where a forge before format 4 wrote this.
    A copy has the id of what it was copied from."""

    def find(self, name: str) -> PublishedModel | None:
        return next((model for model in self.models if model.name == name), None)

    def without(self, name: str) -> "Manifest":
        return replace(self, models=tuple(model for model in self.models if model.name != name))

    def having(self, model: PublishedModel) -> "Manifest":
        """With ``model`` in the place of any former one of its name."""
        others = self.without(model.name).models
        return replace(self, models=tuple(sorted((*others, model), key=lambda one: one.name)))

    @property
    def named(self) -> "Manifest":
        """With an id: the one that it has, or a new one."""
        return self if self.id else replace(self, id=uuid4().hex)

    @property
    def held(self) -> frozenset[str]:
        return frozenset[str]().union(*(model.held for model in self.models))


class _Versioned(Struct):
    format: int


_CALLED = "the manifest"
AWAY = "Move this repository away and build it again; what is in the store is not made twice."


def read(text: str | bytes, where: str = NAME) -> Manifest:
    """The manifest that ``text`` states; RepositoryError where it is damaged or of a newer forge."""
    stated = texts.parsed(lambda: msgspec.json.decode(text, type=_Versioned).format, RepositoryError, _CALLED, where, hint=AWAY)
    if stated <= FORMAT:
        return texts.parsed(lambda: msgspec.json.decode(text, type=Manifest), RepositoryError, _CALLED, where, hint=AWAY)
    raise RepositoryError(
        f"the manifest has format {stated}; this forge knows formats up to {FORMAT}",
        where=where,
        hint="A newer forge made this repository: upgrade forge, or publish to another --repository.",
    )


def write(manifest: Manifest) -> str:
    """The same manifest always gives the same text."""
    words = msgspec.json.encode(replace(manifest, format=FORMAT), order="sorted")
    return msgspec.json.format(words, indent=2).decode() + "\n"
