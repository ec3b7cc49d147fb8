"""A cluster of Ray's as a fleet. Ray carries values and events; artifacts go through the shared store.

An errand is an actor of Ray's with the step's key for its name; the build that was there first owns it. A second build of the
same step finds it and listens. Ray ends it with its owner. It asks for the custom resource ``forge`` of its node (steps side
by side) and for one ``forge_gpu_<number>`` for each GPU, so builds that do not know of each other do not crowd a node.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from forge.cluster import worker
from forge.cluster.census import Facts, Wanted
from forge.cluster.equipment import Equip
from forge.cluster.errand import Errand, Lost, Report
from forge.cluster.labels import GPU, SLOTS, WORD
from forge.cluster.node import Ask, Node
from forge.errors import HostError

NAMESPACE = "forge"
_ENDING = 8.0
"""Seconds for all errands to end by themselves; then Ray ends their processes."""
_LOOKING = 60.0
_REST = 1.0


class _Sent(Struct):
    """An errand that is under way: Ray's actor, the pending answer, and what has been heard of it."""

    actor: Any
    errand: Errand
    node: Node
    answer: Any = None
    heard: int = 0
    mine: bool = True
    rests: float = 0.0
    """Until when it is not asked: its node does not answer, and Ray does not know yet whether it ever will."""


class RayFleet:
    """The cluster that this machine is a node of, or that RAY_ADDRESS names."""

    def __init__(self, equip: Equip) -> None:
        """``equip`` gives a node its tools; it travels by its name, so it stands at the top of a module."""
        self._equip = equip
        self._sent: dict[str, _Sent] = {}
        self.owner = uuid4().hex[:12]
        self._ray = _connected()

    def nodes(self) -> tuple[Node, ...]:
        alive = [told for told in self._ray.nodes() if told["Alive"]]
        found = [_node(told) for told in alive if told["Resources"].get(SLOTS, 0) >= 1]
        names = [node.name for node in found]
        return tuple(_apart(node, names) for node in sorted(found, key=lambda node: (node.name, node.id)))

    def facts(self, nodes: Sequence[Node], wanted: Wanted) -> dict[str, Facts | str]:
        look = self._ray.remote(worker.look)
        answers = {node.id: look.options(**_at(node), num_cpus=0, max_retries=0).remote(wanted, self._equip) for node in nodes}
        until = time.monotonic() + _LOOKING
        found: dict[str, Facts | str] = {}
        for node, answer in answers.items():
            try:
                found[node] = self._ray.get(answer, timeout=max(1.0, until - time.monotonic()))
            except self._ray.exceptions.RayError as error:
                found[node] = f"does not answer: {_line(error)}"
        return found

    def start(self, errand: Errand, ask: Ask, node: Node) -> None:
        name = f"{errand.key[:40]}-{blake3(errand.remote.url.encode()).hexdigest()[:8]}"
        resources = {SLOTS: 1.0, **{f"{GPU}{number}": 1.0 for number in node.taken(ask.gpus)}}
        actor = self._ray.remote(worker.Worker).options(
            name=name,
            namespace=NAMESPACE,
            get_if_exists=True,
            resources=resources,
            num_cpus=0,
            max_restarts=0,
            max_concurrency=16,
            **_at(node),
        )
        self._sent[errand.key] = _Sent(actor.remote(errand, self._equip, node.name), errand, node)

    def hear(self, seconds: float) -> tuple[Report, ...]:
        for sent in self._sent.values():
            if sent.answer is None and time.monotonic() >= sent.rests:
                sent.answer = sent.actor.hear.remote(sent.heard, 2.0)
        pending = {sent.answer: sent for sent in self._sent.values() if sent.answer is not None}
        if not pending:
            time.sleep(min(seconds, _REST) if self._sent else 0.0)
            return ()
        self._ray.wait(list(pending), num_returns=1, timeout=seconds)
        ready, _ = self._ray.wait(list(pending), num_returns=len(pending), timeout=0)
        return tuple(self._read(pending[answer]) for answer in ready)

    def halt(self) -> None:
        mine = [sent for sent in self._sent.values() if sent.mine]
        self._sent.clear()
        ends = [sent.actor.halt.remote() for sent in mine]
        with suppress(self._ray.exceptions.RayError, ValueError):  # none at all is a ValueError of Ray's
            self._ray.wait(ends, num_returns=len(ends), timeout=_ENDING)
        for sent in mine:
            self._end(sent)

    def _read(self, sent: _Sent) -> Report:
        key = sent.errand.key
        try:
            said: worker.Heard = self._ray.get(sent.answer)
        except self._ray.exceptions.ActorUnavailableError:  # it may be back; if not, Ray says later that it has died
            sent.answer, sent.rests = None, time.monotonic() + _REST
            return Report(key, sent.node.name, mine=sent.mine)
        except self._ray.exceptions.RayError as error:
            del self._sent[key]
            gone, text = _is_node_gone(error), str(error)
            # The actor before, whose name is not free yet: it went with another node than the one where this was to be made.
            before = "all references to the actor were removed" in text or (gone and sent.node.id not in text)
            return Report(key, sent.node.name, mine=sent.mine and not before, end=Lost(_line(error), node=gone and not before))
        sent.answer, sent.heard, sent.mine = None, said.number, said.owner == sent.errand.owner
        if said.end is not None:
            del self._sent[key]
            if sent.mine:
                self._end(sent)
        return Report(key, said.node, said.events, sent.mine, said.end)

    def _end(self, sent: _Sent) -> None:
        with suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.kill(sent.actor)


def _connected() -> Any:
    """Ray, connected to a cluster that is there; HostError without one. Nothing is started."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise HostError("Ray is not installed here", where="--executor ray", hint="pip install 'triton-forge[ray]'") from error
    if not ray.is_initialized():
        try:
            with _signals():
                ray.init(address="auto", namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            hint = "`ray start` makes one, and joins one (docs/cluster.md); RAY_ADDRESS says which"
            raise HostError(f"there is no Ray cluster here: {_line(error)}", where="--executor ray", hint=hint) from error
    return ray


@contextmanager
def _signals() -> Generator[None]:
    """Ray takes SIGTERM for itself; forge's own answer to it cleans up on all nodes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _at(node: Node) -> dict[str, Any]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=False)}


def _node(told: Mapping[str, Any]) -> Node:
    labels: Mapping[str, str] = {
        name.removeprefix(WORD): value for name, value in told.get("Labels", {}).items() if name.startswith(WORD)
    }
    resources: Mapping[str, float] = told["Resources"]
    memory = labels.get("memory", "")
    return Node(
        id=told["NodeID"],
        name=labels.get("node") or told["NodeManagerHostname"],
        slots=int(resources[SLOTS]),
        sm=frozenset(labels.get("sm", "").split(".")) - {"", "none"},
        docker=labels.get("docker") == "true",
        inside=labels.get("inside", ""),
        gpus=frozenset(name.removeprefix(GPU) for name in resources if name.startswith(GPU)),
        memory=int(memory) if memory.isdigit() else 0,
    )


def _apart(node: Node, names: Sequence[str]) -> Node:
    return node if names.count(node.name) == 1 else replace(node, name=f"{node.name}/{node.id[:6]}")


def _is_node_gone(error: BaseException) -> bool:
    """Whether Ray says that an actor went with its node; its list of nodes learns of that some moments later."""
    text = str(error)
    return "node was terminated" in text or "node has died" in text


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
