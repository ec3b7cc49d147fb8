"""Who made an artifact, when, from what, and where it is: here, in a shared store, or in both."""

from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct

from forge.errors import StoreError
from forge.files import texts
from forge.remote.place import RemoteError
from forge.remote.record import ORIGIN, Origin
from forge.remote.shared import Held, Shared
from forge.remote.signature import Notary
from forge.store.artifact import Artifact
from forge.store.store import Store

_LEAST = 4


class Need(Struct, frozen=True):
    """Something that an artifact was made from; ``where`` is local, remote, both or nowhere."""

    key: str
    step: str
    where: str


class Explanation(Struct, frozen=True):
    """All that is known. ``by`` is empty for what this machine has made itself, ``local`` (a folder) for what is not here.

    ``remote`` is a sentence: the shared store's address, no, or why that is not known. Times are in seconds.
    """

    key: str
    step: str
    action: str
    size: int
    made_at: float
    seconds: float
    by: str
    local: str
    remote: str
    signed: str
    """Whose signature it has, in words: of what is here where that came with one, else of what is there."""
    inputs: Mapping[str, str]
    needs: Mapping[str, Need]
    attestation: str = ""
    """That signature: a DSSE envelope, as JSON."""


def meant(beginning: str, keys: Iterable[str], what: str, listing: str) -> str:
    """The one key that begins so; StoreError with ``what`` and the verb that lists them where there is none, or several."""
    found = sorted(key for key in keys if key.startswith(beginning)) if len(beginning) >= _LEAST else []
    if len(found) == 1:
        return found[0]
    if found:
        raise StoreError(f"{len(found)} keys begin so", where=beginning, hint="more of it tells which is meant")
    raise StoreError(what, where=beginning, hint=f"`{listing}` shows keys; their first {_LEAST} characters or more do")


def explained(beginning: str, store: Store, shared: Shared | None, notary: Notary) -> Explanation:
    """What is known of the artifact whose key begins so; StoreError where it is neither here nor there."""
    here = {one.key: one for one in store.artifacts()}
    there, unknown = _keys(shared)
    what = (
        f"no artifact here has this key, and the other store is not seen: {unknown}" if unknown else "no artifact has this key"
    )
    listing = "forge cache ls --remote" if shared else "forge cache ls"
    key = meant(beginning, here.keys() | there, what, listing)
    held = here.get(key)
    away = shared.known(key) if shared and key in there else None
    manifest = held.manifest if held else away.manifest if away else None
    if manifest is None:
        raise StoreError(f"its record is damaged: {away.problem if away else 'unreadable'}", where=key)
    made = manifest.provenance
    needs = {name: _need(need, here, there, shared) for name, need in made.needs.items()}
    attestation, signed = _signature(held, away, notary)
    remote = unknown or (f"{shared.name}, sent by {away.by}" if shared and away and away.by else "no")
    return Explanation(
        key,
        made.step,
        made.action,
        manifest.size,
        manifest.made_at,
        manifest.seconds,
        _maker(held, away),
        str(held.path) if held else "",
        remote if shared else "no shared store is named",
        signed,
        made.inputs,
        needs,
        attestation,
    )


def _signature(held: Artifact | None, away: Held | None, notary: Notary) -> tuple[str, str]:
    """The signature of what is here, or else of what is there, and whose it is."""
    here = notary.of_held(held) if held else ("", "no")
    told = away.record if away else None
    if here[0] or told is None:
        return here
    return told.attestation, notary.whose(told.attestation, (told.manifest, told.listing))


def _keys(shared: Shared | None) -> tuple[frozenset[str], str]:
    """What stands in the shared store, or why that is not known."""
    if shared is None:
        return frozenset(), ""
    try:
        return frozenset(one.key for one in shared.written()), ""
    except RemoteError as error:
        return frozenset(), error.what


def _maker(held: Artifact | None, away: Held | None) -> str:
    """Who made what is here: whoever sent it, where it was taken; empty for this machine."""
    if held is None:
        return str(away.by) if away and away.by else ""
    text = texts.there(held.path.parent / ORIGIN, StoreError, "where an artifact is from")
    if text is None:
        return ""
    try:
        return str(msgspec.json.decode(text, type=Origin).by)
    except msgspec.MsgspecError:
        return "another machine (its note is damaged)"


def _need(key: str, here: Mapping[str, Artifact], there: frozenset[str], shared: Shared | None) -> Need:
    places = [name for name, is_there in (("local", key in here), ("remote", key in there)) if is_there]
    step = here[key].manifest.provenance.step if key in here else ""
    if not step and shared and key in there and (known := shared.known(key)) and known.manifest:
        step = known.manifest.provenance.step
    return Need(key, step, " and ".join(places) or "nowhere")
