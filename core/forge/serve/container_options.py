"""A server's container as a value, and its two forms: what the Docker daemon is asked for, and what a person types. Pure."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from msgspec import Struct

from forge.machine.containers import INPUTS
from forge.machine.docker.container_run import CONFINED, MEMLOCK, NO_GPU, OFFLINE, QUIET, STACK, bind, devices
from forge.schema.values import ASSETS, Ports
from forge.serve.server_types import Launch

PUBLISHED = Ports(host="0.0.0.0")  # noqa: S104  # of the container's own network; the port outside stands on the host asked for
"""Where a server listens whose ports are published. Newer bls models ask their own server at localhost:8001."""
LOG = INPUTS / "server.log"
KEY = INPUTS / "server.key"
UNLISTED = INPUTS / "unlisted.py"
REPOSITORY = INPUTS / "repository"
_TO_LOG = f'exec "$@" >>{LOG} 2>&1'
"""A server outlives the forge that started it, so it writes its log itself."""
_ENV = {**QUIET, **OFFLINE, "VLLM_NO_USAGE_STATS": "1"}  # all that it needs is there; vLLM tells its makers what it serves


class Box(Struct, frozen=True):
    """One server's container. Without ``published`` ports it shares the machine's network.

    ``mounts`` are folders of this machine and where each stands inside, read-only.
    """

    name: str
    image: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    mounts: tuple[tuple[Path, PurePosixPath], ...]
    gpus: str
    published: Ports | None
    entrypoint: tuple[str, ...] = ()
    traces: bool = False
    """Its start needs CAP_SYS_PTRACE (see ``forge.machine.unlisted``); what it may trace is in this container alone."""

    @property
    def variables(self) -> dict[str, str]:
        return {**_ENV, **({} if self.gpus else NO_GPU), **self.env}

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(port outside, port inside) of each address that is published."""
        if (out := self.published) is None:
            return ()
        return (out.http, PUBLISHED.http), (out.grpc, PUBLISHED.grpc), (out.metrics, PUBLISHED.metrics)


def places(launch: Launch) -> dict[Path, PurePosixPath]:
    """Where each repository stands inside: a lone one at the place that its config.pbtxt files name, several beside it."""
    if not launch.several:
        return {launch.repository: REPOSITORY}
    numbered = enumerate(launch.repositories, start=1)
    return {repository: REPOSITORY.with_name(f"{REPOSITORY.name}-{number}") for number, repository in numbered}


def lay_view(launch: Launch, view: Path) -> None:
    """Make ``view`` the folder that stands at the constant path of several repositories: a link to each model's own folders.

    Every config.pbtxt names its assets there, whichever repository it stands in, and none is rewritten (docs/decisions/0007).
    The links lead to where the repositories are mounted whole: a folder that is exchanged later is seen exchanged.
    """
    inside = places(launch)
    wanted = {folder: inside[part.repository] / folder for part in launch.several for folder in part.folders}
    (view / ASSETS).mkdir(parents=True, exist_ok=True)
    for link in (*view.iterdir(), *(view / ASSETS).iterdir()):
        if link.is_symlink() and str(link.relative_to(view)) not in wanted:
            link.unlink()
    for folder, target in wanted.items():
        link = view / folder
        if not link.is_symlink():
            link.symlink_to(target)


def configuration(box: Box, log: Path, labels: Mapping[str, str], *, memlock: bool) -> dict[str, object]:
    """The daemon's own form (Engine API, POST /containers/create); the server writes all that it says into ``log``."""
    host = box.published.host if box.published else ""
    return {
        "Image": box.image,
        "Entrypoint": ["/bin/sh", "-c", _TO_LOG, "forge", *box.entrypoint],
        "Cmd": list(box.argv),
        "Env": [f"{name}={value}" for name, value in box.variables.items()],
        "Labels": dict(labels),
        "ExposedPorts": {f"{inside}/tcp": {} for _, inside in box.pairs},
        "HostConfig": {
            "Mounts": [*(bind(path.resolve(), place) for path, place in box.mounts), bind(log.resolve(), LOG, fixed=False)],
            "NetworkMode": "bridge" if box.published else "host",
            "PortBindings": {f"{inside}/tcp": [{"HostIp": host, "HostPort": str(out)}] for out, inside in box.pairs},
            "DeviceRequests": devices(box.gpus),
            "Ulimits": [STACK, MEMLOCK] if memlock else [STACK],
            "RestartPolicy": {"Name": "no"},
            **({"CapAdd": ["SYS_PTRACE"]} if box.traces else {}),
            **CONFINED,
        },
    }


def line(box: Box) -> tuple[str, ...]:
    """The same for a terminal, where it speaks for itself and ends with it."""
    host = f"[{box.published.host}]" if box.published and ":" in box.published.host else box.published and box.published.host
    mounts = [_fields("type=bind", f"source={path.resolve()}", f"target={target}", "readonly") for path, target in box.mounts]
    words = ["docker", "run", "--rm", "--init", "--name", box.name]
    words += [word for out, inside in box.pairs for word in ("--publish", f"{host}:{out}:{inside}")]
    words += [] if box.published else ["--network", "host"]
    words += [word for mount in mounts for word in ("--mount", mount)]
    words += ["--shm-size", "2g", "--ulimit", "memlock=-1", "--ulimit", f"stack={STACK['Hard']}"]
    words += ["--security-opt", "no-new-privileges"]
    if box.gpus:
        words += ["--gpus", "all" if box.gpus == "all" else _fields(f"device={box.gpus}")]
    words += [word for name, value in box.variables.items() for word in ("--env", f"{name}={value}")]
    return (*words, box.image, *box.argv)


def _fields(*fields: str) -> str:
    """Docker reads such options as one row of comma-separated values: a comma inside has the field stand in quotes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(fields)
    return text.getvalue()
