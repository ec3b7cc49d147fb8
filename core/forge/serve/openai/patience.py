"""HTTP connections that are not held for ever: by a request that never ends, or by a reader that never reads."""

import asyncio
from typing import ClassVar, cast

from msgspec import Struct
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

_FULL = (
    b'{"error":{"message":"too many connections; close some, or come back later","type":"server_error",'
    b'"param":null,"code":"server_busy"}}'
)
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
)


class Patience(Struct, frozen=True):
    """Seconds until a head has come whole, a body has, and a client that does not read is given up; and connections at once."""

    head: float = 10.0
    body: float = 60.0
    unread: float = 30.0
    connections: int = 800


class _Impatient(H11Protocol):
    patience: ClassVar[Patience]
    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.patience.connections:
            transport.write(_REFUSAL)
            self._close_soon()
            transport.close()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._between_requests:
            self._await_head()
        elif self._head is not None:
            self._head.cancel()
            self._head = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._close_soon()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # what is written already has to be read in time as well
            self._close_soon()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._close_soon()

    @property
    def _between_requests(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request, whatever uvicorn declares
        return cycle is None or cycle.response_complete

    def _await_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(self.patience.head, self._give_up)

    def _give_up(self) -> None:
        self._head = None
        if self._between_requests:
            self.transport.abort()

    def _close_soon(self) -> None:
        if self._unread is None:
            self._unread = self.loop.call_later(self.patience.unread, self.transport.abort)


def protocol(patience: Patience) -> type[H11Protocol]:
    """uvicorn's own, with ``patience``."""
    return type("Impatient", (_Impatient,), {"patience": patience})
