"""What a bundle says of itself: its last member, sealed. Recipes, what the world answered, and what lies in the file."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from forge.files.safetensors import Tensor
from forge.files.trees import Entry
from forge.remote import statement
from forge.remote.place import RemoteError
from forge.remote.record import Builder, misplaced
from forge.remote.signature import Signer, Trust
from forge.remote.tarred import BundleError, Packed, damaged
from forge.schema.values import Pinned

FORMAT = 1


class Image(Struct, frozen=True, kw_only=True):
    """A container image in the bundle: as the recipe names it, and what keys and Dockerfiles may say of it.

    ``content`` names its layers and what it starts: a daemon that has loaded it knows neither its registry nor, always, its id.
    """

    reference: str
    id: str
    identity: str
    base: str
    content: str
    size: int = 0
    key: str = ""
    """The step that made it, of a family's image; empty for one that was pulled."""


class Answers(Struct, frozen=True, kw_only=True):
    """What the world was asked while the recipes were resolved, by a digest of the question."""

    pins: Mapping[str, Pinned] = {}
    configs: Mapping[str, Mapping[str, object]] = {}
    tensors: Mapping[str, tuple[Tensor, ...]] = {}
    images: Mapping[str, str] = {}
    """What images have said of themselves."""


class Contents(Struct, frozen=True, kw_only=True):
    """All of it. ``named`` are the recipes, or the deployment, among ``texts`` (path -> text)."""

    format: int = FORMAT
    by: Builder
    python: str
    platform: str
    triton: str = ""
    runtime: str = ""
    prefixed: bool = False
    inside: bool = False
    executor: str = ""
    named: tuple[str, ...]
    texts: Mapping[str, str]
    answers: Answers = Answers()
    records: Mapping[str, str] = {}
    """Key -> hex blake3 of its record."""
    environments: tuple[str, ...] = ()
    """Those of the keys whose artifact is laid anew: two of its files name a place of the machine that it was made on."""
    images: tuple[Image, ...] = ()
    archive: tuple[str, ...] = ()
    """The blobs that are, one after the other, what `docker save` gave for all images."""
    attestation: str = ""
    """A signed statement about all of it but the seal, as JSON; empty where nobody signed."""
    seal: str = ""


def encode(contents: Contents, signer: Signer | None = None) -> bytes:
    """Its text, signed where there is a key, and sealed."""
    if signer:
        bare = replace(contents, attestation="", seal="")
        stated = statement.of_bundle(", ".join(bare.named), _text(bare), bare.by, bare.records)
        contents = replace(contents, attestation=signer.sign(stated))
    return _text(replace(contents, seal=_seal(contents)))


def require(contents: Contents, trust: Trust) -> None:
    """UntrustedError, unless a trusted key has signed the bundle, or none has to."""
    trust.require(contents.attestation, _subjects(contents))


def whose(contents: Contents, trust: Trust) -> str:
    """Whose signature it has, in words."""
    if not contents.attestation:
        return "no"
    try:
        return str(trust.about(contents.attestation, _subjects(contents)))
    except RemoteError as error:
        return f"not known: {error.what}"


def _subjects(contents: Contents) -> tuple[statement.Resource, ...]:
    return statement.about_bundle(_text(replace(contents, attestation="", seal="")))


def read(packed: Packed) -> Contents:
    """What a bundle says of itself; BundleError unless it is whole, sealed, and safe to be laid out."""
    file = Path(packed.name)
    try:
        stated = msgspec.json.decode(packed.contents, type=dict[str, msgspec.Raw])
        number = msgspec.json.decode(stated.get("format", msgspec.Raw(b"0")), type=int)
        if number > FORMAT:
            what = f"a later forge has made it (format {number}, and this one reads {FORMAT})"
            raise BundleError(what, where=packed.name, hint="update forge")
        contents = msgspec.json.decode(packed.contents, type=Contents)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise damaged(f"what it says of itself cannot be read ({error})", file) from None
    if contents.seal != _seal(contents) or packed.contents != _text(contents):
        raise damaged("what it says of itself is not as it was written", file)
    for path in (*contents.texts, *contents.named):
        if problem := misplaced(Entry(path=path)):
            raise damaged(f"{path!a} {problem}", file)
    if not set(contents.named) <= contents.texts.keys():
        raise damaged("a recipe that it names is missing", file)
    if set(contents.records) != {one.key for one in packed.records()}:
        raise damaged("it does not hold the artifacts that it names", file)
    packed.hold(contents.records)
    return contents


def _seal(contents: Contents) -> str:
    return blake3(_text(replace(contents, seal=""))).hexdigest()


def _text(contents: Contents) -> bytes:
    return msgspec.json.encode(contents, order="sorted")
