"""What a machine says of itself when it joins a cluster: Ray's labels and resources, and the command that states them. Pure."""

import json
import re
import shlex
from collections.abc import Mapping

from msgspec import Struct

from forge.cluster.node import mark

SLOTS = "forge"
"""The resource of which each step takes one: how many a node makes side by side."""
GPU = "forge_gpu_"
"""A resource for each GPU, with its number behind."""
WORD = "forge."
"""What forge's labels begin with."""
_LONGEST = 63
"""Characters of a label's value that Ray takes."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "1",
    "RAY_preload_python_modules": "forge.api.wiring,forge.cluster.worker,obstore",
}
"""What `ray start` is told: Ray keeps processes ready, and these have imported what a step takes before there is one."""
READY = 4
"""Processes that are kept ready for each step side by side: Ray keeps as many as it thinks that there are cores."""
_LABEL = re.compile(r"[^A-Za-z0-9_.-]")


class Labels(Struct, frozen=True):
    """One machine. ``labels`` without their beginning ``forge.``; an architecture is ``sm_90``, several have dots between."""

    labels: Mapping[str, str]
    resources: Mapping[str, int]

    @property
    def words(self) -> tuple[str, ...]:
        """Options of `ray start`."""
        told = ",".join(f"{WORD}{name}={value}" for name, value in self.labels.items())
        return f"--labels={told}", f"--resources={json.dumps(dict(self.resources))}"

    def command(self, head: str = "") -> str:
        """What a person types on this machine; ``head`` is the address of the first one, empty for that one itself."""
        where = f"--address={head}" if head else "--head"
        variables = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
        return f"{variables} ray start {where} --num-cpus={READY * self.resources[SLOTS]} {shlex.join(self.words)}"


class Described(Struct, frozen=True):
    """A machine as it joins: ``gpus`` is how many it has, ``memory`` in bytes, ``slots`` the steps that it makes at once.

    ``inside`` is the identity of the TensorRT-LLM that forge runs in; empty elsewhere. ``images`` are tags of those of NVIDIA's
    that it holds, the newest first.
    """

    name: str
    architectures: frozenset[str]
    gpus: int
    memory: int
    slots: int
    docker: bool
    inside: str = ""
    images: tuple[str, ...] = ()


def labels(machine: Described) -> Labels:
    """What is said of a machine when it joins."""
    told = {"node": _LABEL.sub("-", machine.name)[:_LONGEST].strip("-_.") or "node"}
    if machine.architectures:
        told["sm"] = ".".join(sorted(machine.architectures))
    told |= {"docker": "true" if machine.docker else "false", "memory": str(machine.memory)}
    if machine.inside:
        told["inside"] = mark(machine.inside)
    if machine.images:
        told["images"] = f"{'_'.join(machine.images)}_"[: _LONGEST + 1].rpartition("_")[0]
    return Labels(told, {SLOTS: machine.slots, **{f"{GPU}{number}": 1 for number in range(machine.gpus)}})
