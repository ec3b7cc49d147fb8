"""One connection to the OpenAI port, with nothing in between that would take time of its own."""

import asyncio
from collections.abc import AsyncGenerator


class Web:
    """One connection to the port, which stays."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    def close(self) -> None:
        if self._writer:
            self._writer.close()
        self._reader = self._writer = None

    async def open(self) -> None:
        """Anew, where the port has closed it: that does so after five seconds of silence."""
        if self._reader is None or self._reader.at_eof():
            self.close()
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def ask(self, body: bytes, path: str = "/v1/chat/completions") -> AsyncGenerator[bytes]:
        """The answer's pieces as they come."""
        await self.open()
        assert self._reader
        assert self._writer
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        found = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if b"chunked" not in found:
            length = int(found.split(b"content-length:")[1].split(b"\r\n")[0])
            yield await self._reader.readexactly(length)
            return
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)
