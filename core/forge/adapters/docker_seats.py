"""A server's container as a value, and its two forms: what the Docker daemon is asked for, and what a person types. Pure."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from forge.adapters.docker_runs import CONFINED, devices
from forge.containers import INPUTS
from forge.ports import Ports

PUBLISHED = Ports(host="0.0.0.0")  # noqa: S104  # of the container's own network; the port outside stands on the host asked for
"""Where a server listens whose ports are published. Newer bls models ask their own server at localhost:8001."""
LOG = INPUTS / "server.log"
REPOSITORY = INPUTS / "repository"
_TO_LOG = f'exec "$@" >>{LOG} 2>&1'
"""A server outlives the forge that started it, so it writes its log itself."""
_ENV = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",  # the repository is read-only
    "HF_HUB_OFFLINE": "1",  # all that it needs stands in the repository
}
_NO_GPU = {"NVIDIA_VISIBLE_DEVICES": "void"}  # the image says `all`, which NVIDIA's runtime obeys where it is Docker's default
_STACK = 64 * 1024**2  # bytes, as NVIDIA's container documentation asks


@dataclass(frozen=True, slots=True)
class Box:
    """One server's container. Without ``published`` ports it shares the machine's network."""

    name: str
    image: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    repository: Path
    gpus: str
    published: Ports | None
    entrypoint: tuple[str, ...] = ()

    @property
    def variables(self) -> dict[str, str]:
        return {**_ENV, **({} if self.gpus else _NO_GPU), **self.env}

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(port outside, port inside) of each address that is published."""
        if (out := self.published) is None:
            return ()
        return (out.http, PUBLISHED.http), (out.grpc, PUBLISHED.grpc), (out.metrics, PUBLISHED.metrics)


def configuration(box: Box, log: Path, labels: Mapping[str, str], *, memlock: bool) -> dict[str, object]:
    """The daemon's own form (Engine API, POST /containers/create); the server writes all that it says into ``log``."""
    host = box.published.host if box.published else ""
    limits = {"stack": _STACK, **({"memlock": -1} if memlock else {})}
    return {
        "Image": box.image,
        "Entrypoint": ["/bin/sh", "-c", _TO_LOG, "forge", *box.entrypoint],
        "Cmd": list(box.argv),
        "Env": [f"{name}={value}" for name, value in box.variables.items()],
        "Labels": dict(labels),
        "ExposedPorts": {f"{inside}/tcp": {} for _, inside in box.pairs},
        "HostConfig": {
            "Mounts": [
                {"Type": "bind", "Source": str(box.repository.resolve()), "Target": str(REPOSITORY), "ReadOnly": True},
                {"Type": "bind", "Source": str(log.resolve()), "Target": str(LOG), "ReadOnly": False},
            ],
            "NetworkMode": "bridge" if box.published else "host",
            "PortBindings": {f"{inside}/tcp": [{"HostIp": host, "HostPort": str(out)}] for out, inside in box.pairs},
            "DeviceRequests": devices(box.gpus),
            "Ulimits": [{"Name": name, "Soft": most, "Hard": most} for name, most in limits.items()],
            "RestartPolicy": {"Name": "no"},
            **CONFINED,
        },
    }


def line(box: Box) -> tuple[str, ...]:
    """The same for a terminal, where it speaks for itself and ends with it."""
    host = f"[{box.published.host}]" if box.published and ":" in box.published.host else box.published and box.published.host
    mount = _fields("type=bind", f"source={box.repository.resolve()}", f"target={REPOSITORY}", "readonly")
    words = ["docker", "run", "--rm", "--init", "--name", box.name]
    words += [word for out, inside in box.pairs for word in ("--publish", f"{host}:{out}:{inside}")]
    words += [] if box.published else ["--network", "host"]
    words += ["--mount", mount, "--shm-size", "2g", "--ulimit", "memlock=-1", "--ulimit", f"stack={_STACK}"]
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
