"""Whether the models of a server are alive, and what they use: what each says when asked, and what is seen without. Pure."""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace

WORKING = 0.03
"""Processor time per second from which a process is at work, also on a machine that has little of it to give."""

Times = Mapping[int, float]
"""Processes, by pid, with the seconds of processor time that each has used since it started."""


class Pulse(Struct, frozen=True, kw_only=True):
    """What came of asking one model for something tiny."""

    model: str
    answers: bool
    """It answered; or it did not in time, and is at work all the same (``busy``)."""
    seconds: float
    """Until the answer, or until nobody waited any longer."""
    busy: bool = False
    late: bool = False
    """Nothing is known but that no answer came in time."""
    works: bool = False
    """Its own processes, or what its engine counts, moved meanwhile."""
    stopped: bool = False
    """All of its processes are (SIGSTOP): whatever others do, nothing comes of it."""
    why: str = ""
    """Why there was no answer, for a person."""
    blamed: str = ""
    """The model whose process Triton names as the one that failed: this one, or one that it calls."""


class Signs(Struct, frozen=True, kw_only=True):
    """What can be seen of one model from outside, without costing it anything."""

    processes: int = 0
    """Its processes (Python stubs) that are there, as far as this machine sees them."""
    instances: int = 0
    """How many there are when all is well; 0 where none is seen."""
    stopped: int = 0
    """Those of them that somebody has stopped (SIGSTOP)."""
    cpu: Times = {}
    """What each of them has used."""
    failed: int = 0
    """Requests that ended in an error, since it was loaded."""
    pending: int = 0
    """Requests that nobody has begun to work on."""


class Stance(Struct, frozen=True, kw_only=True):
    """What can be seen of a Triton as a whole."""

    speaks: bool
    """One of its ports answers something."""
    stands: bool
    """Somebody has stopped it, or paused its container, and may have it go on."""
    cpu: Times = {}
    """What it and all that it has started have used; nothing of one whose processes are not seen from here."""
    faults: Mapping[str, str] = {}
    """Its threads that are in the handler of a fault, and the signal's name."""


class Memory(Struct, frozen=True, kw_only=True):
    """Bytes of this machine's memory and of its GPUs'; None where nobody here can see it."""

    host: int | None = None
    gpu: int | None = None


class Used(Memory, frozen=True, kw_only=True):
    """What one model holds, and how often it was asked."""

    requests: int = 0
    """Requests that were answered, since the model was loaded."""
    failed: int = 0


class Usage(Struct, frozen=True, kw_only=True):
    """One server; ``models`` by their folders. An engine lives in the server's own process: only the sum knows of it."""

    seconds: float | None = None
    """Since it was started."""
    host: int | None = None
    gpu: int | None = None
    models: dict[str, Used] = {}


def used(before: Times, after: Times) -> float:
    """Seconds of processor time that the processes of ``after`` have used since ``before``, also those that came since.

    Each process by itself: a sum falls when one goes, and the work of one that stays is lost in it.
    """
    return sum(max(0.0, seconds - before.get(pid, 0.0)) for pid, seconds in after.items())


def judged(pulses: Sequence[Pulse], calls: Mapping[str, Sequence[str]]) -> tuple[Pulse, ...]:
    """``pulses``, where a late model is busy if it works, or one of the models that it ``calls`` does.

    That others compute says nothing of a model: one that hangs stands beside them as well. Nor does a queue that is full:
    nothing leaves that of a model that hangs, either.
    """
    working = {pulse.model for pulse in pulses if pulse.works}
    return tuple(
        replace(pulse, answers=True, busy=True)
        if pulse.late and not pulse.stopped and not working.isdisjoint((pulse.model, *calls.get(pulse.model, ())))
        else pulse
        for pulse in pulses
    )


class Health(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What whoever watches over a server has done about one model, and found."""

    restarts: int = 0
    since: float = 0.0
    """Seconds since 1970 at which it was first found dead, if it still is."""
    why: str = ""
    given_up: bool = False


Healths = dict[str, Health]
"""By model; those that never failed are left out."""


def read(text: bytes) -> Healths:
    """Healths from a file; none from a damaged one."""
    try:
        return msgspec.json.decode(text, type=Healths)
    except msgspec.MsgspecError:
        return {}
