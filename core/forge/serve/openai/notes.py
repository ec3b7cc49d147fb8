"""What is noted of the server behind the port by those who start it and look after it."""

from pathlib import Path

import msgspec
from msgspec import Struct


class _Noted(Struct):
    """A state file, as far as it is read here."""

    awaited: tuple[str, ...] = ()


def coming(state: Path | None) -> bool:
    """Whether the server of a state file is being started again, and does not have all of its models yet; None: a person has
    started the port, and nobody notes anything."""
    try:
        return bool(state and msgspec.json.decode(state.read_bytes(), type=_Noted).awaited)
    except (OSError, msgspec.MsgspecError):  # the server has just been stopped
        return False
