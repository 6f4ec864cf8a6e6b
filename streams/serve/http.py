"""The HTTP server of a runtime: publish, ask, and say how it goes. The only place that imports starlette.

Publishing and answering run in a bounded number of threads; waiting for a token's state has threads of its
own, so that questions which need not wait are not kept by those which must.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import math
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from ipaddress import ip_address
from types import FrameType
from typing import Final, TypeVar

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
from kithstream.streams.errors import InvalidEvent, NotYet, Unanswerable
from kithstream.streams.metrics import CONTENT_TYPE, Metrics
from kithstream.streams.serve.answers import Answer, Question
from kithstream.streams.serve.embedded import Embedded
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

T = TypeVar("T")

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
BODY_SECONDS: Final = 30.0  # for a body to arrive
KEPT_SECONDS: Final = 75  # an idle connection lives: longer than those of the usual proxies before it
TOLD: Final = 100  # refusals that a reply names at most
CANDIDATES: Final = "/v1/candidates/"
_OPEN: Final = ("/healthz", "/readyz")  # without the token
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


def make_app(live: Embedded, config: ServeConfig, metrics: Metrics) -> Starlette:
    """Return the ASGI application of a runtime; it opens and closes nothing."""
    server = _Server(live, config, metrics)
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
        middleware=[Middleware(_Guard, config=config, metrics=metrics)],
        exception_handlers={
            HTTPException: _http_problem,
            _Unusable: _unusable,
            WrongParameter: _wrong_parameter,
            NotYet: _not_yet,
            Unanswerable: _unanswerable,
            _Stopped: _stopped,
        },
    )
    app.router.redirect_slashes = False
    return app


def make_server(live: Embedded, config: ServeConfig, metrics: Metrics) -> uvicorn.Server:
    """Return the server of a runtime, to be run on the socket that `listen` returns."""
    return uvicorn.Server(
        uvicorn.Config(
            make_app(live, config, metrics),
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
    live: Embedded, config: ServeConfig, metrics: Metrics, *, started: Callable[[str], None] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight are answered, then it returns. Leaves `live` open.

    `started` is called with the URL once connections are taken; port 0 is any free one. Raises OSError if
    the address cannot be had.
    """
    server = make_server(live, config, metrics)
    with listen(config.host, config.port) as listening, _signals(server):
        host, port = listening.getsockname()[:2]
        if not (config.token or ip_address(host).is_loopback):
            _log.warning("serving on %s without a token: everybody who can reach it may publish", host)
        if started is not None:
            started(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        server.run(sockets=[listening])


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


class _Stopped(Exception):
    """Folding has died: nothing can be published or answered."""


class _Server:
    """The endpoints."""

    def __init__(self, live: Embedded, config: ServeConfig, metrics: Metrics) -> None:
        self._live = live
        self._config = config
        self._metrics = metrics
        self._start = live.end
        self._working = anyio.CapacityLimiter(config.threads)
        self._waiting = anyio.CapacityLimiter(config.waiting)
        described = document(config, __version__)
        self._document = _encode(described)
        self._page = page(described).encode()

    async def publish(self, request: Request) -> Response:
        lines = _media_type(request) == NDJSON
        body = await _body(request, self._config.request_bytes)
        accepted = await self._in_thread(partial(self._publish, body, lines))
        return _reply(accepted)

    def _publish(self, body: bytes, lines: bool) -> Accepted:
        live = self._live
        self._check_folding()
        now = live.clock()
        checked: list[tuple[str, bytes]] = []
        refused: list[Refusal] = []
        total = 0
        for index, event in enumerate(_lines(body) if lines else _elements(body)):
            try:
                if isinstance(event, InvalidEvent):
                    raise event
                checked.append(live.checked(event, now))
            except InvalidEvent as error:
                total += 1
                if total <= TOLD:
                    refused.append(Refusal(index, error.reason, error.field, error.value, error.expected))
        if total:
            few = f"{total} of {total + len(checked)} events cannot be used; none was taken"
            raise _Unusable(422, Refused("invalid_events", few, refused, total))
        return Accepted(live.append(checked, now), len(checked))

    async def candidates(self, request: Request) -> Response:
        live, config = self._live, self._config
        account = read_account(request.scope["raw_path"], CANDIDATES)
        asked = read_query(
            request.scope["query_string"], longest_ms=config.deadline_ms, partitions=live.partitions
        )
        self._check_folding()
        if not live.includes(asked.after):
            milliseconds = config.deadline_ms if asked.deadline_ms is msgspec.UNSET else asked.deadline_ms
            await self._wait(asked.after, milliseconds / 1000)
        answer = await self._in_thread(partial(self._answer, question(account, asked)))
        return _reply(answer)

    def _answer(self, asked: Question) -> Answer:
        began = time.perf_counter()
        answer = self._live.answer(asked)
        self._metrics.queried(time.perf_counter() - began)
        return answer

    async def _wait(self, after: str, seconds: float) -> None:
        """Return when the state includes a token; the deadline holds for getting a thread as well."""
        began = time.perf_counter()

        def wait() -> None:
            self._live.wait(after, deadline=max(0.0, seconds - (time.perf_counter() - began)))

        with anyio.move_on_after(seconds) as scope:
            await self._guarded(wait, self._waiting)
        self._metrics.waited(time.perf_counter() - began)
        if scope.cancelled_caught and not self._live.includes(after):
            raise NotYet(f"the state did not include the token within {seconds:g} s")

    async def healthz(self, _: Request) -> Response:
        if self._live.failed:
            return _reply(Problem("stopped", "Folding has stopped; the log of the server says why."), 500)
        return _reply(Health("alive"))

    async def readyz(self, _: Request) -> Response:
        self._check_folding()
        behind = self._live.behind
        if self._live.includes(self._start):
            return _reply(Ready("ready", behind))
        message = "Not everything published before the start is visible yet."
        return _reply(NotReady("catching_up", message, behind), 503, _RETRY)

    async def metrics(self, _: Request) -> Response:
        return _bytes(await anyio.to_thread.run_sync(self._metrics.text), CONTENT_TYPE)

    async def openapi(self, _: Request) -> Response:
        return _bytes(self._document, JSON)

    async def docs(self, _: Request) -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
        return _bytes(self._page, "text/html; charset=utf-8", {"content-security-policy": policy})

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await self._guarded(work, self._working)

    async def _guarded(self, work: Callable[[], T], limiter: anyio.CapacityLimiter) -> T:
        try:
            return await anyio.to_thread.run_sync(work, limiter=limiter)
        except RuntimeError:
            self._check_folding()
            raise

    def _check_folding(self) -> None:
        if self._live.failed:
            raise _Stopped


class _Guard:
    """Lets a request in, measures it, and leaves no error without a JSON reply."""

    def __init__(self, app: ASGIApp, *, config: ServeConfig, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._authorization = f"Bearer {config.token}".encode() if config.token else b""
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
        if not self._authorization:
            return None
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, secret = given.partition(b" ")
        if hmac.compare_digest(scheme.title() + b" " + secret.strip(), self._authorization):
            return None
        challenge = 'Bearer realm="kithstream"' + (', error="invalid_token"' if given else "")
        problem = Problem("unauthorized", "A bearer token is needed in the header Authorization.")
        return _reply(problem, 401, {"www-authenticate": challenge, **_CLOSE})


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


async def _stopped(_: Request, __: Exception) -> Response:
    problem = Problem("stopped", "Folding has stopped; the log of the server says why.")
    return _reply(problem, 503, {**_RETRY, **_CLOSE})
