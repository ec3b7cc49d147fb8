"""Models of the hub as ``forge search`` tells of them: which family serves each, and whether its weights have room here."""

from msgspec import Struct

from forge.build.outside import Outside
from forge.build.sources.source import Offer, Searching
from forge.errors import SourceError
from forge.files.safetensors import Tensor
from forge.fit.gpus import find
from forge.plan import families
from forge.schema.values import SourceKind

_REST = 0.9
"""The part of a card, or of this machine's memory, that weights may take: the cache and the runtime want some too."""


class Found(Struct, frozen=True):
    """``weights`` in bytes as they are published, 0 where the hub has not counted them; ``fits`` is then None."""

    name: str
    family: str
    """Empty where no installed family serves it; vLLM, and the twin by transformers, need none."""
    architecture: str
    weights: int
    fits: bool | None
    gated: bool
    downloads: int


class Results(Struct, frozen=True):
    """``place`` is where they were judged for, ``room`` its bytes that are free."""

    found: tuple[Found, ...]
    place: str
    room: int


def search(outside: Outside, word: str, gpu: str, limit: int) -> Results:
    """The hub's models whose name has ``word``, judged for the card of that name, for what is here otherwise."""
    origin = outside.origins[SourceKind.HUB]
    if not isinstance(origin, Searching):
        raise SourceError("this source cannot be looked through", where=str(SourceKind.HUB))
    gpus = (find(gpu),) if gpu else outside.gpus()
    place = max(gpus, key=lambda each: each.available).name if gpus else "this machine's memory"
    room = max(each.available for each in gpus) if gpus else outside.memory()
    among = families.claimed()
    return Results(tuple(_found(each, room, among) for each in origin.search(word, limit)), place, room)


def _found(offer: Offer, room: int, among: families.Points) -> Found:
    weights = sum(Tensor("", kind, (count,)).size for kind, count in offer.tensors.items())
    return Found(
        offer.name,
        next(iter(families.serving(offer.architectures, among)), ""),
        next(iter(offer.architectures), ""),
        weights,
        weights <= room * _REST if weights and room else None,
        offer.gated,
        offer.downloads,
    )
