"""Whether the models of a server are alive: what each says when it is asked, and what can be seen without asking. Pure."""

import msgspec
from msgspec import Struct

WORKING = 0.03
"""Processor time per second from which something is at work, also on a machine that has little of it to give."""


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
    cpu: float = 0.0
    """Seconds of processor time that they have used since they started."""
    failed: int = 0
    """Requests that ended in an error, since it was loaded."""
    pending: int = 0
    """Requests that nobody has begun to work on."""


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
