"""What happens while work goes on, for whoever shows it."""

from collections.abc import Callable

from msgspec import Struct


class Event(Struct, frozen=True):
    """Something to show while work goes on.

    ``kind`` is one of: ``held`` (the store has the step), ``start``, ``progress`` (``done`` of ``total`` bytes), ``log`` (one
    line in ``text``), ``made`` (``seconds``, ``size`` in bytes), ``taken`` and ``sent`` (from or to a shared store; as
    ``made``), ``failed`` (``text`` what follows from it, or nothing),
    ``note`` (a sentence worth saying aloud). Those of several steps come mixed. ``node`` is the machine of a cluster on which
    it happened; empty for this one.
    """

    kind: str
    step: str
    key: str = ""
    text: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    size: int = 0
    node: str = ""


Listener = Callable[[Event], None]


Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""
