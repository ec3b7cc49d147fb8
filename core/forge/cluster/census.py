"""What a node says of itself, and where nodes differ: what has to be the same for one plan, and what a person should know."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from blake3 import blake3
from msgspec import Struct, field

import forge
from forge.cluster.equipment import Equipment
from forge.cluster.node import Node
from forge.errors import ForgeError
from forge.machine.containers import Containers, ImageFacts
from forge.plan import families
from forge.remote.place import Place
from forge.settings import RemoteTable

PROBE = b"forge: a shared store that can be written"
_CODE = (".py", ".toml", ".json", ".txt", ".jsonl", ".Dockerfile")


class Wanted(Struct, frozen=True):
    """What nodes are asked for: the shared store that they have to write, folders that they may see, images they may hold.

    ``keys`` are those of results that may lie in their own stores.
    """

    remote: RemoteTable
    folders: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """All that may be there or not."""
        return frozenset((*self.folders, *self.images, *self.keys))


class Facts(Struct, frozen=True):
    """One machine. ``forge`` and ``plugins`` are digests of code; ``free`` bytes of disk below its local store.

    ``images`` are identities by reference, empty for one that it does not hold; ``held`` bytes of images by their identity, and
    of results by their key. ``store`` is why the shared store cannot be used from there; ``clock`` seconds since 1970.
    """

    forge: str
    plugins: Mapping[str, str]
    python: str
    driver: str
    free: int
    home: str
    folders: frozenset[str] = frozenset()
    images: Mapping[str, str] = field(default_factory=dict[str, str])
    store: str = ""
    clock: float = 0.0
    held: Mapping[str, int] = field(default_factory=dict[str, int])


class Census(Struct, frozen=True):
    """All machines of a cluster: what each says of itself, by its id, and where they differ."""

    nodes: tuple[Node, ...]
    facts: Mapping[str, Facts | str]
    differences: tuple["Difference", ...]

    @property
    def stops(self) -> bool:
        """Whether a build would refuse them."""
        return any(each.stops for each in self.differences)


class Difference(Struct, frozen=True):
    """Something that is not the same everywhere. ``stops`` says that a build refuses it."""

    node: str
    what: str
    stops: bool


def facts(wanted: Wanted, equipment: Equipment) -> Facts:
    """What this machine is."""
    store, machine = equipment.store, equipment.machine
    containers = equipment.containers() if wanted.images else None
    images = {image: _inspected(containers, image) for image in wanted.images} if containers else {}
    results = ((key, store.find(key)) for key in wanted.keys)
    return Facts(
        forge=digest(Path(forge.__file__).parent),
        plugins=dict(_plugins()),
        python=platform.python_version(),
        driver=machine.driver(),
        free=machine.disk(store.root).free,
        home=str(store.root.parent),
        folders=frozenset(folder for folder in wanted.folders if Path(folder).exists()),
        images={image: held.identity if held else "" for image, held in images.items()},
        store=_unusable(lambda: equipment.place(wanted.remote.url, wanted.remote.deadline)),
        clock=time.time(),
        held={held.identity: held.size for held in images.values() if held} | {key: held.size for key, held in results if held},
    )


def digest(place: Path) -> str:
    """One digest over a file of code, or a package's: names and bytes."""
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.suffix in _CODE)
    files = [file for file in files if file.parent != place / "recipes"]  # a wheel's copy of what a clone has elsewhere
    parts = (f"{file.relative_to(place.parent)}\0{blake3(file.read_bytes()).hexdigest()}\n" for file in files)
    return blake3("".join(parts).encode()).hexdigest()[:16]


def differences(here: Facts, nodes: Mapping[str, Facts | str], images: Sequence[str] = ()) -> tuple[Difference, ...]:
    """What is not as it is here, node by node; of ``images`` what is not as on most."""
    return tuple(found for name, told in sorted(nodes.items()) for found in _against(here, name, told, nodes, images))


def _against(
    here: Facts, name: str, told: Facts | str, nodes: Mapping[str, Facts | str], images: Sequence[str]
) -> Iterator[Difference]:
    if isinstance(told, str):
        yield Difference(name, told, stops=True)
        return
    code = {"forge": (told.forge, here.forge)}
    code |= {
        plugin: (told.plugins.get(plugin, "none"), here.plugins.get(plugin, "none"))
        for plugin in {*told.plugins, *here.plugins}
    }
    for what, (there, mine) in sorted(code.items()):
        if there != mine:
            yield Difference(name, f"has another {what}: {there}, here {mine}", stops=True)
    if told.python.rpartition(".")[0] != here.python.rpartition(".")[0]:
        yield Difference(name, f"has Python {told.python}, here {here.python}", stops=True)
    if told.store:
        yield Difference(name, f"cannot use the shared store: {told.store}", stops=True)
    others = [each for each in nodes.values() if isinstance(each, Facts)]
    drivers = {each.driver for each in others if each.driver}
    if told.driver and len(drivers) > 1:
        yield Difference(name, f"has NVIDIA's driver {told.driver}; the cluster has {', '.join(sorted(drivers))}", stops=False)
    for image in images:
        known = {each.images.get(image, "") for each in others} - {""}
        if not told.images.get(image):
            yield Difference(name, f"does not hold {image}: it is pulled when a step wants it", stops=False)
        elif len(known) > 1:
            yield Difference(name, f"holds {image} as {told.images[image][:19]}, and others as another", stops=False)


def _plugins() -> Iterator[tuple[str, str]]:
    for module in families.modules():
        spec = find_spec(module)
        place = next(iter(spec.submodule_search_locations or ()), spec.origin) if spec else None
        yield module, digest(Path(place)) if place else "none"


def _inspected(containers: Containers, image: str) -> ImageFacts | None:
    try:
        return containers.inspect(image)
    except ForgeError:
        return None


def _unusable(opened: Callable[[], Place]) -> str:
    """Why nothing can be put there; the blob that tries it names nothing, and goes with the next `forge cache gc --remote`."""
    try:
        place = opened()
        blob = place.address(PROBE, "")
        if not place.has(blob):
            place.put(blob, PROBE)
    except ForgeError as error:
        return error.what
    return ""
