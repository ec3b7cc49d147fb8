"""What verifying asks of the world outside forge; ``forge.api.wiring`` answers for real."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

from forge.build.builder import Tools
from forge.client.chat_template import Turn
from forge.client.types import Client, ModelMetadata
from forge.schema.values import LimitsTable
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

    @cached_property
    def templated(self) -> Callable[[Path, Sequence[Turn], LimitsTable], str]:
        """Messages in the chat template of a tokenizer's folder, ready to be sent as a prompt."""
        ...
