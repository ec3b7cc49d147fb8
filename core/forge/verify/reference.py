"""What is asked of a checkpoint, and the port to what can run it: the words of ``transformers_script``."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from forge.recipe.verify_prompts import Message
from forge.verify.transcripts import Reference

NEEDED = ("torch", "transformers")
"""Packages of the Python that runs ``transformers_script.py``."""
SCRIPT = Path(__file__).with_name("transformers_script.py")


class Asked(Struct, frozen=True):
    """One prompt: ``text`` as the pipeline gets it; with ``messages`` the checkpoint templates and encodes those by itself."""

    name: str
    text: str
    messages: tuple[Message, ...] = ()


class Job(Struct, frozen=True):
    """What the reference run reads. Lengths in tokens, 0 for no limit; ``checkpoint`` and ``prompts_digest`` are handed on."""

    checkpoint: str
    prompts_digest: str
    prompts: tuple[Asked, ...]
    max_tokens: int
    max_input_len: int = 0
    max_seq_len: int = 0
    adapter: str = ""
    """The folder of a LoRA adapter, as PEFT saves it, that is merged into the checkpoint before it is asked."""


class Reciter(Protocol):
    """Runs a checkpoint by transformers."""

    def lacks(self) -> str:
        """What is missing here, in a sentence; empty where nothing is."""
        ...

    def recite(self, folder: Path, job: Job, line: Callable[[str], None]) -> Reference:
        """What the checkpoint in ``folder`` says. HostError for what is missing, StepError for a run that failed."""
        ...
