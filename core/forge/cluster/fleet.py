"""The port to a cluster: which nodes there are, what they say of themselves, and errands that are sent to them."""

from collections.abc import Sequence
from typing import Protocol

from forge.cluster.census import Facts, Wanted
from forge.cluster.errand import Errand, Report
from forge.cluster.node import Ask, Node


class Fleet(Protocol):
    """A cluster that answers. HostError where it does not."""

    def nodes(self) -> tuple[Node, ...]:
        """Those that are alive and take steps."""
        ...

    def facts(self, nodes: Sequence[Node], wanted: Wanted) -> dict[str, Facts | str]:
        """What each node says of itself, by its id; a text where it says nothing, and why."""
        ...

    def start(self, errand: Errand, ask: Ask, node: Node) -> None:
        """Send an errand. Where another build has sent the same one, it is joined: nothing is made twice."""
        ...

    def hear(self, seconds: float) -> tuple[Report, ...]:
        """What is heard of all errands, waited for so long at most. What has ended is given up."""
        ...

    def halt(self) -> None:
        """End all errands of this build, with all that they started, and wait until that is so."""
        ...
