"""What is noted of the server behind the port by those who start it, look after it and read its files."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from forge.store.checks import Checks


class _Noted(Struct):
    """A state file, as far as it is read here."""

    crashes: tuple[msgspec.Raw, ...] = ()
    awaited: tuple[str, ...] = ()


class Notes:
    """``state`` is the server's state file, None where a person has started the port; ``checks`` knows rotten files."""

    def __init__(self, state: Path | None = None, checks: Checks | None = None, repositories: Sequence[Path] = ()) -> None:
        self._state, self._checks, self._repositories = state, checks, repositories

    @property
    def known(self) -> bool:
        """Whether anybody notes anything."""
        return self._state is not None

    @property
    def coming(self) -> bool:
        """Whether the server is being started again, and does not have all of its models yet."""
        return bool(self._read().awaited)

    @property
    def restarts(self) -> int:
        """How often Triton died and was started again, or tried to be, since `forge serve`."""
        return len(self._read().crashes)

    @property
    def rotten(self) -> int:
        """Published files that were found not to be what was built, and were not fixed since."""
        return sum(len(self._checks.rotten(place)) for place in self._repositories) if self._checks else 0

    def _read(self) -> _Noted:
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=_Noted) if self._state else _Noted()
        except (OSError, msgspec.MsgspecError):  # the server has just been stopped
            return _Noted()
