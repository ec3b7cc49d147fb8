"""What measuring asks of the world outside forge; ``forge.api.wiring`` answers for real."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Protocol

from forge.bench.driver import Driver
from forge.bench.readings import Instruments
from forge.bench.workload import Tokenizer
from forge.client.chat_template import Turn
from forge.client.types import ModelMetadata
from forge.machine.machine import Machine
from forge.schema.values import Host, LimitsTable, Ports


class Outside(Protocol):
    """What puts load on a server, what looks at it meanwhile, and the machine that both run on."""

    @cached_property
    def machine(self) -> Machine: ...

    def host(self) -> Host: ...

    def load_loop(self, clock: Callable[[], float]) -> Driver:
        """The driver that forge brings."""
        ...

    def aiperf(self, python: Path, hold: Callable[[], AbstractContextManager[None]], say: Callable[[str], None]) -> Driver:
        """NVIDIA's tool as a driver, in the environment of ``python``, which ``hold`` keeps."""
        ...

    def instruments(self, ports: Ports) -> Instruments:
        """What looks at a server while it is under load."""
        ...

    def tokens(self, folder: Path) -> Tokenizer:
        """The tokenizer of a model, for counting."""
        ...

    @cached_property
    def templated(self) -> Callable[[Path, Sequence[Turn], LimitsTable], str]:
        """Messages in the chat template of a tokenizer's folder, ready to be sent as a prompt."""
        ...

    def metadata(self, address: str, model: str) -> ModelMetadata:
        """What a served model takes and gives."""
        ...
