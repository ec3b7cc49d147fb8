"""Signed provenance: what a statement says, whose signature counts, and what is refused without one. Keys are real."""

import base64
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from bundle_kit import resealed
from cloud_servers import address
from fake_wiring import ENGINE, World
from forge.api.forge import Forge
from forge.api.outcome import Built
from forge.build.bundle.opened import look
from forge.build.sources.git import GitOrigin
from forge.build.sources.wheel import WheelOrigin
from forge.build.supply import notary
from forge.cli import main
from forge.errors import ConfigError, ForgeError
from forge.machine.environments import PrivateEnvironments, host
from forge.plan.preview import State
from forge.remote.open import place
from forge.remote.place import RemoteError
from forge.remote.record import Record
from forge.remote.shared import Shared
from forge.remote.signature import PAYLOAD, Notary, UntrustedError
from forge.schema.twin_environment import serving_environment
from forge.schema.values import Pinned, Source, SourceKind
from forge.settings import RemoteTable, Settings, read as stated
from forge.store.store import Artifact, Provenance, Store
from store_makers import KEY, fill, key

pytest.importorskip("securesystemslib", reason="signing is the extra `sign`: pip install 'triton-forge[sign]'")
pytest.importorskip("obstore", reason="a shared store is the extra `remote`: pip install 'triton-forge[remote]'")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from securesystemslib.dsse import Envelope

PASSPHRASE = "open sesame"
KINDS: dict[str, Callable[[], Any]] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ecdsa p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ecdsa p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
}
MADE = Provenance("tiny: engine", "Run", {"gpu": "sm_89", "commands.0": "trtllm-build"}, {"checkpoint": key(7)})


class Keys:
    """Key pairs in files, as openssl writes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pair(self, name: str, kind: str = "ed25519", passphrase: str = "") -> tuple[Path, Path]:
        """(private, public) key files."""
        made = KINDS[kind]()
        locked = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
        private, public = self.folder / f"{name}.key", self.folder / f"{name}.pub"
        private.write_bytes(made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        public.write_bytes(made.public_key().public_bytes(serialization.Encoding.PEM, spki))
        return private, public


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


class Side:
    """One machine at a shared store, with what its config file says of signatures."""

    def __init__(
        self, root: Path, name: str, passphrase: str = "", url: str = "", cosign: str | None = None, **said: Any
    ) -> None:
        self.url = url or f"file://{root / 'shared'}"
        self.store = Store(root / name, clock=time.time)
        environ = {"FORGE_SIGN_PASSPHRASE": passphrase} if passphrase else {}
        environ |= {} if cosign is None else {"COSIGN_PASSWORD": cosign}
        self.notary: Notary = notary(RemoteTable(**said), root, environ, self.store)

    @property
    def shared(self) -> Shared:
        return Shared(lambda: place(self.url, 5.0), self.url, lambda _: None, time.time, notary=self.notary)

    def made(self, made: Provenance = MADE, name: str = KEY) -> Artifact:
        return self.store.make(name, made, fill_without_links)[0]

    def record(self) -> Record:
        (held,) = self.shared.records()
        assert held.record is not None
        return held.record


def fill_without_links(out: Path) -> None:
    fill(out)
    (out / "python3").unlink()


def statement(record: Record) -> Any:
    envelope = json.loads(record.attestation)
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    return json.loads(base64.b64decode(envelope["payload"]))


# -- what it says


def test_a_statement_says_maker_sources_image_and_gpu(tmp_path: Path, keys: Keys) -> None:
    """The field names are in-toto's (Statement v1) and SLSA's (Provenance v1)."""
    private, _ = keys.pair("ci")
    side = Side(tmp_path, "here", sign=private.name)
    image = Provenance("image", "MakeImage", {"base": f"sha256:{'a' * 64}"}, {})
    side.store.make(key(8), image, lambda out: (out / "image.json").write_text('{"id": "sha256:1", "reference": "r/t:1"}'))
    side.shared.push(side.made(replace_needs(image=key(8))))
    record = side.record()
    said = statement(record)
    assert (said["_type"], said["predicateType"]) == ("https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1")
    assert {one["name"]: one["digest"]["sha256"] for one in said["subject"]} == {
        "manifest.json": hashlib.sha256(record.manifest.encode()).hexdigest(),
        "files.json": hashlib.sha256(record.listing.encode()).hexdigest(),
    }
    definition, run = said["predicate"]["buildDefinition"], said["predicate"]["runDetails"]
    assert definition["externalParameters"]["inputs"] == MADE.inputs
    assert definition["internalParameters"] == {"key": KEY, "gpu": "sm_89"}
    assert {one["name"]: one for one in definition["resolvedDependencies"]} == {
        "checkpoint": {"name": "checkpoint", "uri": f"forge:{key(7)}"},
        "image": {"name": "image", "uri": "docker:r/t:1", "digest": {"sha256": "a" * 64}},
    }
    assert run["builder"]["id"] == f"urn:triton-forge:builder:{record.by.user}@{record.by.host}"
    assert run["metadata"]["startedOn"] <= run["metadata"]["finishedOn"]


def replace_needs(**more: str) -> Provenance:
    return Provenance(MADE.step, MADE.action, MADE.inputs, {**MADE.needs, **more})


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_key_signs_and_its_public_half_is_trusted(tmp_path: Path, keys: Keys, kind: str) -> None:
    private, public = keys.pair("ci", kind)
    maker, taker = Side(tmp_path, "here", sign=str(private)), Side(tmp_path, "there", verify="require", keys=(public.name,))
    maker.shared.push(maker.made())
    assert taker.shared.pull(KEY, taker.store)
    der = serialization.load_pem_public_key(public.read_bytes()).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (signature,) = json.loads(maker.record().attestation)["signatures"]
    assert signature["keyid"] == hashlib.sha256(der).hexdigest()
    assert private.read_bytes().splitlines()[1] not in b"".join(each.read_bytes() for each in files(tmp_path / "shared"))


def files(folder: Path) -> list[Path]:
    return [each for each in folder.rglob("*") if each.is_file()]


def test_only_a_variable_opens_an_encrypted_key(tmp_path: Path, keys: Keys) -> None:
    private, public = keys.pair("ci", passphrase=PASSPHRASE)
    Side(tmp_path, "here", PASSPHRASE, sign=str(private)).shared.push(Side(tmp_path, "here").made())
    taker = Side(tmp_path, "there", verify="require", keys=(str(public),))
    assert taker.shared.pull(KEY, taker.store)
    for passphrase, what in (("", "is encrypted"), ("wrong-one", "does not open")):
        side = Side(tmp_path, f"with {passphrase}", passphrase, sign=str(private))
        with pytest.raises(RemoteError, match=what) as error:
            side.shared.push(side.made(name=key(9)))
        assert "FORGE_SIGN_PASSPHRASE" in str(error.value)
        assert "wrong-one" not in str(error.value)


SECRETS = ("FORGE_SIGN_PASSPHRASE", "COSIGN_PASSWORD", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")


@pytest.mark.parametrize("program", ["uv", "git", "pip"])
def test_no_program_is_told_the_passphrase(tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the hub's token."""
    told = tmp_path / "told"
    installer = tmp_path / program
    installer.write_text(f"#!/bin/sh\nenv > {told}\nexit 1\n")
    installer.chmod(0o755)
    monkeypatch.setattr("forge.build.sources.wheel._pip", lambda: [str(installer)])
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **dict.fromkeys(SECRETS, PASSPHRASE)}
    here = host(os.environ)
    asks: dict[str, Callable[[], object]] = {
        "uv": lambda: PrivateEnvironments(environ).make(
            serving_environment(here, ()), here.interpreter, tmp_path / "out", lambda _: None
        ),
        "git": lambda: GitOrigin(tmp_path / "home", environ).pin(Source(git="https://localhost/a.git", revision="b"), tmp_path),
        "pip": lambda: WheelOrigin(environ).sealed(Pinned(SourceKind.WHEEL, "a==1", "1", ())),
    }
    with pytest.raises(ForgeError):
        asks[program]()
    assert "PATH=" in told.read_text()
    assert PASSPHRASE not in told.read_text()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no private key in PEM"),
        (
            "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nabc\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n",
            "cosign's form",
        ),
        (None, "there is no such file"),
    ],
)
def test_what_is_no_key_is_said_with_what_to_do(tmp_path: Path, text: str | None, what: str) -> None:
    file = tmp_path / "ci.key"
    if text is not None:
        file.write_text(text)
    side = Side(tmp_path, "here", sign=str(file))
    with pytest.raises(RemoteError, match=what) as error:
        side.shared.push(side.made())
    assert str(file) in str(error.value)
    assert error.value.hint


def locked(private: Path, password: str, **other: Any) -> None:
    """Have a key's file as `cosign generate-key-pair` writes it (secure-systems-lab's go-securesystemslib, ``encrypted``)."""
    nacl = pytest.importorskip("nacl.secret", reason="keys of cosign's need PyNaCl: pip install 'triton-forge[sign]'")
    der = serialization.load_pem_private_key(private.read_bytes(), None).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    salt, nonce = os.urandom(32), os.urandom(24)
    box = nacl.SecretBox(hashlib.scrypt(password.encode(), salt=salt, n=65536, r=8, p=1, maxmem=1 << 28, dklen=32))
    costs = {"N": 65536, "r": 8, "p": 1, **other}
    said = {
        "kdf": {"name": "scrypt", "params": costs, "salt": base64.b64encode(salt).decode()},
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(box.encrypt(der, nonce).ciphertext).decode(),
    }
    text = base64.encodebytes(json.dumps(said).encode()).decode()
    private.write_text(f"-----BEGIN {COSIGN}-----\n{text}-----END {COSIGN}-----\n")


COSIGN = "ENCRYPTED SIGSTORE PRIVATE KEY"


@pytest.mark.parametrize("password", ["", PASSPHRASE])
def test_a_key_pair_of_cosigns_signs_and_is_trusted(tmp_path: Path, keys: Keys, password: str) -> None:
    private, public = keys.pair("cosign", "ecdsa p256")
    locked(private, password)
    side = Side(tmp_path, "here", cosign=password, sign=str(private))
    side.shared.push(side.made())
    taker = Side(tmp_path, "there", verify="require", keys=(str(public),))
    assert taker.shared.pull(KEY, taker.store)
    again = Side(tmp_path, "again", password, cosign="another", sign=str(private))
    if password:
        again.shared.push(again.made(name=key(3)))


@pytest.mark.parametrize(
    ("cosign", "costs", "what"),
    [
        (None, {}, "is encrypted, in cosign's form"),
        ("wrong-one", {}, "does not open with that password"),
        (PASSPHRASE, {"N": 1 << 30}, "wants more memory"),
        (PASSPHRASE, {"r": 0}, "wants more memory"),
        (PASSPHRASE, {"N": 3}, "cannot be opened"),
    ],
)
def test_a_cosign_key_that_does_not_open_names_help(
    tmp_path: Path, keys: Keys, cosign: str | None, costs: dict[str, int], what: str
) -> None:
    private, _ = keys.pair("cosign", "ecdsa p256")
    locked(private, PASSPHRASE, **costs)
    side = Side(tmp_path, "here", cosign=cosign, sign=str(private))
    with pytest.raises(RemoteError, match=what) as error:
        side.shared.push(side.made())
    assert ("damaged" if costs else "COSIGN_PASSWORD") in error.value.hint
    assert str(private) in str(error.value)
    assert "wrong-one" not in str(error.value)


@pytest.mark.parametrize("verb", ["build", "bundle"])
def test_a_missing_key_is_told_before_anything_is_built(tmp_path: Path, verb: str) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(ENGINE)
    world = World()
    url = f"file://{tmp_path / 'shared'}" if verb == "build" else ""
    table = RemoteTable(url=url, access="read-write", sign=str(tmp_path / "none.key"))
    shop = world.shop(tmp_path / "home", settings=Settings(remote=table))
    verbs: dict[str, Callable[[], object]] = {
        "build": lambda: shop.build([recipe], repository=tmp_path / "models"),
        "bundle": lambda: shop.bundle([recipe], tmp_path / "tiny.forge"),
    }
    with pytest.raises(RemoteError, match="there is no such file"):
        verbs[verb]()
    assert [event.text for event in world.events if event.kind == "start"] == []
    assert world.containers.ran == []


def test_a_variables_key_is_sought_beside_the_caller_and_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"FORGE_REMOTE_SIGN": "none.key", "FORGE_REMOTE_KEYS": "~/a.pub,b.pub"}
    said = stated(environ).remote
    assert said.keys == (str(Path.home() / "a.pub"), str(tmp_path / "b.pub"))
    store = Store(tmp_path / "store", clock=time.time)
    signer = notary(said, tmp_path / "config", environ, store).signer
    assert signer
    with pytest.raises(RemoteError) as error:
        signer.require()
    assert (error.value.where, error.value.hint) == (str(tmp_path / "none.key"), "FORGE_REMOTE_SIGN names it")


# -- what is refused


def harmed(record: Record, how: str, other: Record) -> Record:
    envelope = json.loads(record.attestation)
    if how == "none":
        return replace(record, attestation="")
    if how == "another artifact's":
        return replace(record, attestation=other.attestation)
    if how == "no envelope":
        return replace(record, attestation='{"payload": 3}')
    if how == "altered signature":
        bad = bytearray(base64.b64decode(envelope["signatures"][0]["sig"]))
        bad[0] ^= 1
        envelope["signatures"][0]["sig"] = base64.b64encode(bad).decode()
    if how == "altered statement":
        text = base64.b64decode(envelope["payload"]).replace(b"sm_89", b"sm_90")
        envelope["payload"] = base64.b64encode(text).decode()
    return replace(record, attestation=json.dumps(envelope))


REFUSED = {
    "none": "it is not signed",
    "another artifact's": "one of something else",
    "altered artifact": "one of something else",
    "no envelope": "cannot be read",
    "altered signature": "is not that of",
    "altered statement": "is not that of",
    "foreign": "which is not trusted here",
}


@pytest.fixture(params=["file", "s3", "registry", "azure", "gcs"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty shared store."""
    return address(request.param, request, tmp_path)


@pytest.mark.parametrize("how", REFUSED)
def test_nothing_is_taken_without_a_signature_that_counts(tmp_path: Path, keys: Keys, url: str, how: str) -> None:
    private, public = keys.pair("ci")
    foreign, _ = keys.pair("stranger")
    maker = Side(tmp_path, "here", url=url, sign=str(foreign if how == "foreign" else private))
    maker.shared.push(maker.made(name=key(1)))
    other = maker.record()
    maker.shared.place.drop([key(1)])
    maker.shared.push(maker.made())
    record = harmed(maker.record(), how, other) if how != "foreign" else maker.record()
    if how == "altered artifact":  # whole in itself, under the signature of what it was
        forger = Side(tmp_path / "forger", "store")
        forger.shared.push(forger.store.make(KEY, MADE, lambda out: (out / "weights.bin").write_text("evil"))[0])
        record = replace(forger.record(), attestation=record.attestation)
    maker.shared.place.write(KEY, msgspec.json.encode(record), {}, anew=True)
    taker = Side(tmp_path, "there", url=url, verify="require", keys=(str(public),))
    with pytest.raises(UntrustedError, match=REFUSED[how]) as error:
        taker.shared.pull(KEY, taker.store)
    assert "[remote] keys" in error.value.hint
    assert taker.store.find(KEY) is None
    if how != "altered artifact":
        careless = Side(tmp_path, "careless", url=url)
        assert careless.shared.pull(KEY, careless.store), "who does not ask for signatures takes it as ever"


def test_what_a_trusted_key_signed_is_taken_from_any_store(tmp_path: Path, keys: Keys, url: str) -> None:
    private, public = keys.pair("ci", "ecdsa p256")
    maker = Side(tmp_path, "here", url=url, sign=str(private))
    maker.shared.push(maker.made())
    taker = Side(tmp_path, "there", url=url, verify="require", keys=(str(public),))
    taken = taker.shared.pull(KEY, taker.store)
    assert taken
    assert f"trusted: {public}" in taker.notary.of_held(taken)[1]
    assert taker.store.verify() == ()


def test_openssl_finds_the_same_signature_good(tmp_path: Path, keys: Keys) -> None:
    """Over DSSE's encoding of the payload, as cosign and all others verify it."""
    private, public = keys.pair("ci", "ecdsa p256")
    maker = Side(tmp_path, "here", sign=str(private))
    maker.shared.push(maker.made())
    envelope = json.loads(maker.record().attestation)
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    (tmp_path / "signed").write_bytes(b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    argv = ("openssl", "dgst", "-sha256", "-verify", public, "-signature", tmp_path / "sig", tmp_path / "signed")
    assert subprocess.run(argv, capture_output=True, check=False).stdout == b"Verified OK\n"
    (tmp_path / "signed").write_bytes((tmp_path / "signed").read_bytes() + b" ")
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 1


def test_a_build_remakes_unsigned_remote_artifacts_and_signs_local_ones(tmp_path: Path, keys: Keys) -> None:
    private, public = keys.pair("ci")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(ENGINE)
    url = f"file://{tmp_path / 'shared'}"

    def built(name: str, **said: Any) -> World:
        world = World()
        table = RemoteTable(url=url, access="read-write", deadline=5.0, **said)
        world.shop(tmp_path / name, settings=Settings(remote=table)).build([recipe], repository=tmp_path / name / "models")
        return world

    built("unsigned")
    wary = World().shop(
        tmp_path / "wary", settings=Settings(remote=RemoteTable(url=url, verify="require", keys=(str(public),)))
    )
    assert {one.state for one in wary.foresee([recipe]).steps} == {State.MISS}
    careful = built("careful", verify="require", keys=(str(public),), sign=str(private))
    notes = [event.text for event in careful.events if event.kind == "note"]
    assert notes.count("tiny: engine is not taken: it is not signed") == 1
    assert [run.command.argv[0] for run in careful.containers.ran] == ["python3", "trtllm-build"]
    asked = World().shop(
        tmp_path / "asked", settings=Settings(remote=RemoteTable(url=url, verify="require", keys=(str(public),)))
    )
    states = {one.name: one.state for one in asked.foresee([recipe]).steps}
    assert states["tiny: engine"] is State.REMOTE, "signed by who made it again"
    third = built("third", verify="require", keys=(str(public),))
    assert third.containers.ran == []


def test_a_taken_artifact_keeps_its_signature_and_no_other(tmp_path: Path, keys: Keys) -> None:
    private, public = keys.pair("ci")
    maker = Side(tmp_path, "here", sign=str(private))
    maker.shared.push(maker.made())
    own, _ = keys.pair("mine")
    middle = Side(tmp_path, "middle", sign=str(own))
    taken = middle.shared.pull(KEY, middle.store)
    assert taken
    before = maker.record().attestation
    maker.shared.place.drop([KEY])
    middle.shared.push(taken)
    assert maker.record().attestation == before
    taker = Side(tmp_path, "there", verify="require", keys=(str(public),))
    assert taker.shared.pull(KEY, taker.store)


SAYS_ELSE: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "payload": ("application/vnd.cyclonedx+json", lambda _: None),
    "statement": (PAYLOAD, lambda said: said.update({"_type": "https://in-toto.io/Statement/v0.1"})),
    "predicate": (PAYLOAD, lambda said: said.update({"predicateType": "https://slsa.dev/verification_summary/v1"})),
}
"""What a trusted key has signed of just this artifact, and not that it was made so."""


@pytest.mark.parametrize("how", SAYS_ELSE)
def test_a_trusted_keys_word_of_another_kind_is_refused(tmp_path: Path, keys: Keys, how: str) -> None:
    private, public = keys.pair("ci")
    maker = Side(tmp_path, "here", sign=str(private))
    maker.shared.push(maker.made())
    record = maker.record()
    kind, change = SAYS_ELSE[how]
    said = statement(record)
    change(said)
    envelope: Any = Envelope(json.dumps(said).encode(), kind, {})
    key = serialization.load_pem_private_key(private.read_bytes(), None)
    signers: Any = import_module("securesystemslib.signer")
    (name,) = (each["keyid"] for each in json.loads(record.attestation)["signatures"])
    envelope.sign(signers.CryptoSigner(key, signers.SSlibKey.from_crypto(key.public_key(), keyid=name)))
    forged = replace(record, attestation=json.dumps(envelope.to_dict()))
    maker.shared.place.write(KEY, msgspec.json.encode(forged), {}, anew=True)
    taker = Side(tmp_path, "there", verify="require", keys=(str(public),))
    with pytest.raises(UntrustedError, match="no statement of how something was made"):
        taker.shared.pull(KEY, taker.store)
    assert taker.store.find(KEY) is None


def test_what_another_made_unsigned_is_not_signed_here(tmp_path: Path, keys: Keys) -> None:
    maker = Side(tmp_path, "here")
    maker.shared.push(maker.made())
    own, _ = keys.pair("mine")
    middle = Side(tmp_path, "middle", sign=str(own))
    taken = middle.shared.pull(KEY, middle.store)
    assert taken
    maker.shared.place.drop([KEY])
    middle.shared.push(taken)
    assert maker.record().attestation == "", "how it was made this machine does not know"


# -- what a person says and sees


def test_wanted_signatures_need_keys_and_key_contents_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "forge" / "config.toml"
    file.parent.mkdir()
    file.write_text('[remote]\nverify = "require"\n')
    with pytest.raises(ConfigError, match=r"remote\.keys: is empty"):
        stated({})
    file.write_text('[remote]\nverify = "require"\nkeys = ["ci.pub"]\nsign = "ci.key"\n')
    assert stated({}).remote.keys == ("ci.pub",)
    assert stated({"FORGE_REMOTE_KEYS": "a.pub,b.pub"}).remote.keys == (str(Path.cwd() / "a.pub"), str(Path.cwd() / "b.pub"))
    file.write_text('[remote]\nsign = """-----BEGIN PRIVATE KEY-----\nMC4CAQ\n"""\n')
    with pytest.raises(ConfigError, match=r"remote\.sign"):
        stated({})


def forge(*words: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, words)))


def test_explain_says_whose_signature_an_artifact_has_here_and_there(
    tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = keys.pair("ci")
    maker = Side(tmp_path, "here", sign=str(private))
    maker.shared.push(maker.made())
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FORGE_REMOTE_URL", maker.url)
    assert "which is not trusted here" in forge("cache", "explain", KEY).output
    monkeypatch.setenv("FORGE_REMOTE_KEYS", str(public))
    monkeypatch.setenv("FORGE_REMOTE_VERIFY", "require")
    assert f"trusted: {public}" in forge("cache", "explain", KEY).output
    assert forge("cache", "pull", KEY).exit_code == 0
    monkeypatch.setenv("FORGE_REMOTE_URL", "none")
    alone = json.loads(forge("cache", "explain", KEY, "--json").stdout)
    assert f"trusted: {public}" in alone["signed"]
    assert json.loads(alone["attestation"])["payloadType"] == "application/vnd.in-toto+json"


# -- bundles


class Bundles:
    """A bundle of a tiny engine, and a machine that wants signatures."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe = root / "tiny.toml"
        self.recipe.write_text(ENGINE)

    def shop(self, name: str, **said: Any) -> Forge:
        return World().shop(self.root / name, settings=Settings(remote=RemoteTable(**said)))

    def made(self, **said: Any) -> Path:
        return self.shop("here", **said).bundle([self.recipe], self.root / "tiny.forge").file

    def built(self, file: Path, public: Path) -> Built:
        there = self.shop("there", verify="require", keys=(str(public),))
        return there.unbundle(file, self.root / "laid", repository=self.root / "models")


def test_a_signed_bundle_is_built_where_signatures_are_wanted(tmp_path: Path, keys: Keys) -> None:
    private, public = keys.pair("ci")
    bundles = Bundles(tmp_path)
    file = bundles.made(sign=str(private))
    assert bundles.built(file, public).models[0].name == "tiny"
    assert f"trusted: {public}" in look(file, bundles.shop("x", keys=(str(public),)).notary.trust).signed


def test_an_unsigned_or_changed_bundle_is_refused(tmp_path: Path, keys: Keys) -> None:
    private, public = keys.pair("ci")
    bundles = Bundles(tmp_path)
    with pytest.raises(UntrustedError, match="nothing is built from this bundle: it is not signed"):
        bundles.built(bundles.made(), public)
    signed = bundles.made(sign=str(private))
    changed = resealed(signed, lambda held: replace(held, texts={**held.texts, "tiny.toml": "name = 'evil'"}))
    with pytest.raises(UntrustedError, match="one of something else"):
        bundles.built(changed, public)
    assert not (tmp_path / "laid").exists()
