"""The models that are offered, as the repositories' manifests say at the moment: a build on one that is served is seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forge import manifest, publishing
from forge.adapters.chat import ChatTemplate, Message
from forge.adapters.tokens import TokenizerFolder
from forge.asking import Target
from forge.errors import ForgeError
from forge.model import LimitsTable
from forge.openai.faults import Fault, unknown_model

_Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Offer:
    """One model that is offered; ``published`` in seconds since 1970."""

    target: Target
    published: int

    @property
    def key(self) -> str:
        """Another one when it was built anew."""
        return self.target.model.entry

    @property
    def limits(self) -> LimitsTable:
        """What its recipe lets one request ask."""
        return self.target.model.limits


class Offers:
    """The models of ``repositories``, all behind one server at ``address``."""

    def __init__(self, address: str, repositories: Sequence[Path]) -> None:
        self._address = address
        self._repositories = repositories
        self._stamps: tuple[_Stamp, ...] = ()
        self._held: dict[str, Offer] = {}
        self._templates: dict[str, ChatTemplate] = {}
        self._tokenizers: dict[str, TokenizerFolder] = {}

    def all(self) -> dict[str, Offer]:
        """By name."""
        stamps = tuple(_stamp(place / manifest.NAME) for place in self._repositories)
        if stamps != self._stamps:
            self._held = {
                model.name: Offer(Target(self._address, model, place), stamp[0] // 10**9)
                for place, stamp in zip(self._repositories, stamps, strict=True)
                for model in publishing.inventory(place).models
            }
            keys = {offer.key for offer in self._held.values()}
            self._templates = {key: held for key, held in self._templates.items() if key in keys}
            self._tokenizers = {key: held for key, held in self._tokenizers.items() if key in keys}
            self._stamps = stamps
        return self._held

    def find(self, name: str) -> Offer:
        """Fault where it is not offered."""
        offered = self.all()
        if name not in offered:
            raise unknown_model(name, tuple(offered))
        return offered[name]

    def templated(self, offer: Offer, conversation: Sequence[Message]) -> str:
        """``conversation`` in the model's chat template; Fault where it has none, or it refuses them."""
        try:
            if offer.key not in self._templates:
                self._templates[offer.key] = ChatTemplate.of(offer.target.tokenizer)
            return self._templates[offer.key].prompt(conversation)
        except ForgeError as error:
            raise Fault(400, f"{error.what} ({error.hint})", param="messages") from error

    def count(self, offer: Offer, text: str, *, prompt: bool) -> int:
        """Tokens of ``text`` by the model's tokenizer; 0 where it has none that can be read here."""
        held = self._tokenizers.setdefault(offer.key, TokenizerFolder(offer.target.tokenizer))
        if held.missing:
            return 0
        return held.count(text) if prompt else held.spoken(text)


def _stamp(file: Path) -> _Stamp:
    """Changes whenever the file does: it is replaced, never written in place."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_ino, found.st_size
