"""What an image holds and says: files out of it through a container that is never started, and help texts."""

import posixpath
import re
import tarfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import PurePosixPath
from tempfile import SpooledTemporaryFile

from forge.diagnoses import Diagnosis, diagnose
from forge.errors import HostError, StepError
from forge.machine.bonds import temporary
from forge.machine.docker import owners
from forge.machine.docker.container_run import CONFINED, container, devices, exit_code, heard
from forge.machine.docker.daemon import Api, Daemon, each, ours

_MOST = 256 * 1024**2
"""Bytes that one path may bring: scripts and skeletons are small, a folder beyond this is a wrong path."""
_IN_MEMORY = 8 * 1024**2
_LINKS = 8  # inside an archive, before a link is one that leads in circles
_LAST = 20
"""Lines of a failed program's output that an error shows."""
_MISSING = 404
_NOWHERE = re.compile("not a directory|too many links")  # what else leads nowhere, in the daemon's words
_WIDTH = "200"  # argparse folds its help to the terminal's width, which must not differ from machine to machine


class Reading:
    """Reads images of one daemon; nothing of an image but a ``help_text`` runs."""

    _daemon: Daemon
    _table: Iterable[Diagnosis]

    def read(self, image: str, paths: tuple[str, ...]) -> Mapping[str, bytes]:
        """Every file at or below ``paths``, by its path in the image; a path that is not there brings none."""
        config = {
            "Image": image,
            "Cmd": ["/forge/is-never-started"],
            "Labels": owners.labels("reading"),
            "HostConfig": {"NetworkMode": "none", **CONFINED},
        }
        with self._daemon.connected() as api, container(api, config, owners.fresh_name("reading")) as identity:
            return {name: data for path in paths for name, data in _files(api, identity, path)}

    def help_text(self, image: str, argv: tuple[str, ...], gpus: str = "") -> str:
        """Standard output of ``argv``, run with no network and past the image's entrypoint, whose banner is no help."""
        config = {
            "Image": image,
            "Entrypoint": [argv[0]],
            "Cmd": list(argv[1:]),
            "Env": [f"COLUMNS={_WIDTH}", "PYTHONDONTWRITEBYTECODE=1"],
            "Labels": owners.labels("help"),
            "AttachStdout": True,
            "AttachStderr": True,
            "HostConfig": {"NetworkMode": "none", "DeviceRequests": devices(gpus), **CONFINED},
        }
        with self._daemon.connected() as api, container(api, config, owners.fresh_name("help")) as identity:
            said = list(heard(api, identity))
            code = exit_code(api, identity)
        if code:
            text = b"".join(spoken.data for spoken in said).decode(errors="replace")
            known = diagnose(text, self._table)
            raise (HostError if known and known.host else StepError)(
                "\n".join((f"{' '.join(argv)} exited with {code}", *text.splitlines()[-_LAST:])),
                where=image,
                hint=str(known) if known else "the image is not what it was taken for: name another in [runtime] image",
            )
        return b"".join(spoken.data for spoken in said if spoken.stream == 1).decode(errors="replace")


def _files(api: Api, identity: str, path: str) -> Iterator[tuple[str, bytes]]:
    with SpooledTemporaryFile(max_size=_IN_MEMORY, dir=temporary()) as spool:
        if not _fetch(api, identity, path, spool):
            return
        spool.seek(0)
        with tarfile.open(fileobj=spool) as archive:
            members = {posixpath.normpath(member.name): member for member in archive.getmembers()}
            for name, member in members.items():
                inside = PurePosixPath(name).parts[1:]
                # A link is read where what it points to is in the archive too, through any number of links to links.
                for _ in range(_LINKS):
                    if not member.issym():
                        break
                    target = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))
                    member = members.get(target, member)  # noqa: PLW2901  # following it is the point
                if ".." in inside or not (member.isfile() or member.islnk()):
                    continue
                if (file := archive.extractfile(member)) is not None:
                    yield str(PurePosixPath(path).joinpath(*inside)), file.read()


def _fetch(api: Api, identity: str, path: str, spool: SpooledTemporaryFile[bytes]) -> bool:
    """Put the archive of what stands at ``path``, behind links, into ``spool``; False where nothing does."""
    size = 0
    chunks, target = _archive(api, identity, path)
    if chunks is not None and target:
        # The archive of a link is the link. Docker says where it ends, links to links and all, inside the image.
        chunks.close()
        chunks, _ = _archive(api, identity, target)
    if chunks is None:
        return False
    # Closed before anything else is asked: the daemon holds the container until its archive is taken or given up.
    with closing(chunks):
        for chunk in each(chunks, "read a file out of an image"):
            size += len(chunk)
            if size > _MOST:
                raise StepError(
                    f"more than {_MOST // 1024**2} MiB stand there", where=path, hint="read a narrower path out of the image"
                )
            spool.write(chunk)
    return True


def _archive(api: Api, identity: str, path: str) -> tuple[Generator[bytes] | None, str]:
    """The archive of what stands at ``path``, None where nothing does, and where it points to if it is a link."""
    import docker.errors

    with ours("read a file out of an image", path):
        try:
            chunks, found = api.get_archive(identity, path)
        except docker.errors.APIError as error:
            if error.status_code == _MISSING or _NOWHERE.search(str(error.explanation)):
                return None, ""
            raise
    target = found.get("linkTarget")
    return chunks, target if isinstance(target, str) else ""
