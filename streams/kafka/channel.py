"""The words that the two processes of a worker exchange: msgpack behind its length, over a pair of sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, Final, Generic, Self, TypeVar

import msgspec

Received = TypeVar("Received")
MOST: Final = 64 << 20  # bytes of a message
_LENGTH: Final = 4
_encode = msgspec.msgpack.Encoder().encode


class Channel(Generic[Received]):
    """One end. Messages arrive whole and in their order; iterating ends when the other end is closed or dead."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: Any) -> None:
        self._reader = reader
        self._writer = writer
        self._decode = msgspec.msgpack.Decoder(received).decode

    @classmethod
    async def open(cls, end: socket.socket, received: Any) -> Self:
        """Take over a socket; `received` is the type, or the union of types, of what comes from the other end."""
        reader, writer = await asyncio.open_connection(sock=end)
        return cls(reader, writer, received)

    def send(self, message: msgspec.Struct) -> None:
        """Put a message on its way; one that finds the other end dead is lost with it."""
        raw = _encode(message)
        if len(raw) > MOST:
            raise ValueError(f"a message has {len(raw)} bytes, at most {MOST} go through")
        if not self._writer.is_closing():
            self._writer.write(len(raw).to_bytes(_LENGTH, "big") + raw)

    async def close(self) -> None:
        """Send what waits, and let go of the socket."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Received:
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH), "big")
            raw = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            raise StopAsyncIteration from None
        message: Received = self._decode(raw)
        return message
