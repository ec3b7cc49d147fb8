"""The process that Ray starts for one errand: it makes the step, keeps what is said, and tells whoever asks."""

import os
import subprocess
import threading
from collections import deque
from pathlib import Path

from msgspec import Struct

import forge
from forge.cluster.census import Facts, Wanted, digest, facts
from forge.cluster.equipment import Equip
from forge.cluster.errand import Errand, Failed, Made
from forge.cluster.workplace import Workplace
from forge.errors import HostError
from forge.events import Event
from forge.files.interpreter import own_python

KEPT = 5000
"""Events that are kept for a build that joins late."""
_AFTERWARDS = Path(__file__).with_name("afterwards.py")
_FORGE = Path(forge.__file__).parent
_LOADED = digest(_FORGE)
"""Of the code that this process has: Ray may have kept it ready since before forge was changed on this machine."""


class Heard(Struct, frozen=True):
    """What was said from event number ``since`` on; the next to ask for is ``number``."""

    number: int
    events: tuple[Event, ...]
    end: Made | Failed | None
    node: str
    owner: str


class Worker:
    """Makes an errand from the moment it is there. Any number of builds may listen."""

    def __init__(self, errand: Errand, equip: Equip, node: str) -> None:
        self._errand = errand
        self._node = node
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._number = 0
        self._end: Made | Failed | None = None
        self._said = threading.Condition()
        self._equipment = equip(self._tell)
        if errand.docker:
            watch(self._equipment.store.root.parent)
        threading.Thread(target=self._work, name="forge: errand", daemon=True).start()

    def hear(self, since: int, seconds: float) -> Heard:
        """What is new since event number ``since``, at once; otherwise what comes within so many seconds."""
        with self._said:
            self._said.wait_for(lambda: self._number > since or self._end is not None, timeout=seconds)
            new = min(self._number - since, len(self._events))
            events = tuple(self._events)[len(self._events) - new :]
            return Heard(self._number, events, self._end, self._node, self._errand.owner)

    def halt(self) -> None:
        """End what the step has started: processes and containers. Returns when the step has ended, or after some seconds."""
        self._equipment.tools.halt.pull()
        with self._said:
            self._said.wait_for(lambda: self._end is not None, timeout=6.0)

    def _work(self) -> None:
        end: Made | Failed
        try:
            _require_current()
            end = Workplace(self._errand, self._equipment, self._tell).make()
        except BaseException as error:  # noqa: BLE001 - carried to whoever asked for the step
            end = Failed.of(error, self._node)
        with self._said:
            self._end = end
            self._said.notify_all()

    def _tell(self, event: Event) -> None:
        with self._said:
            last = self._events[-1] if self._events else None
            if last is not None and event.kind == "progress" == last.kind and last.key == event.key:
                self._events[-1] = event  # nobody needs each chunk of bytes
            else:
                self._events.append(event)
            self._number += 1
            self._said.notify_all()


def look(wanted: Wanted, equip: Equip) -> Facts:
    """What this node says of itself."""
    return facts(wanted, equip(lambda _: None))


def _require_current() -> None:
    """HostError where this process has another forge than the one that lies here, and that the machine was asked for."""
    if digest(_FORGE) != _LOADED:
        hint = "`ray stop` on that machine, and join again"
        raise HostError("forge was changed since Ray has started its processes there", where=str(_FORGE), hint=hint)


def watch(home: Path) -> None:
    """Have what outlives this process see to its containers, however it ends."""
    heard, told = os.pipe()  # the other end is closed by the kernel when this process is gone
    argv = (own_python(), str(_AFTERWARDS), str(os.getpid()))
    quiet = subprocess.DEVNULL
    subprocess.Popen(argv, stdin=heard, stdout=quiet, stderr=quiet, start_new_session=True, cwd=home.anchor)
    os.close(heard)
    os.set_inheritable(told, False)
