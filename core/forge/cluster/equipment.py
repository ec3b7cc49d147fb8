"""What a machine of a cluster works with. A function that gives it travels by its name, and is called there."""

from collections.abc import Callable

from msgspec import Struct

from forge.build.builder import Tools
from forge.events import Listener
from forge.machine.containers import Containers
from forge.machine.machine import Machine
from forge.remote.place import Place
from forge.remote.signature import Notary
from forge.store.store import Store


class Equipment(Struct, frozen=True):
    """A machine's own local store and tools, what opens a shared store, and what is asked of the machine itself.

    ``place`` takes a shared store's address and seconds to wait for an answer. ``containers`` is called when they are asked.
    ``notary`` signs what this machine sends, and says whose signatures count for it.
    """

    store: Store
    tools: Tools
    place: Callable[[str, float], Place]
    machine: Machine
    containers: Callable[[], Containers]
    notary: Notary


Equip = Callable[[Listener], Equipment]
"""Gives the equipment of the machine that it is called on; events go to the listener. A function at the top of a module."""
