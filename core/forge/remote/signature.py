"""Statements, signed: a DSSE envelope by a plain key (Ed25519, ECDSA or RSA, in PEM) or cosign's, and whose signatures count.

Signing and verifying are securesystemslib's, over pyca/cryptography; both come with the extra ``sign``. A key's id is the
sha256 of its public half as DER, which `openssl pkey -pubin -outform DER | sha256sum` prints too.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from forge.errors import ForgeError
from forge.files import texts
from forge.remote import cosign, statement
from forge.remote.place import RemoteError
from forge.remote.record import ORIGIN, Builder, Record
from forge.remote.statement import Resource, Statement
from forge.store.artifact import LISTING, Artifact, noted, written

PAYLOAD = "application/vnd.in-toto+json"
ATTESTATION = "attestation.json"
"""Stands beside the manifest of an artifact that was taken with its signature."""
EXTRA = "pip install 'triton-forge[sign]'"
_KEY = 64 << 10
_FIX = (
    "have it sent again by a machine that signs ([remote] sign), or name its public key under [remote] keys (docs/signing.md)"
)


class UntrustedError(RemoteError):
    """What is there has no signature that counts here."""


class Signed(Struct, frozen=True):
    """Whose signature something has: the key's id, the file of the key where it is trusted, and the builder that it names."""

    key: str
    trusted: str
    builder: str

    def __str__(self) -> str:
        who = f"by {self.builder.removeprefix('urn:triton-forge:builder:')}, key {self.key[:16]}"
        return f"{who}, trusted: {self.trusted}" if self.trusted else f"{who}, which is not trusted here"


class Signer:
    """A private key. It is read when something is signed, stays in this process, and reaches no text."""

    def __init__(self, file: Path, passphrase: str, named: str = "[remote] sign", cosign: str | None = None) -> None:
        """``named`` is where the file is named: the key of the settings, or its variable.

        ``cosign`` is what opens a key of cosign's form where there is no ``passphrase``: empty is a password there, None none.
        """
        self._file = file
        self._passphrase = passphrase
        self._cosign = passphrase or cosign
        self._named = named

    def require(self) -> None:
        """RemoteError where nothing could be signed: no such file, no key in it, no passphrase, the extra not installed."""
        self._signer  # noqa: B018  # reading it is what may fail

    def sign(self, payload: bytes) -> str:
        """A statement in its envelope, as JSON."""
        envelope = _sdk("dsse").Envelope(payload, PAYLOAD, {})
        envelope.sign(self._signer)
        return msgspec.json.encode(envelope.to_dict(), order="sorted").decode()

    @cached_property
    def _signer(self) -> Any:
        signers = _sdk("signer")
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        text = texts.read(self._file, RemoteError, "the key that signs", hint=f"{self._named} names it", most=_KEY)
        if cosign.is_cosign(text):
            key = self._of_cosign(text)
            return signers.CryptoSigner(key, _public(key.public_key()))
        secret = self._passphrase.encode() if self._passphrase and "ENCRYPTED" in text else None
        try:
            key = load_pem_private_key(text.encode(), secret)
            return signers.CryptoSigner(key, _public(key.public_key()))
        except TypeError:
            raise self._refused("is encrypted", "say its passphrase in FORGE_SIGN_PASSPHRASE") from None
        except ValueError:
            what = "does not open with FORGE_SIGN_PASSPHRASE, or is no key" if secret else "is no private key in PEM"
            raise self._refused(what, "Ed25519, ECDSA (P-256, P-384, P-521) and RSA keys in PEM will do") from None

    def _of_cosign(self, text: str) -> Any:
        from cryptography.hazmat.primitives.serialization import load_der_private_key

        hint = f"say its password in {cosign.PASSWORD} or FORGE_SIGN_PASSPHRASE"
        if self._cosign is None:
            raise self._refused("is encrypted, in cosign's form", hint)
        try:
            return load_der_private_key(cosign.unlocked(text, self._cosign), None)
        except cosign.PasswordError as error:
            raise self._refused(f"is one of cosign's, and cannot be opened: {error}", hint) from None
        except (ValueError, TypeError) as error:
            what = f"is one of cosign's, and cannot be opened: {error}"
            raise self._refused(what, "it is damaged: bring the file again") from None

    def _refused(self, what: str, hint: str) -> RemoteError:
        return RemoteError(f"the key that signs {what}", where=str(self._file), hint=hint)


class Trust:
    """The public keys whose signatures count; ``needed`` where nothing is taken without one."""

    def __init__(self, files: Sequence[Path], *, needed: bool) -> None:
        self._files = files
        self.needed = needed

    def about(self, envelope: str, subjects: tuple[Resource, ...]) -> Signed:
        """Whose signature it is, trusted or not; UntrustedError where it is none, or a signature of something else."""
        if not envelope:
            raise UntrustedError("it is not signed", hint=_FIX)
        found, said = _opened(envelope)
        if said.subject != subjects:
            raise UntrustedError("its signature is one of something else", hint=_FIX)
        maker = said.predicate.run_details.builder.id
        names = list(found.signatures)
        known = {name: file for name, (_, file) in self._keys.items() if name in names}
        if not known:
            return Signed(str(next(iter(names), "")), "", maker)
        try:
            accepted = found.verify([self._keys[name][0] for name in known], 1)
        except (_sdk("exceptions").Error, ValueError, TypeError):
            raise UntrustedError(f"its signature is not that of {next(iter(known.values()))}", hint=_FIX) from None
        name = str(next(iter(accepted)))
        return Signed(name, known[name], maker)

    def require(self, envelope: str, subjects: tuple[Resource, ...]) -> None:
        """UntrustedError, unless a trusted key has signed, or none has to."""
        if self.needed:
            signed = self.about(envelope, subjects)
            if not signed.trusted:
                raise UntrustedError(f"it is signed {signed}", hint=_FIX)

    @cached_property
    def _keys(self) -> dict[str, tuple[Any, str]]:
        _sdk("signer")
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        found: dict[str, tuple[Any, str]] = {}
        for file in self._files:
            hint = "[remote] keys names it; it has to be a public key in PEM"
            text = texts.read(file, RemoteError, "a trusted key", hint=hint, most=_KEY)
            try:
                key = _public(load_pem_public_key(text.encode()))
            except (ValueError, TypeError):
                raise RemoteError("a trusted key is no public key in PEM", where=str(file), hint=hint) from None
            found[str(key.keyid)] = key, str(file)
        return found


NOBODY = Trust((), needed=False)


class Notary(Struct, frozen=True):
    """Signs what is sent, and says whose signatures count, as one person or site has said it. ``find`` looks into the store."""

    signer: Signer | None = None
    trust: Trust = NOBODY
    find: Callable[[str], Artifact | None] = lambda _: None

    def attest(self, held: Artifact, by: Builder) -> str:
        """The envelope that goes with an artifact: the one that it came with, else this machine's own; empty without a key.

        What another has made is not signed here: this machine does not know how it was made.
        """
        home = held.path.parent
        came = texts.there(home / ATTESTATION, RemoteError, "an artifact's signature")
        if came or self.signer is None or (home / ORIGIN).exists():
            return came or ""
        listing = texts.read(home / LISTING, RemoteError, "an artifact's listing")
        stated = (written(held.manifest).decode(), listing)
        needs = tuple(self._resource(name, key) for name, key in held.manifest.provenance.needs.items())
        return self.signer.sign(statement.of_artifact(held.manifest, stated, by, needs))

    def require(self, record: Record) -> None:
        """UntrustedError, unless a trusted key has signed the record's artifact, or none has to."""
        self.trust.require(record.attestation, statement.subjects((record.manifest, record.listing)))

    def whose(self, envelope: str, stated: tuple[str, str]) -> str:
        """Whose signature something has, in words; ``stated`` are the texts of its manifest and its listing."""
        if not envelope:
            return "no"
        try:
            return str(self.trust.about(envelope, statement.subjects(stated)))
        except RemoteError as error:
            return f"not known: {error.what}" + (f" ({error.hint})" if not isinstance(error, UntrustedError) else "")

    def of_held(self, held: Artifact) -> tuple[str, str]:
        """The envelope that an artifact came with, empty for one without, and whose it is in words."""
        home = held.path.parent
        came = texts.there(home / ATTESTATION, RemoteError, "an artifact's signature") or ""
        listing = texts.read(home / LISTING, RemoteError, "an artifact's listing") if came else ""
        return came, self.whose(came, (written(held.manifest).decode(), listing))

    def _resource(self, name: str, key: str) -> Resource:
        """What an artifact was made from: another one by its key, or an image by its reference and digest."""
        found = self.find(key)
        if found is None:
            return Resource(name=name, uri=f"forge:{key}")
        base = found.manifest.provenance.inputs.get("base", "")
        if name != "image" or ":" not in base:
            return Resource(name=name, uri=f"forge:{key}", digest={"blake3": found.manifest.listing})
        algorithm, _, digest = base.partition(":")
        try:
            reference = noted(found.path).get("reference", "")
        except ForgeError:
            reference = ""
        return Resource(name=name, uri=f"docker:{reference or base}", digest={algorithm: digest})


def _opened(envelope: str) -> tuple[Any, Statement]:
    """An envelope and the statement in it; nobody has looked at its signatures yet."""
    try:
        found = _sdk("dsse").Envelope.from_dict(msgspec.json.decode(envelope))
        said = msgspec.json.decode(found.payload, type=Statement)
    except (
        msgspec.MsgspecError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
        _sdk("exceptions").Error,
    ) as error:
        raise UntrustedError(f"its signature cannot be read: {error}", hint=_FIX) from None
    if (found.payload_type, said.type, said.predicate_type) != (PAYLOAD, statement.TYPE, statement.PREDICATE):
        raise UntrustedError("its signature is no statement of how something was made (in-toto, SLSA)", hint=_FIX)
    return found, said


def _public(key: Any) -> Any:
    """securesystemslib's key of one of cryptography's, under its id; ValueError for a kind that it does not take."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    text = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return _sdk("signer").SSlibKey.from_crypto(key, keyid=hashlib.sha256(text).hexdigest())


def _sdk(name: str) -> Any:
    """A module of the SDK, whose types are not said everywhere; RemoteError where the extra is not installed."""
    try:
        import_module("cryptography")
        return import_module(f"securesystemslib.{name}")
    except ImportError as error:
        raise RemoteError("signatures need securesystemslib and cryptography", hint=EXTRA) from error
