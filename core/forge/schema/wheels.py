"""The sha256 of the wheels that forge's own pins stand for: ``wheels.sha256``, written by ``.ci/wheel_hashes.py``. Pure."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType

import msgspec

from forge.files import texts

FILE = "wheels.sha256"
Hashes = Mapping[str, tuple[str, ...]]
"""``name==version`` -> the sha256 of each wheel that is taken for it."""
NO_HASHES: Hashes = MappingProxyType({})


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _parts(requirement: str) -> tuple[str, str]:
    """Its name as indexes compare it, and the rest."""
    name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    return canonical(name), requirement.removeprefix(name)


def named(requirement: str) -> str:
    """The distribution that a requirement is for, as indexes compare names."""
    return _parts(requirement)[0]


def requested(requirements: Iterable[str]) -> tuple[str, ...]:
    """Requirements in order, each once however its name is spelled: what a key is made of."""
    return tuple(sorted({"".join(_parts(each)) for each in requirements}))


def pinned(requirement: str) -> str:
    """``name==version`` with the name as indexes compare it; empty where the requirement is no exact pin of a name."""
    found = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9._+!]+)", requirement)
    return f"{canonical(found[1])}=={found[2]}" if found else ""


@cache
def shipped() -> Hashes:
    lines = texts.part("forge.schema", FILE).splitlines()
    return {pin: tuple(digests) for pin, *digests in map(str.split, lines)}


def known(requirements: Iterable[str], hashes: Hashes) -> Hashes:
    """What ``hashes`` or forge itself knows of those of ``requirements`` that are exact pins, under their own words."""
    found = ((each, hashes.get(pinned(each)) or shipped().get(pinned(each), ())) for each in requirements)
    return {each: digests for each, digests in found if digests}


def listed(held: Hashes) -> str:
    """The same as a requirements file."""
    return "".join(" ".join((pin, *(f"--hash=sha256:{digest}" for digest in digests))) + "\n" for pin, digests in held.items())


def read_report(text: str) -> Hashes:
    """What ``pip install --report`` would install."""
    chosen = msgspec.json.decode(text, type=_Report).install
    told = {f"{each.metadata.name}=={each.metadata.version}": each.download_info.archive_info.sha256 for each in chosen}
    return {pinned(pin): (digest,) if digest else () for pin, digest in told.items()}


def read_requirements(text: str) -> Hashes:
    """What ``uv pip compile --generate-hashes`` writes."""
    lines = text.replace("\\\n", " ").splitlines()
    found = {pinned(line.split(" ")[0]): tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", line)) for line in lines}
    return {pin: digests for pin, digests in found.items() if pin}


class Archive(msgspec.Struct):
    """``archive_info`` of pip's report: pip before 23.0 writes ``hash`` alone (PyPA's direct URL origin)."""

    hashes: dict[str, str] = {}
    hash: str = ""

    @property
    def sha256(self) -> str:
        """Empty where the index states none."""
        algorithm, _, digest = self.hash.partition("=")
        return self.hashes.get("sha256", digest if algorithm == "sha256" else "")


class _Download(msgspec.Struct):
    archive_info: Archive = msgspec.field(default_factory=Archive)


class _Metadata(msgspec.Struct):
    name: str
    version: str


class _Chosen(msgspec.Struct):
    metadata: _Metadata
    download_info: _Download


class _Report(msgspec.Struct):
    install: list[_Chosen]
