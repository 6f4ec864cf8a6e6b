"""The HTTP server: publish, ask, and say how it goes. The only place that imports starlette.

What stands behind it, an embedded runtime or a worker on Kafka, is a `Service`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from ipaddress import ip_address
from types import FrameType
from typing import Final

import anyio
import anyio.to_thread
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kithstream import __version__
from kithstream.streams.config import ServeConfig
from kithstream.streams.errors import InvalidEvent, NotYet, Unanswerable, Unavailable
from kithstream.streams.events.stamp import checked
from kithstream.streams.metrics import CONTENT_TYPE, ServeMetrics
from kithstream.streams.serve.access import Access, Grant, Rates, address_of
from kithstream.streams.serve.connections import Connection, allow_descriptors
from kithstream.streams.serve.messages import (
    Accepted,
    BadParameter,
    Health,
    NotReady,
    Problem,
    Ready,
    Refusal,
    Refused,
    WrongParameter,
    question,
    read_account,
    read_query,
)
from kithstream.streams.serve.openapi import document
from kithstream.streams.serve.page import page
from kithstream.streams.serve.service import Behind, Service, Stopped

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
BODY_SECONDS: Final = 30.0  # for a body to arrive
KEPT_SECONDS: Final = 75  # an idle connection lives: longer than those of the usual proxies before it
TOLD: Final = 100  # refusals that a reply names at most
CANDIDATES: Final = "/v1/candidates/"
FORWARDED: Final = "kithstream-forwarded"  # header of a question that another worker passed on
_OPEN: Final = ("/healthz", "/readyz")  # without a token
_NEEDS: Final = {
    "/v1/events": "publish",
    "/metrics": "admin",
}  # a scope; all other paths but candidates: any token
_PATHS: Final = ("/v1/events", *_OPEN, "/metrics", "/openapi.json", "/docs")
_RETRY: Final = {"retry-after": "1"}
_CLOSE: Final = {"connection": "close"}  # what is left of the body is not read
_PROBLEMS: Final = {
    404: Problem("not_found", "There is no such path; /docs has those that there are."),
    405: Problem(
        "method_not_allowed", "The path does not take this method; the header Allow has those it takes."
    ),
}

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


def make_app(service: Service, config: ServeConfig, metrics: ServeMetrics) -> Starlette:
    """Return the ASGI application of a runtime; it opens and closes nothing.

    Raises ValueError naming a setting of `serve` that cannot be.
    """
    server = _Server(service, config, metrics)
    asking = Route(CANDIDATES + "{account:path}", server.candidates, methods=["GET"])
    asking.path_regex = re.compile(
        rf"^{CANDIDATES}(?P<account>.*)\Z", re.DOTALL
    )  # ids may hold any character
    app = Starlette(
        routes=[
            Route("/v1/events", server.publish, methods=["POST"]),
            asking,
            Route("/healthz", server.healthz, methods=["GET"]),
            Route("/readyz", server.readyz, methods=["GET"]),
            Route("/metrics", server.metrics, methods=["GET"]),
            Route("/openapi.json", server.openapi, methods=["GET"]),
            Route("/docs", server.docs, methods=["GET"]),
        ],
        middleware=[
            Middleware(_Guard, config=config, metrics=metrics, access=Access(config), rates=Rates(config))
        ],
        exception_handlers={
            HTTPException: _http_problem,
            _Unusable: _unusable,
            WrongParameter: _wrong_parameter,
            NotYet: _not_yet,
            Unanswerable: _unanswerable,
            Behind: _behind,
            Stopped: _stopped,
            Unavailable: _unavailable,
        },
    )
    app.router.redirect_slashes = False
    return app


def make_server(service: Service, config: ServeConfig, metrics: ServeMetrics) -> uvicorn.Server:
    """Return the server of a runtime, to be run on the socket that `listen` returns."""
    allow_descriptors(config.connections)
    return uvicorn.Server(
        uvicorn.Config(
            make_app(service, config, metrics),
            http=type("Connection", (Connection,), {"most": config.connections}),
            h11_max_incomplete_event_size=config.head_bytes,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEPT_SECONDS,
            timeout_graceful_shutdown=math.ceil(config.deadline_ms / 1000) + 5,
        )
    )


def serve(
    service: Service,
    config: ServeConfig,
    metrics: ServeMetrics,
    *,
    started: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight are answered, then it returns. Leaves `live` open.

    `started` is called with the URL once connections are taken; port 0 is any free one. Raises OSError if
    the address cannot be had.
    """
    server = make_server(service, config, metrics)
    with listen(config.host, config.port) as listening, _signals(server):
        host, port = listening.getsockname()[:2]
        if not (config.token or config.tokens or ip_address(host).is_loopback):
            _log.warning("serving on %s without a token: everybody who can reach it may publish", host)
        if started is not None:
            started(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        server.run(sockets=[listening])


async def serve_until(
    stopping: asyncio.Event,
    service: Service,
    config: ServeConfig,
    metrics: ServeMetrics,
    *,
    started: Callable[[str], Awaitable[None]],
) -> None:
    """Serve in this event loop until `stopping` is set; requests in flight are answered, then it returns.

    Leaves the signals alone. `started` is awaited with the URL once connections are taken.
    """
    server = make_server(service, config, metrics)
    with listen(config.host, config.port) as listening:
        host, port = listening.getsockname()[:2]
        if not (config.token or config.tokens or ip_address(host).is_loopback):
            _log.warning("serving on %s without a token: everybody who can reach it may publish", host)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        await started(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        ended = asyncio.create_task(stopping.wait())
        await asyncio.wait([serving, ended], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        ended.cancel()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 is any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=1024)
    # Connections inherit it. asyncio sets it only where a socket names its protocol, which these do not, and
    # without it head and body of a reply are 40 ms apart.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


@contextlib.contextmanager
def _signals(server: uvicorn.Server) -> Iterator[None]:
    """Let a signal end serving only: uvicorn raises what it caught once more when it is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Unusable(Exception):
    """A request that is answered with this status and body."""

    def __init__(
        self, status: int, body: Problem | Refused, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(body.message)
        self.status = status
        self.body = body
        self.headers = headers


class _Server:
    """The endpoints."""

    def __init__(self, service: Service, config: ServeConfig, metrics: ServeMetrics) -> None:
        self._service = service
        self._config = config
        self._metrics = metrics
        described = document(config, __version__)
        self._document = _encode(described)
        self._page = page(described).encode()

    async def publish(self, request: Request) -> Response:
        lines = _media_type(request) == NDJSON
        body = await _body(request, self._config.request_bytes)
        self._check_folding()
        now = self._service.clock()
        records = await anyio.to_thread.run_sync(partial(self._checked, body, lines, now))
        return _reply(Accepted(await self._service.publish(records, now), len(records)))

    def _checked(self, body: bytes, lines: bool, now: int) -> list[tuple[str, bytes]]:
        """The records of a body, all or none."""
        found: list[tuple[str, bytes]] = []
        refused: list[Refusal] = []
        total = 0
        for index, event in enumerate(_lines(body) if lines else _elements(body)):
            try:
                if isinstance(event, InvalidEvent):
                    raise event
                found.append(checked(event, now))
            except InvalidEvent as error:
                total += 1
                if total <= TOLD:
                    refused.append(Refusal(index, error.reason, error.field, error.value, error.expected))
        if total:
            few = f"{total} of {total + len(found)} events cannot be used; none was taken"
            raise _Unusable(422, Refused("invalid_events", few, refused, total))
        return found

    async def candidates(self, request: Request) -> Response:
        service, config = self._service, self._config
        path = request.scope["raw_path"]
        account = read_account(path, CANDIDATES)
        query = request.scope["query_string"]
        asked = read_query(query, longest_ms=config.deadline_ms, partitions=service.partitions)
        self._check_folding()
        relayed = await service.relay(
            account,
            (path + b"?" + query if query else path).decode("ascii"),
            request.headers.get("authorization"),
            forwarded=FORWARDED in request.headers,
        )
        if relayed is not None:
            retry = {"retry-after": relayed.retry_after} if relayed.retry_after else {}
            return _bytes(relayed.body, relayed.media, retry, relayed.status)
        milliseconds = config.deadline_ms if asked.deadline_ms is msgspec.UNSET else asked.deadline_ms
        began = time.perf_counter()
        answer = await service.answer(question(account, asked), milliseconds / 1000)
        self._metrics.queried(time.perf_counter() - began)
        return _reply(answer)

    async def healthz(self, _: Request) -> Response:
        if self._service.failed:
            return _reply(Problem("stopped", "Folding has stopped; the log of the server says why."), 500)
        return _reply(Health("alive"))

    async def readyz(self, _: Request) -> Response:
        self._check_folding()
        found = self._service.readiness()
        if found.ready:
            return _reply(Ready("ready", found.behind))
        return _reply(NotReady("catching_up", found.missing, found.behind), 503, _RETRY)

    async def metrics(self, _: Request) -> Response:
        own = await anyio.to_thread.run_sync(self._metrics.text)
        return _bytes(own + self._service.exposed(), CONTENT_TYPE)

    async def openapi(self, _: Request) -> Response:
        return _bytes(self._document, JSON)

    async def docs(self, _: Request) -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
        return _bytes(self._page, "text/html; charset=utf-8", {"content-security-policy": policy})

    def _check_folding(self) -> None:
        if self._service.failed:
            raise Stopped


class _Guard:
    """Lets a request in, measures it, and leaves no error without a JSON reply."""

    def __init__(
        self, app: ASGIApp, *, config: ServeConfig, metrics: ServeMetrics, access: Access, rates: Rates
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._access = access
        self._rates = rates
        self._most = config.requests
        self._flying = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._flying += 1
        try:
            refusal = self._refusal(scope)
            await (refusal or self._app)(scope, receive, noting)
        except ClientDisconnect:
            status = status or 499
        except Exception:
            _log.exception("a request failed")
            if status:
                raise
            problem = Problem("internal", "The server has failed; its log says why.")
            await _reply(problem, 500)(scope, receive, noting)
        finally:
            self._flying -= 1
            self._metrics.requested(_route(scope["path"]), status or 500, time.perf_counter() - began)

    def _refusal(self, scope: Scope) -> Response | None:
        if scope["path"] in _OPEN:
            return None
        if self._flying > self._most:
            problem = Problem("overloaded", f"{self._most} requests are in flight; ask again.")
            return _reply(problem, 503, {**_RETRY, **_CLOSE})
        now = time.monotonic()
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        grant = self._access.grant(given, now) if self._access.needed else None
        wait = self._rates.take(grant.digest if grant else address_of(scope.get("client")), now)
        if wait > 0:
            problem = Problem("too_many_requests", "More requests than may be asked in this time; ask again.")
            return _reply(problem, 429, {"retry-after": str(math.ceil(wait)), **_CLOSE})
        return _forbidden(scope["path"], grant, bool(given)) if self._access.needed else None


def _forbidden(path: str, grant: Grant | None, given: bool) -> Response | None:
    """The refusal of a bearer who may not do what is asked on a path."""
    challenge = 'Bearer realm="kithstream"'
    if grant is None:
        challenge += ', error="invalid_token"' if given else ""
        problem = Problem("unauthorized", "A bearer token is needed in the header Authorization.")
        return _reply(problem, 401, {"www-authenticate": challenge, **_CLOSE})
    needed = "query" if path.startswith(CANDIDATES) else _NEEDS.get(path)
    if needed is None or needed in grant.scopes:
        return None
    challenge += f', error="insufficient_scope", scope="{needed}"'
    problem = Problem("forbidden", f"The token lacks the scope {needed}.")
    return _reply(problem, 403, {"www-authenticate": challenge, **_CLOSE})


def _route(path: str) -> str:
    """The route as metrics name it: one of a small set."""
    if path.startswith(CANDIDATES):
        return CANDIDATES + "{account}"
    return path if path in _PATHS else "other"


def _media_type(request: Request) -> str:
    """What a body is in; only JSON and lines of it in UTF-8 can be read."""
    media, _, rest = request.headers.get("content-type", "").partition(";")
    media = media.strip().lower()
    charset = rest.strip().lower().replace('"', "")
    coded = request.headers.get("content-encoding", "identity").strip().lower()
    if media not in (JSON, NDJSON) or charset not in ("", "charset=utf-8") or coded != "identity":
        message = f"The body must be {JSON} or {NDJSON} in UTF-8, without content encoding."
        raise _Unusable(415, Problem("unsupported_media_type", message), _CLOSE)
    return media


async def _body(request: Request, most: int) -> bytes:
    """The body, refused as soon as it is known to be too large."""
    too_large = _Unusable(413, Problem("too_large", f"The body must be at most {most} bytes."), _CLOSE)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise too_large
    body = bytearray()
    with anyio.move_on_after(BODY_SECONDS) as scope:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_large
    if scope.cancelled_caught:
        problem = Problem("timeout", f"The body did not arrive within {BODY_SECONDS:g} s.")
        raise _Unusable(408, problem, _CLOSE)
    return bytes(body)


_Raw = Mapping[str, object] | bytes


def _elements(body: bytes) -> Sequence[_Raw]:
    """The events of a JSON array, or the one of an object; the check refuses what is no object."""
    try:
        decoded: object = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Unusable(400, Problem("malformed", f"The body is no JSON: {error}.")) from None
    if isinstance(decoded, dict):
        return [decoded]
    if not isinstance(decoded, list):
        raise _Unusable(400, Problem("malformed", "The body must be a JSON array or object."))
    return [event if isinstance(event, dict) else _encode(event) for event in decoded]


def _lines(body: bytes) -> Iterator[_Raw | InvalidEvent]:
    """The events of newline-delimited JSON; a line that is none is an event that cannot be used."""
    for line in body.split(b"\n"):
        if not line.strip():
            continue
        try:
            event: object = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            start = line[:60].decode("utf-8", "replace")
            yield InvalidEvent("malformed", "record", start, f"a JSON object in UTF-8 ({error})")
            continue
        yield event if isinstance(event, dict) else line


def _reply(body: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return _bytes(_encode(body), JSON, headers, status)


def _bytes(body: bytes, media: str, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    always = {"content-type": media, "cache-control": "no-store", "x-content-type-options": "nosniff"}
    return Response(body, status, {**always, **(headers or {})})


async def _http_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    problem = _PROBLEMS.get(error.status_code, Problem("refused", f"{error.detail}."))
    return _reply(problem, error.status_code, error.headers)


async def _unusable(_: Request, error: Exception) -> Response:
    assert isinstance(error, _Unusable)
    return _reply(error.body, error.status, error.headers)


async def _wrong_parameter(_: Request, error: Exception) -> Response:
    assert isinstance(error, WrongParameter)
    problem = BadParameter("invalid_parameter", f"{error}.", error.parameter, error.value, error.expected)
    return _reply(problem, 422)


async def _not_yet(_: Request, error: Exception) -> Response:
    return _reply(Problem("not_yet", f"{error}; ask again."), 409, _RETRY)


async def _unanswerable(_: Request, error: Exception) -> Response:
    assert isinstance(error, Unanswerable)
    code, status = ("deleted", 410) if error.gone else ("deactivated", 404)
    return _reply(Problem(code, f"{error}."), status)


async def _unavailable(_: Request, error: Exception) -> Response:
    return _reply(Problem("unavailable", f"{error}; ask again."), 503, _RETRY)


async def _behind(_: Request, error: Exception) -> Response:
    return _reply(Problem("overloaded", f"{error}; publish again."), 503, _RETRY)


async def _stopped(_: Request, __: Exception) -> Response:
    problem = Problem("stopped", "Folding has stopped; the log of the server says why.")
    return _reply(problem, 503, {**_RETRY, **_CLOSE})
