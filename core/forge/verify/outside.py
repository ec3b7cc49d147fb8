"""What verifying asks of the world outside forge; ``forge.api.wiring`` answers for real."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

from forge.build.builder import Tools
from forge.client.types import Client, ModelMetadata
from forge.schema.values import LimitsTable, Ports
from forge.serve.server_types import Server
from forge.verify.interview import Stages
from forge.verify.reference import Reciter


class Outside(Protocol):
    """A server and how its stages are asked, and who speaks for a checkpoint."""

    @cached_property
    def tools(self) -> Tools: ...

    @cached_property
    def server(self) -> Server: ...

    @property
    def patient(self) -> Client:
        """A client to whom an answer that does not end is a failure."""
        ...

    @cached_property
    def stages(self) -> Stages: ...

    def metadata(self, address: str, model: str) -> ModelMetadata:
        """What a served model takes and gives."""
        ...

    def reciter(self, python: str = "") -> Reciter:
        """A Python of this machine that speaks for a checkpoint: forge's own, unless another is named."""
        ...

    def image_reciter(self, image: str, key: str) -> Reciter:
        """The same in a container of the image with this id; ``key`` marks the container."""
        ...

    def free_ports(self) -> Ports:
        """Addresses on the loopback that nobody listens on just now."""
        ...

    def templated(self, tokenizer: Path, messages: Sequence[tuple[str, str]], limits: LimitsTable) -> str:
        """``messages`` in the chat template of a tokenizer's folder, ready to be sent as a prompt."""
        ...

    def template(self, tokenizer: Path) -> str:
        """The chat template in a tokenizer's folder; InferenceError where there is none."""
        ...
