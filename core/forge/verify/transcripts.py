"""What a checkpoint says by itself: ids, greedy tokens and log-probabilities of each prompt. A golden file holds the same."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from forge.errors import ForgeError
from forge.files import texts

FORMAT = 1


class Transcript(Struct, frozen=True, kw_only=True):
    """One prompt as transformers answers it greedily. Log-probabilities are natural logarithms."""

    name: str
    prompt: str
    """The text that a client of the pipeline sends; of messages, what forge makes of them with the model's chat template."""
    ids: tuple[int, ...]
    """The prompt's tokens: AutoTokenizer's of the text, apply_chat_template's of messages."""
    tokens: tuple[int, ...]
    """The likeliest token each time, up to an end token (left out) or the most that was asked for."""
    log_probs: tuple[float, ...]
    rivals: tuple[tuple[tuple[int, float], ...], ...]
    """For each token of the answer, and for the end token that follows: the likeliest tokens there, best first."""
    text: str
    """The answer's tokens decoded together, without special tokens."""
    lengths: tuple[int, ...]
    """Characters of that text that the first 1, 2, ... tokens make."""

    def token_at(self, character: int) -> int:
        """Which token of the answer the character at this place belongs to."""
        return next((index for index, length in enumerate(self.lengths) if length > character), len(self.lengths))

    def gap(self, position: int) -> float | None:
        """How much likelier the answer's token is there than the next one, in nats; None where nobody looked."""
        if position >= len(self.rivals) or len(self.rivals[position]) < 2:
            return None
        first, second = self.rivals[position][:2]
        return first[1] - second[1]


class Reference(Struct, frozen=True, kw_only=True):
    """What the checkpoint says to all prompts, and who found it out."""

    format: int = FORMAT
    by: str
    """Versions and precision: ``transformers 5.1.0, torch 2.13.0, float32``."""
    checkpoint: str
    """Key of the artifact that was read."""
    prompts: str
    """Digest of the prompts (forge.recipe.verify_prompts.digest)."""
    max_tokens: int
    begin: int | None = None
    """The id of the token that begins a text, where the tokenizer has one."""
    ends: tuple[int, ...] = ()
    """Ids that end an answer."""
    pad: int | None = None
    template: str = ""
    """SHA-256 (hex) of the checkpoint's chat template, blanks around it left out; empty where no prompt wanted one."""
    transcripts: tuple[Transcript, ...] = ()
    skipped: dict[str, str] = {}
    """Prompts that were not asked, and why."""

    def fits(self, checkpoint: str, prompts: str, max_tokens: int) -> bool:
        """Whether it answers the same question about the same checkpoint."""
        return (self.checkpoint, self.prompts, self.max_tokens) == (checkpoint, prompts, max_tokens)

    def until_end(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """``tokens`` up to the first that ends an answer."""
        ended = next((place for place, token in enumerate(tokens) if token in self.ends), len(tokens))
        return tuple(tokens[:ended])


def read(text: str | bytes, where: str) -> Reference:
    """The transcripts in a golden file or of a reference run; ForgeError where it is damaged or of another format."""
    hint = "`forge verify --update` writes them"
    found = texts.parsed(lambda: msgspec.json.decode(text, type=Reference), ForgeError, "a golden file", where, hint=hint)
    if found.format != FORMAT:
        raise ForgeError(f"these transcripts have format {found.format}, and this forge reads {FORMAT}", where=where)
    return found


def written(reference: Reference) -> str:
    """As a golden file holds it: one line a field, so that a diff shows what moved."""
    return msgspec.json.format(msgspec.json.encode(reference, order="deterministic"), indent=1).decode() + "\n"
