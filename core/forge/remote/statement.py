"""Who made an artifact, from what, on which image: an in-toto Statement v1 with a SLSA Provenance v1 predicate.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md and https://slsa.dev/spec/v1.0/provenance. The subjects
are the texts that say all of an artifact: ``manifest.json`` (what it was made from) and ``files.json`` (its files' digests).
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from forge.remote.record import Builder
from forge.store.artifact import LISTING, MANIFEST, Manifest

TYPE = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
STEP = "urn:triton-forge:step:v1"
BUNDLE = "urn:triton-forge:bundle:v1"
_GPU = "gpu"

Digests = Mapping[str, str]
"""Algorithm -> hex digest."""


class Resource(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something by its name, its place and its digests (in-toto's ResourceDescriptor)."""

    name: str = ""
    uri: str = ""
    digest: Digests = {}


class Definition(Struct, frozen=True, kw_only=True, rename="camel"):
    """What was to be made: a step with all its inputs; what it took."""

    build_type: str
    external_parameters: Mapping[str, object]
    internal_parameters: Mapping[str, str] = {}
    resolved_dependencies: tuple[Resource, ...] = ()


class Maker(Struct, frozen=True, kw_only=True):
    """Who made it, and with which forge."""

    id: str
    version: Mapping[str, str] = {}


class Run(Struct, frozen=True, kw_only=True):
    """How the making went: who, and from when to when."""

    builder: Maker
    metadata: Mapping[str, str] = {}


class Provenance(Struct, frozen=True, kw_only=True, rename="camel"):
    """The predicate."""

    build_definition: Definition
    run_details: Run


class Statement(Struct, frozen=True, kw_only=True, rename="camel"):
    """What is signed."""

    type: str = msgspec.field(default=TYPE, name="_type")
    subject: tuple[Resource, ...]
    predicate_type: str = PREDICATE
    predicate: Provenance


def of_artifact(manifest: Manifest, texts: tuple[str, str], by: Builder, needs: tuple[Resource, ...]) -> bytes:
    """The statement of an artifact; ``texts`` are those of its manifest and its listing, ``needs`` what it was made from."""
    made = manifest.provenance
    return msgspec.json.encode(
        Statement(
            subject=subjects(texts),
            predicate=Provenance(
                build_definition=Definition(
                    build_type=STEP,
                    external_parameters={"step": made.step, "action": made.action, "inputs": made.inputs},
                    internal_parameters={"key": manifest.key, _GPU: made.inputs.get(_GPU, "")},
                    resolved_dependencies=needs,
                ),
                run_details=Run(
                    builder=_maker(by),
                    metadata={
                        "invocationId": manifest.key,
                        "startedOn": _time(manifest.made_at - manifest.seconds),
                        "finishedOn": _time(manifest.made_at),
                    },
                ),
            ),
        )
    )


def of_bundle(name: str, text: bytes, by: Builder, records: Mapping[str, str]) -> bytes:
    """The statement of a bundle whose contents are ``text``; ``records`` are its artifacts' (key -> hex blake3)."""
    held = tuple(Resource(uri=f"forge:{key}", digest={"blake3": digest}) for key, digest in records.items())
    return msgspec.json.encode(
        Statement(
            subject=about_bundle(text),
            predicate=Provenance(
                build_definition=Definition(
                    build_type=BUNDLE, external_parameters={"recipes": name}, resolved_dependencies=held
                ),
                run_details=Run(builder=_maker(by), metadata={"finishedOn": _time(by.at)}),
            ),
        )
    )


def subjects(texts: tuple[str, str]) -> tuple[Resource, ...]:
    """What a statement about an artifact is about, by its manifest's and its listing's text."""
    names = zip((MANIFEST, LISTING), texts, strict=True)
    return tuple(Resource(name=name, digest=_digest(text.encode())) for name, text in names)


def about_bundle(text: bytes) -> tuple[Resource, ...]:
    """The same of a bundle."""
    return (Resource(name="bundle.json", digest=_digest(text)),)


def _maker(by: Builder) -> Maker:
    return Maker(id=f"urn:triton-forge:builder:{by.user}@{by.host}", version={"forge": by.forge, "system": by.system})


def _digest(text: bytes) -> Digests:
    return {"sha256": hashlib.sha256(text).hexdigest()}


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
