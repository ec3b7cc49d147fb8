"""Private keys as cosign keeps them (`cosign generate-key-pair`): PKCS#8 in NaCl's secretbox, under scrypt of a password.

The form is JSON, in base64, in a PEM block of cosign's own name; every number that opens it stands in the file.
"""

import base64
import hashlib
from importlib import import_module

import msgspec
from msgspec import Struct

from forge.remote.place import RemoteError

PASSWORD = "COSIGN_PASSWORD"  # noqa: S105 - the name of a variable
_NAMES = ("ENCRYPTED COSIGN PRIVATE KEY", "ENCRYPTED SIGSTORE PRIVATE KEY")
_MOST = 1 << 30
"""Bytes of memory that scrypt may take; cosign's own keys take 64 MiB."""
EXTRA = "pip install 'triton-forge[sign]'"


class PasswordError(ValueError):
    """The password is not the key's, or what it locks is damaged: that looks alike."""


class _Costs(Struct):
    """scrypt's, by their usual letters."""

    n: int = msgspec.field(name="N")
    r: int
    p: int


class _Kdf(Struct):
    name: str
    params: _Costs
    salt: bytes


class _Cipher(Struct):
    name: str
    nonce: bytes


class _Locked(Struct):
    kdf: _Kdf
    cipher: _Cipher
    ciphertext: bytes


def is_cosign(text: str) -> bool:
    """Whether a key's file is of cosign's form."""
    return any(f"-----BEGIN {name}-----" in text for name in _NAMES)


def unlocked(text: str, password: str) -> bytes:
    """The private key as DER (PKCS#8). PasswordError where that is wrong, ValueError where the
    file is none of cosign's."""
    lines = [line.strip() for line in text.strip().splitlines()]
    try:
        found = msgspec.json.decode(base64.b64decode("".join(lines[1:-1]), validate=True), type=_Locked)
    except msgspec.MsgspecError as error:
        raise ValueError(f"is no key of cosign's: {error}") from None
    if (found.kdf.name, found.cipher.name) != ("scrypt", "nacl/secretbox"):
        raise ValueError(f"is locked by {found.kdf.name} and {found.cipher.name}, which no cosign does")
    costs = found.kdf.params
    if costs.n < 2 or costs.r < 1 or costs.p < 1 or 128 * costs.n * costs.r + 128 * costs.r * costs.p > _MOST:
        raise ValueError("wants more memory to be opened than a key does")
    words = {"n": costs.n, "r": costs.r, "p": costs.p, "maxmem": 2 * _MOST - 1, "dklen": 32}
    key = hashlib.scrypt(password.encode(), salt=found.kdf.salt, **words)
    try:
        secret = import_module("nacl.secret")
        wrong = import_module("nacl.exceptions").CryptoError
    except ImportError as error:
        raise RemoteError("keys of cosign's need PyNaCl", hint=EXTRA) from error
    try:
        opened: bytes = secret.SecretBox(key).decrypt(found.ciphertext, found.cipher.nonce)
    except wrong:
        raise PasswordError("does not open with that password") from None
    return opened
