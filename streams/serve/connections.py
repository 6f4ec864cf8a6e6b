"""Connections that are slow, silent, or too many. uvicorn bounds how long one may idle between requests, and no more.

What a request may take once its head is there is bounded by the endpoints: a body by its seconds and bytes, an
answer by its deadline.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
from http import HTTPStatus
from typing import Any, Final

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from kithstream.streams.serve.messages import Problem

HEAD_SECONDS: Final = 10.0  # from a connection, or the first byte after a reply, to the end of the next head
WRITE_SECONDS: Final = 30.0  # in which a client must take some of what is sent to it
SPARE: Final = 512  # descriptors for everything that is no connection: stores, logs, brokers
_NO_REQUEST: Final = {
    400: ("malformed", "This is no HTTP/1.1 request."),
    431: ("head_too_large", "The head of the request is larger than this server takes."),
}
_log = logging.getLogger(__name__)


class Connection(H11Protocol):
    """A connection that is cut off when it holds the server up. `most` is how many there may be."""

    most = 2048
    head_seconds = HEAD_SECONDS
    write_seconds = WRITE_SECONDS

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._head: asyncio.TimerHandle | None = None
        self._write: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # whatever the kernel does not take is waited for
        if len(self.connections) > self.most:
            transport.write(_reply(503, "overloaded", "Too many connections are open; ask again."))
            transport.close()
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._await_head()  # a body that nobody wants any more, or what is there of the next head
        else:
            self._forget_head()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or too large a head, and hang up."""
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        if self.cycle is None or not self.cycle.response_started:
            code, text = _NO_REQUEST.get(status, _NO_REQUEST[400])
            self.transport.write(_reply(status, code, text))
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write is None:
            self._write = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write is not None:
            self._write.cancel()
            self._write = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)
        self.resume_writing()
        self._unset_keepalive_if_required()  # uvicorn leaves it where the connection broke

    def _await_head(self) -> None:
        """Give the next head its seconds, unless a request is being answered, which then stops the clock."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_head()
        elif self._head is None:
            self._head = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


def _reply(status: int, code: str, message: str) -> bytes:
    """A refusal that needs no request, as the server's others are."""
    body = msgspec.json.encode(Problem(code, message))
    retry = "retry-after: 1\r\n" if status == 503 else ""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n{retry}"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


def allow_descriptors(connections: int) -> None:
    """Raise the process's own limit of open files as far as it may be, and say if it is too low even so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + SPARE
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            _log.warning("%d files may be open, serve.connections=%d needs %d", soft, connections, needed)
