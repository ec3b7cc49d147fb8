"""One command in one container: made, attached, started, heard to the end, judged, removed."""

import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import cast

import msgspec
from msgspec import Struct

from forge.diagnoses import Diagnosis
from forge.errors import ForgeError, HostError, StepError
from forge.files.trees import walk
from forge.machine.containers import INPUTS, OUT, ContainerRun, Line, require_plain
from forge.machine.docker import owners
from forge.machine.docker.daemon import Api, Daemon, Raw, each, ours
from forge.machine.interrupt import Halt
from forge.machine.transcript import Transcript

_SHARED_MEMORY = 2 * 1024**3  # bytes of /dev/shm; Docker gives 64 MB, Triton's Python models and NCCL want more
# What NVIDIA's container documentation asks for. The first may be refused to a daemon that may not raise its own limit.
MEMLOCK = {"Name": "memlock", "Soft": -1, "Hard": -1}
STACK = {"Name": "stack", "Soft": 64 * 1024**2, "Hard": 64 * 1024**2}
QUIET = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # without a network, huggingface_hub would try and wait
NO_GPU = {"NVIDIA_VISIBLE_DEVICES": "void"}  # the image says `all`, which NVIDIA's runtime obeys where it is Docker's default


class State(Struct, rename="pascal"):
    """How a container is; by default as one that is gone."""

    running: bool = False
    paused: bool = False
    pid: int = 0
    exit_code: int = 0
    oom_killed: bool = msgspec.field(default=False, name="OOMKilled")


class Inspected(Struct, rename="pascal"):
    """GET /containers/ID/json, as far as forge reads it; ``image`` is the id of the one that it was made of."""

    state: State = msgspec.field(default_factory=State)
    image: str = ""


class Spoken(Struct, frozen=True):
    """A piece of output: its stream (1 standard output, 2 standard error) and the bytes."""

    stream: int
    data: bytes


class Ended(Struct, frozen=True):
    """How a container ended. ``out_of_memory`` is true also when only a child of its program was killed for memory."""

    code: int
    out_of_memory: bool


def configuration(run: ContainerRun, memlock: bool) -> dict[str, object]:
    """The daemon's own form of a run (Engine API, POST /containers/create)."""
    env = QUIET | OFFLINE | ({} if run.gpus else NO_GPU) | dict(run.command.env)
    mounts = [bind(_real(path), INPUTS / name) for name, path in sorted(run.inputs.items())]
    mounts += [bind(_real(path), PurePosixPath(place)) for place, path in sorted(run.overlays.items())]
    mounts.append(bind(_real(run.out), OUT, fixed=False))
    return {
        "Image": run.image,
        # The image's entrypoint stays: NVIDIA's sets up CUDA's forward compatibility and then becomes the command.
        "Cmd": list(run.command.argv),
        "Env": [f"{name}={value}" for name, value in env.items()],
        "Labels": owners.labels(run.key, out=str(_real(run.out))),
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": {
            "Mounts": mounts,
            "NetworkMode": "none",
            "DeviceRequests": devices(run.gpus),
            "Ulimits": [STACK, MEMLOCK] if memlock else [STACK],
            "Memory": run.memory,
            "MemorySwap": run.memory,
            **CONFINED,
        },
    }


CONFINED: Mapping[str, object] = {
    "SecurityOpt": ["no-new-privileges"],
    "ShmSize": _SHARED_MEMORY,
    "Init": True,  # signals reach the program, and its orphans are reaped
    "LogConfig": {"Type": "none", "Config": {}},  # forge keeps the log; Docker would keep it a second time
}


class Runs:
    """Runs commands in containers. ``table`` is what failures are looked up in."""

    def __init__(self, daemon: Daemon, table: Iterable[Diagnosis], halt: Halt | None = None) -> None:
        self._daemon = daemon
        self._table = table
        self._memlock = True
        self._halt = halt or Halt()

    def run(self, run: ContainerRun, line: Line) -> None:
        """Run to the end; StepError or HostError unless an exit code of 0 was read and the promises were kept."""
        require_plain(run)
        with self._daemon.connected() as api, Transcript(run.log, line) as log:
            self.clear(api)
            try:
                ended = self._attended(api, run, log)
            except BaseException:
                # Also on Ctrl-C; what went wrong first is what is told.
                with suppress(ForgeError):
                    self.give_back(api, run.image, run.out)
                raise
            self.give_back(api, run.image, run.out)
            if problem := _verdict(ended, run):
                raise log.failure(problem, self._table)
            log.require_promised(run.command.argv[0], run.out, run.promised, self._table)

    def _attended(self, api: Api, run: ContainerRun, log: Transcript) -> Ended:
        asked = self._memlock  # runs side by side find out each for itself
        name = owners.fresh_name(run.key)
        try:
            with container(api, configuration(run, asked), name) as identity:
                with self._halt.ending(lambda: _end(self._daemon, name)):
                    for spoken in heard(api, identity):
                        log.write(spoken.data, spoken.stream)
                    code = exit_code(api, identity)
                return Ended(code, _out_of_memory(api, identity))
        except HostError as error:
            # Nothing has run when a limit is refused: the same again, and from now on, without the one that may be.
            if asked and "rlimit" in error.what:
                self._memlock = False
                return self._attended(api, run, log)
            # The error holds the daemon's words; where the output up to there lies, only this place knows.
            raise HostError(error.what, where=error.where or str(run.log), hint=error.hint) from error

    def give_back(self, api: Api, image: str, out: Path) -> None:
        """Make what a container's root wrote into ``out`` this process's user's, by a container that does only that."""
        user, group = os.geteuid(), os.getegid()
        if user == 0 or not out.is_dir() or _is_owned(out, user):
            return
        config = {
            "Image": image,
            "Entrypoint": ["chown"],
            # -h: a link itself changes hands, never what it points to.
            "Cmd": ["-R", "-h", f"{user}:{group}", str(OUT)],
            "User": "0:0",
            "Labels": owners.labels("give-back"),
            "AttachStdout": True,
            "AttachStderr": True,
            "HostConfig": {
                "Mounts": [bind(_real(out), OUT, fixed=False)],
                "NetworkMode": "none",
                # Where the daemon maps users, the host's numbers are meant.
                "UsernsMode": "host",
                **CONFINED,
            },
        }
        with container(api, config, owners.fresh_name("give-back")) as identity:
            said = b"".join(spoken.data for spoken in heard(api, identity))
            if exit_code(api, identity):
                raise HostError(
                    f"what the container wrote stays root's: {said.decode(errors='replace').strip()}",
                    where=str(out),
                    hint=f"sudo chown -R {user}:{group} on that folder",
                )

    def reap(self) -> tuple[str, ...]:
        """``clear`` by a connection of its own."""
        with self._daemon.connected() as api:
            return self.clear(api)

    def clear(self, api: Api) -> tuple[str, ...]:
        """Remove what dead forges left, and give back what it wrote; the containers' names."""
        found = owners.orphans(api)
        for name, out in found:
            image = _image(api, name)
            owners.remove(api, name)
            if out and image:
                with suppress(ForgeError):
                    self.give_back(api, image, Path(out))
        return tuple(name for name, _ in found)


@contextmanager
def container(api: Api, config: Mapping[str, object], name: str) -> Generator[str]:
    """A container that is gone afterwards, whatever happens in between; its id. Not started yet."""
    try:
        with ours("make a container"):
            identity = api.create_container_from_config(config, name)["Id"]
        yield identity
    finally:
        # By name: on Ctrl-C the daemon may have made it and the answer not have come. What cannot be removed now (the daemon
        # is gone) the next run's reaping finds.
        with suppress(ForgeError):
            owners.remove(api, name)


def _end(daemon: Daemon, name: str) -> None:
    # A container that ended by itself in this moment is no longer there to kill.
    with suppress(ForgeError), daemon.connected() as api, ours("stop a container"):
        api.kill(name)


def heard(api: Api, identity: str) -> Iterator[Spoken]:
    """Start a container and yield all that it says. Attached first: what is said before the attachment would be lost."""
    with ours("attach to a container"):
        stream = api.attach(identity, stream=True, demux=True)
    try:
        with ours("start a container"):
            api.start(identity)
        for out, error in each(iter(stream), "stream a container's output"):
            if out:
                yield Spoken(1, out)
            if error:
                yield Spoken(2, error)
    finally:
        stream.close()
        # The SDK's close leaves the file over the socket open, and with it the descriptor.
        cast("Raw", vars(stream)["_response"]).close()


def exit_code(api: Api, identity: str) -> int:
    """The exit code, waited for. A container's output ends as if all were well also when the daemon dies: only this tells."""
    with ours("say how the container ended"):
        code = api.wait(identity)["StatusCode"]
    if not isinstance(code, int):
        raise HostError("Docker named no exit code", where=identity, hint="look at the daemon's log, then build again")
    return code


def _out_of_memory(api: Api, identity: str) -> bool:
    with ours("say how the container ended"):
        return msgspec.convert(api.inspect_container(identity), Inspected).state.oom_killed


def _verdict(ended: Ended, run: ContainerRun) -> str:
    """What went wrong, or nothing."""
    what, limit = "", f" ({run.memory / 1e9:.1f} GB)" if run.memory else ""
    match ended:
        case Ended(code=0):
            pass
        case Ended(code=137, out_of_memory=True):
            what = f"was killed: the memory it may use{limit} ran out"
        case Ended(code=code, out_of_memory=True):
            what = f"exited with {code} after the memory it may use{limit} ran out and a process of it was killed"
        case Ended(code=137):
            what = "was killed (exit code 137), by somebody or by the kernel when the machine's memory ran out"
        case Ended(code=126 | 127 as code):
            what = f"cannot be run in the image (exit code {code})"
        case Ended(code=code):
            what = f"exited with {code}"
    return what and f"{run.command.argv[0]} {what}"


def bind(source: Path, target: PurePosixPath, *, fixed: bool = True) -> dict[str, object]:
    """A file or folder of this machine at a place inside; what is ``fixed`` is read-only there."""
    return {"Type": "bind", "Source": str(source), "Target": str(target), "ReadOnly": fixed}


def devices(gpus: str) -> list[dict[str, object]]:
    if not gpus:
        return []
    which: dict[str, object] = {"Count": -1} if gpus == "all" else {"DeviceIDs": gpus.split(",")}
    return [{"Driver": "", "Capabilities": [["gpu"]], **which}]


def _real(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except OSError as error:
        raise StepError(
            f"it is not there to be mounted ({error.strerror})",
            where=str(path),
            hint="build again: what is missing is made again",
        ) from error


def _image(api: Api, name: str) -> str:
    with suppress(ForgeError), ours("look at a container", name):
        return msgspec.convert(api.inspect_container(name), Inspected).image
    return ""


def _is_owned(out: Path, user: int) -> bool:
    try:
        return all(found.status.st_uid == user for found in walk(out))
    except PermissionError:  # a folder that only root may read
        return False
