"""Connections that are slow, silent, too many or cut off, on real servers over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

import kithstream
from kithstream.streams.config import ServeConfig
from kithstream.streams.metrics import Metrics
from kithstream.streams.serve import connections
from kithstream.streams.serve.connections import Connection
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.serve.http import listen, make_server
from kithstream.streams.serve.service import InProcess

PATIENCE = 60.0  # seconds in which what must come about comes about
ASK = b"GET /v1/candidates/dan HTTP/1.1\r\nhost: a\r\n\r\n"
Address = tuple[str, int]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with kithstream.open(tmp_path_factory.mktemp("live")) as live:
        yield live


Served = Callable[..., contextlib.AbstractContextManager[Address]]


@pytest.fixture
def served(live: Embedded) -> Served:
    """Runs servers in threads, whose connections have less time than those of others."""

    @contextlib.contextmanager
    def run(times: dict[str, float] | None = None, **settings: object) -> Iterator[Address]:
        config, metrics = ServeConfig(port=0, **settings), Metrics(CollectorRegistry())
        server = make_server(InProcess(live, config, metrics), config, metrics)
        own = {"most": config.connections, **(times or {})}
        server.config.http = type("Quick", (Connection,), own)
        with listen(config.host, 0) as listening:
            thread = threading.Thread(target=server.run, args=([listening],))
            thread.start()
            try:
                yield listening.getsockname()
            finally:
                server.should_exit = server.force_exit = True
                thread.join(PATIENCE)
            assert not thread.is_alive()

    return run


def connect(address: Address) -> socket.socket:
    client = socket.create_connection(address, PATIENCE)
    client.settimeout(PATIENCE)
    return client


def reply(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one reply."""
    with client.makefile("rb") as file:
        status = int(file.readline().split()[1])
        headers = {}
        while line := file.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        return status, headers, file.read(int(headers["content-length"]))


def hung_up(client: socket.socket) -> bool:
    """Wait until the server closes; False if it sends something."""
    with contextlib.suppress(ConnectionResetError):
        return client.recv(1) == b""
    return True


# -- slow and silent -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nhost: a\r\n"])
def test_a_head_that_does_not_come_is_waited_for_only_so_long(served: Served, sent: bytes) -> None:
    with served({"head_seconds": 0.3}) as address, connect(address) as client:
        client.sendall(sent)
        assert hung_up(client)


def test_a_head_that_trickles_in_is_cut_off_all_the_same(served: Served) -> None:
    with served({"head_seconds": 0.5}) as address, connect(address) as client:
        began = time.monotonic()
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        client.settimeout(0.05)
        with pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012 (it ends at one of many)
            while time.monotonic() < began + PATIENCE:
                client.sendall(b"x: y\r\n")
                with contextlib.suppress(TimeoutError):
                    assert client.recv(1) == b""
                    raise ConnectionResetError("reset")
        assert 0.4 < time.monotonic() - began < PATIENCE / 2


def test_the_next_head_has_its_own_time_and_idling_another(served: Served) -> None:
    with served({"head_seconds": 1.0}) as address, connect(address) as client:
        for _ in range(3):
            client.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
            assert reply(client)[0] == 200
        client.settimeout(1.6)
        with pytest.raises(TimeoutError):
            client.recv(1)  # an idle connection is kept, for longer than a head may take
        client.settimeout(PATIENCE)
        client.sendall(b"GET /healthz HT")
        assert hung_up(client)


def test_a_body_that_nobody_waits_for_any_more_is_cut_off(served: Served) -> None:
    with served({"head_seconds": 0.3}) as address, connect(address) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n{")
        assert reply(client)[0] == 200
        assert hung_up(client)


def test_a_request_that_is_being_answered_outlives_the_time_of_a_head(served: Served) -> None:
    head = (
        b"POST /v1/events HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"
    )
    with served({"head_seconds": 0.3}) as address, connect(address) as client:
        client.sendall(head)
        client.settimeout(1.0)
        with pytest.raises(TimeoutError):
            client.recv(1)  # a body has longer than a head
        client.settimeout(PATIENCE)
        client.sendall(b"[]")
        assert reply(client)[0] == 200


def test_who_takes_nothing_of_a_reply_is_cut_off(served: Served) -> None:
    """It asks again and again and never reads, until the kernel's buffers are full."""
    with served({"write_seconds": 0.5}) as address:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE)
        with client:
            client.connect(address)
            with pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012 (it ends at one of many)
                for _ in range(100_000):
                    client.sendall(b"GET /docs HTTP/1.1\r\nhost: a\r\n\r\n" * 10)


# -- large and malformed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "status", "error"),
    [
        (b"GET /healthz HTTP/1.1\r\nx: " + b"y" * 9000, 431, "head_too_large"),
        (b"GET /v1/candidates/dan?exclude=" + b"y" * 9000, 431, "head_too_large"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "malformed"),
        (b"GET /healthz HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n", 400, "malformed"),
    ],
)
def test_what_is_no_request_is_told_and_hung_up_on(
    served: Served, head: bytes, status: int, error: str
) -> None:
    with served(head_bytes=8192) as address, connect(address) as client:
        client.sendall(head)
        told, headers, body = reply(client)
        assert (told, json.loads(body)["error"], headers["connection"]) == (status, error, "close")
        assert hung_up(client)
        with connect(address) as other:
            other.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
            assert reply(other)[0] == 200


def test_long_lists_of_accounts_fit_into_a_head(served: Served) -> None:
    names = "&".join(f"exclude={'x' * 124}{number:04}" for number in range(1000))
    with served() as address, connect(address) as client:
        client.sendall(ASK.replace(b"dan", b"dan?" + names.encode()))
        assert reply(client)[0] == 200


def test_a_broken_chunk_ends_its_own_connection_alone(served: Served) -> None:
    head = b"POST /v1/events HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    head += b"transfer-encoding: chunked\r\n\r\n"
    with served() as address:
        with connect(address) as client:
            client.sendall(head + b"zz\r\n[]\r\n")
            assert reply(client)[0] == 400
            assert hung_up(client)
        with connect(address) as client:
            client.sendall(head + b"2\r\n[]\r\n0\r\n\r\n")
            assert reply(client)[0] == 200


# -- many ----------------------------------------------------------------------------------------------------


def test_more_connections_than_fit_are_told_so_and_room_comes_back(served: Served) -> None:
    with served(connections=3) as address:
        held = [connect(address) for _ in range(3)]
        for client in held:
            client.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
            assert reply(client)[0] == 200
        with connect(address) as late:
            status, headers, body = reply(late)
            assert (status, headers["retry-after"], json.loads(body)["error"]) == (503, "1", "overloaded")
            assert hung_up(late)
        held.pop().close()
        end = time.monotonic() + PATIENCE
        while True:
            with connect(address) as late:
                late.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    if reply(late)[0] == 200:
                        break
            assert time.monotonic() < end
        for client in held:
            client.close()


def test_descriptors_are_raised_as_far_as_they_may_be() -> None:
    program = (
        "import resource as r, sys, logging; logging.basicConfig()\n"
        "from kithstream.streams.serve.connections import allow_descriptors\n"
        "r.setrlimit(r.RLIMIT_NOFILE, (256, int(sys.argv[1]))); allow_descriptors(1000)\n"
        "print(r.getrlimit(r.RLIMIT_NOFILE)[0])"
    )
    for hard, soft, told in ((4096, 1000 + connections.SPARE, False), (600, 600, True)):
        done = subprocess.run([sys.executable, "-c", program, str(hard)], capture_output=True, text=True)
        assert done.stdout == f"{soft}\n", done.stderr
        assert ("serve.connections=1000 needs 1512" in done.stderr) == told


SERVER = """
import sys, threading, kithstream
from prometheus_client import CollectorRegistry
from kithstream.streams.config import ServeConfig
from kithstream.streams.metrics import Metrics
from kithstream.streams.serve.http import serve
from kithstream.streams.serve.service import InProcess
gate = threading.Event()
live = kithstream.open(sys.argv[1], start=False)
live.on_pumped = lambda _: gate.wait()
live.start()
threading.Thread(target=lambda: (sys.stdin.readline(), gate.set()), daemon=True).start()
config, metrics = ServeConfig(port=0, requests=100, deadline_ms=60_000.0), Metrics(CollectorRegistry())
serve(InProcess(live, config, metrics), config, metrics, started=lambda url: print(url, flush=True))
live.close()
print("closed", flush=True)
"""


class Gated:
    """A server in a process of its own whose folding stands still until `release`."""

    def __init__(self, path: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        host, _, port = self.line().removeprefix("http://").partition(":")
        self.address = (host, int(port))

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def publish(self) -> str:
        """Publish an event that is not folded; return its token."""
        body = b'{"signal":"follow","actor":"ann","target":"bob"}'
        head = b"POST /v1/events HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        with connect(self.address) as client:
            client.sendall(head % len(body) + body)
            return str(json.loads(reply(client)[2])["token"])

    def release(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    @property
    def resident(self) -> int:
        """Bytes of memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[Gated]:
    server = Gated(tmp_path)
    yield server
    server.process.kill()
    server.process.communicate()


def test_a_thousand_clients_at_once_are_answered_or_refused_and_none_hangs(gated: Gated) -> None:
    token = gated.publish()
    ask = ASK.replace(b"dan", f"dan?after={token}".encode()).replace(
        b"host: a", b"host: a\r\nconnection: close"
    )
    before = gated.resident
    refused = 0

    async def one() -> int:
        nonlocal refused
        reader, writer = await asyncio.open_connection(*gated.address)
        try:
            writer.write(ask)
            status = int((await reader.readline()).split()[1])
            refused += status == 503
            if refused == 900:
                gated.release()  # so all who are refused are while a hundred wait
            await reader.read()
            return status
        finally:
            writer.close()

    async def all_of_them() -> list[int]:
        async with asyncio.timeout(PATIENCE):
            return await asyncio.gather(*(one() for _ in range(1000)))

    assert Counter(asyncio.run(all_of_them())) == {200: 100, 503: 900}
    assert gated.resident - before < 64 << 20


def test_what_is_in_flight_when_it_is_told_to_end_is_answered(gated: Gated) -> None:
    token = gated.publish()
    with connect(gated.address) as asking, connect(gated.address) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        assert reply(idle)[0] == 200
        asking.sendall(ASK.replace(b"dan", f"dan?after={token}".encode()))
        with connect(gated.address) as other:  # the one before it has been taken once this one is answered
            other.sendall(b"GET /v1/candidates/eve HTTP/1.1\r\nhost: a\r\n\r\n")
            assert reply(other)[0] == 200
        gated.process.send_signal(signal.SIGTERM)
        assert hung_up(idle)
        with pytest.raises(OSError, match="refused"):
            connect(gated.address)
        gated.release()
        status, _, body = reply(asking)
        assert (status, [one["account"] for one in json.loads(body)["candidates"]]) == (200, ["bob"])
    assert gated.line() == "closed"
    assert gated.process.wait(PATIENCE) == 0
