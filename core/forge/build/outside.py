"""What resolving and planning ask of the world outside forge; ``forge.api.wiring`` answers for real."""

from collections.abc import Mapping
from functools import cached_property
from typing import Protocol

from forge.build.sources.source import Origin
from forge.machine.containers import Answers, Containers, Inside
from forge.machine.machine import Machine
from forge.schema.values import Environment, Gpu, Host, SourceKind
from forge.schema.wheels import Hashes


class Outside(Protocol):
    """Where checkpoints come from, and what this machine and its container engine are."""

    @cached_property
    def origins(self) -> Mapping[SourceKind, Origin]: ...

    @cached_property
    def machine(self) -> Machine: ...

    @cached_property
    def containers(self) -> Containers: ...

    @cached_property
    def answers(self) -> Answers:
        """What images have said of themselves."""
        ...

    @cached_property
    def here(self) -> Inside:
        """This environment, for who runs forge inside NVIDIA's container."""
        ...

    def host(self) -> Host: ...

    def package_hashes(self, environment: Environment) -> Hashes:
        """Exact pin -> sha256 of what would be installed here, by the package index; SourceError where it does not say."""
        ...

    def gpus(self) -> tuple[Gpu, ...]:
        """What is here for engines, with what is free of it now."""
        ...

    def memory(self) -> int:
        """Bytes of this machine's own memory that are free now."""
        ...
