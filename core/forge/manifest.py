"""``forge.json``: what a model repository holds and which artifacts it stands on. Pure: text in, text out."""

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from forge.errors import RepositoryError
from forge.model import Role, RuntimeKind, SamplingTable

NAME = "forge.json"
"""The manifest's file name in a repository."""
FORMAT = 1
ASSETS = "_assets"
"""Folder of a repository that holds tokenizers and engines, one folder a model."""


class Serving(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What serves a model: on this machine keys of two artifacts and the folder of a Triton (empty: forge's own); in a
    container the key of the artifact that names the image, the GPUs, and how many ranks its engine has."""

    environment: str = ""
    backends: str = ""
    triton: str = ""
    image: str = ""
    gpus: str = ""
    world: int = 1


class PublishedModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One recipe's models in a repository."""

    name: str
    entry: str
    """Key of the artifact that was laid into the repository."""
    runtime: RuntimeKind
    roles: dict[Role, str]
    """Role -> its folder in the repository."""
    prefix: str = ""
    keys: dict[str, str] = {}
    """Step -> key, for every step that the entry stands on."""
    serving: Serving | None = None
    sampling: SamplingTable = SamplingTable()
    linked: bool = True
    """Whether every weight shares its blocks with the store. Filled in by publishing."""

    @property
    def assets(self) -> str:
        return f"{ASSETS}/{self.name}"

    @property
    def front(self) -> str:
        """The folder of the one that clients ask: it takes text and streams text."""
        return self.roles.get(Role.BLS) or self.roles[Role.TENSORRT_LLM]

    @property
    def folders(self) -> tuple[str, ...]:
        """Every folder that is this model's, relative to the repository."""
        return (self.assets, *(folder for _, folder in sorted(self.roles.items())))

    @property
    def held(self) -> frozenset[str]:
        """Keys of every artifact that this model needs to be served or built again."""
        serving = (self.serving.environment, self.serving.backends, self.serving.image) if self.serving else ()
        return frozenset({self.entry, *self.keys.values(), *serving} - {""})


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that forge has put into one repository, by name."""

    format: int = FORMAT
    models: tuple[PublishedModel, ...] = ()
    root: str = ""
    """Where the repository stood when its config.pbtxt files were written; they name this path."""

    def find(self, name: str) -> PublishedModel | None:
        return next((model for model in self.models if model.name == name), None)

    def without(self, name: str) -> "Manifest":
        return replace(self, models=tuple(model for model in self.models if model.name != name))

    def having(self, model: PublishedModel) -> "Manifest":
        """With ``model`` in the place of any former one of its name."""
        others = self.without(model.name).models
        return replace(self, models=tuple(sorted((*others, model), key=lambda one: one.name)))

    @property
    def held(self) -> frozenset[str]:
        return frozenset[str]().union(*(model.held for model in self.models))


class _Versioned(Struct):
    format: int


def read(text: str | bytes, where: str = NAME) -> Manifest:
    """The manifest that ``text`` states; RepositoryError where it is damaged or of a newer forge."""
    try:
        stated = msgspec.json.decode(text, type=_Versioned).format
        if stated <= FORMAT:
            return msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RepositoryError(
            f"the manifest cannot be read: {error}",
            where=where,
            hint="Move this repository away and build it again; what is in the store is not made twice.",
        ) from error
    raise RepositoryError(
        f"the manifest has format {stated}; this forge knows formats up to {FORMAT}",
        where=where,
        hint="A newer forge made this repository: upgrade forge, or publish to another --repository.",
    )


def write(manifest: Manifest) -> str:
    """The same manifest always gives the same text."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2).decode() + "\n"
