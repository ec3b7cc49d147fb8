"""The half of Forge that makes steps: on this machine, beside a shared store, or on the machines of a cluster."""

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from msgspec.structs import replace

from forge.api.cluster import RAY, Cluster
from forge.api.integrity import Integrity
from forge.api.outcome import MadeThere
from forge.api.tune import Asked, Prediction, card
from forge.api.wiring import Wiring
from forge.bench.aiconfigurator.environment import ask
from forge.bench.aiconfigurator.proposals import predicted
from forge.build.builder import Builder
from forge.build.resolve import Resolver
from forge.build.scheduler import Allowance
from forge.build.supply import Sharing, Supplier
from forge.cluster.census import Census
from forge.cluster.labels import Labels
from forge.events import Event, Listener
from forge.plan.plan import require
from forge.plan.resolved import Resolved
from forge.plan.steps import Step
from forge.recipe.shipped import located
from forge.remote.signature import Notary
from forge.settings import Settings
from forge.store.store import Store
from forge.verify.verify import Prover


class Maker:
    """What is made in one home folder, and with whom."""

    home: Path
    settings: Settings
    _tell: Listener
    _allowance: Allowance
    _wiring: Wiring
    _resolver: Resolver
    _say: Callable[[str], None]
    _images: Callable[[Sequence[str | Path]], tuple[str, ...]]
    """The images that recipes, or a deployment, stand on."""

    @cached_property
    def store(self) -> Store:
        return Store(self.home / "store", clock=time.time)

    @cached_property
    def integrity(self) -> Integrity:
        """Whether what is kept and published is still what was made."""
        return Integrity(self.store, lambda text: self._tell(Event("note", "server", text=text)))

    @cached_property
    def sharing(self) -> Sharing | None:
        """The store that several machines share, where the settings name one."""
        return self._wiring.sharing(self.settings.remote, self._tell, time.time, self.notary)

    @cached_property
    def notary(self) -> Notary:
        """Signs what is sent or bundled, and says whose signatures count, as the settings have it."""
        return self._wiring.notary(self.settings.remote, self.store)

    @cached_property
    def cluster(self) -> Cluster:
        """The machines that take steps with ``--executor ray``; nobody is asked before they are wanted."""
        return Cluster(self._wiring, self.sharing, self.settings.remote, self._tell, self._make)

    def examine_cluster(self, recipes: Sequence[str | Path] = ()) -> Census:
        """What all machines of the cluster are, and where they differ (``forge cluster check``); ``recipes`` name images."""
        return self.cluster.examine(self._images(recipes))

    def node_labels(self, name: str = "") -> Labels:
        """What this machine says of itself when it joins a cluster (``forge node labels``), by its host name or ``name``."""
        return self.cluster.labels(name, self._allowance.jobs)

    def predict(self, recipe: str | Path, asked: Asked, gpu: str = "") -> Prediction:
        """What AIConfigurator predicts of a recipe on ``gpu``, or the card that is here; nothing is built or measured."""
        resolved = self._resolver.resolve(Path(located(recipe)), runtime=asked.runtime)
        question, note = asked.question(resolved, gpu or card(self._wiring.gpus()))
        answer = ask(question, self._wiring.host(), self.store, self._builder, self._wiring.tools, self._tell)
        return Prediction(question, predicted(answer, question, note, asked.goal, asked.axes, resolved.recipe))

    @property
    def spreads(self) -> bool:
        """Whether steps are made on the machines of a cluster."""
        return self.settings.executor == RAY

    def _who(self, steps: Sequence[Step]) -> tuple[MadeThere, ...]:
        """Which node has made which of ``steps``."""
        nodes = self.cluster.team.nodes if self.spreads else dict[str, str]()
        return tuple(MadeThere(step.name, step.key, nodes[step.key]) for step in steps if step.key in nodes)

    @cached_property
    def _prover(self) -> Prover:
        return Prover(self.home, self.store, self._wiring)

    @cached_property
    def _builder(self) -> Builder:
        return self._maker(self.cluster.team if self.spreads else self.sharing)

    def _make(self, steps: Sequence[Step]) -> None:
        self._maker(None).realise(steps)

    def _maker(self, supplier: Supplier | None) -> Builder:
        tools = replace(self._wiring.tools, prove=self._prover.prove)
        return Builder(self.store, tools, self._tell, self._allowance, supplier)

    def _prepared(self, all_resolved: Sequence[Resolved], *, gpus: bool = True) -> list[Resolved]:
        """The recipes with what their images say of themselves; HostError, before any download, for what is missing here.

        RemoteError where what is made has to be signed and sent, and the key that signs cannot be read.
        Of a cluster's machines that is asked later, of each what its steps want.
        """
        if self.sharing and not self.spreads:  # a cluster's machines sign with keys of their own
            self.sharing.require_signer()
        if contained := [resolved for resolved in all_resolved if resolved.recipe.runtime.contained]:
            require(all_resolved)  # what can be refused without an image is refused before one is pulled
            self._resolver.require(contained, gpus=gpus and not self.spreads)
        return [self._resolver.furnished(resolved, self._builder, self._tell) for resolved in all_resolved]
