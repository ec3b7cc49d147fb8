"""The machines that steps are spread over: `--executor ray`, `forge cluster check` and `forge node labels`."""

import platform
from collections.abc import Callable, Sequence
from functools import cached_property

from msgspec import Struct

from forge.api.wiring import Wiring
from forge.build.supply import Sharing
from forge.cluster.census import Census, Facts, Wanted, differences, facts
from forge.cluster.labels import Described, Labels, labels
from forge.cluster.team import Team
from forge.errors import HostError
from forge.events import Listener
from forge.machine.probe import processor
from forge.plan.steps import Step
from forge.settings import RemoteTable
from forge.trtllm.image_table import releases

RAY = "ray"


class Cluster(Struct, dict=True):
    """One cluster as this home sees it. ``sharing`` is what its machines exchange through, as ``said``."""

    wiring: Wiring
    sharing: Sharing | None
    said: RemoteTable
    tell: Listener
    here: Callable[[Sequence[Step]], object]

    @cached_property
    def team(self) -> Team:
        """What has steps made; HostError where there is nothing to exchange through."""
        if self.sharing is None:
            what = "the machines of a cluster exchange what they make through a shared store, and none is named"
            hint = "[remote] url and access in the config file, or FORGE_REMOTE_URL and FORGE_REMOTE_ACCESS (docs/remote.md)"
            raise HostError(what, where="--executor ray", hint=hint)
        if not self.sharing.writes:
            what = f"the shared store {self.said.url} is read-only here, and a cluster's machines exchange through it"
            hint = '[remote] access = "read-write" in the config file, or FORGE_REMOTE_ACCESS=read-write'
            raise HostError(what, where="--executor ray", hint=hint)
        wiring, halt = self.wiring, self.wiring.tools.halt

        def mine(wanted: Wanted) -> Facts:
            return facts(wanted, wiring.equipment(self.said))

        return Team(self.sharing, self.said, wiring.fleet, mine, self.here, self.tell, halt)

    def examine(self, images: Sequence[str]) -> Census:
        """What all machines are; nothing is refused."""
        team, wanted = self.team, Wanted(self.said, images=tuple(images))
        nodes = team.fleet().nodes()
        told = team.fleet().facts(nodes, wanted)
        here = team.mine(Wanted(self.said))
        return Census(nodes, told, differences(here, {node.name: told[node.id] for node in nodes}, images))

    def labels(self, name: str, slots: int) -> Labels:
        """What this machine says of itself when it joins, with so many steps side by side."""
        machine, here = self.wiring.machine, self.wiring.here
        cards = machine.gpus()
        try:
            docker = not self.wiring.containers.check(gpus=bool(cards))
        except HostError:
            docker = False
        references = {each.tag: each.reference for each in reversed(releases())} if docker else {}
        described = Described(
            name=name or platform.node(),
            architectures=frozenset(f"sm_{card.capability.replace('.', '')}" for card in cards if card.capability),
            gpus=len(cards),
            memory=processor()[2],
            slots=slots,
            docker=docker,
            inside=here.toolchain().identity if here.present() else "",
            images=tuple(tag for tag, reference in references.items() if self.wiring.containers.inspect(reference)),
        )
        return labels(described)

    def architectures(self) -> frozenset[str]:
        """The GPUs of all nodes, as ``sm_90``."""
        return frozenset(sm for node in self.team.fleet().nodes() for sm in node.sm)
