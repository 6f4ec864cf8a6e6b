"""What HTTP costs without us: the same uvicorn and starlette with an empty answer, and our layer without a question.

Servers are processes of their own; a few connections ask as fast as they are answered, one request at a time on each.
What is compared is requests a CPU second of the server, which the load beside it hardly moves; and, at a rate, when the
last byte of an answer is there, counted from when its request was due.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from statistics import median

import msgspec

from bench.distance import Distance, pairs
from bench.kafka import cpu_of, simulated
from bench.served import Served
from bench.server import Connections, Load, loaded

CONNECTIONS = 8
K = 20
RATE = 300  # requests a second of the open loop
ACCOUNTS = 5000  # that ask


def measure(given: argparse.Namespace) -> list[Distance]:
    """Return our layer, and whole questions, beside a bare server."""
    events = [msgspec.json.encode(event) for event in islice(simulated(given.seed), given.http_events)]
    with Served() as ours, bare() as (pid, port):
        for first in range(0, len(events), 2000):
            status, body = ours.post_lines(b"\n".join(events[first : first + 2000]))
            if status != 200:
                raise RuntimeError(f"publishing was answered with {status}: {body}")
        ours.until_folded(len(events) * 9 // 10)  # a few are late, or of deleted accounts
        own = ours.port

        def asked(port: int, pid: int, path: str) -> float:
            return requests(port, pid, path, given.http_requests)

        def empty(_: int) -> float:
            return asked(port, pid, "/")

        layer = pairs(lambda _: asked(own, ours.pid, "/healthz"), empty, given.runs)
        whole = pairs(lambda _: asked(own, ours.pid, f"/v1/candidates/u{{}}?k={K}"), empty, given.runs)
        p50: dict[int, list[float]] = {own: [], port: []}

        def paced(at: int) -> float:
            load = Load(
                rate=0.0,
                probes=0.0,
                queries=RATE,
                seconds=given.seconds,
                accounts=ACCOUNTS,
                k=K,
                seed=given.seed,
            )
            told = loaded(at, load)["query"]
            if told["odd"]:
                raise RuntimeError(f"{told['odd']} of {told['count']} requests were answered with an error")
            p50[at].append(told["p50_ms"])
            return float(told["p99_ms"])

        due = pairs(lambda _: paced(own), lambda _: paced(port), given.runs)
    by = f"uvicorn {version('uvicorn')}, starlette {version('starlette')}"
    sizes = {"connections": CONNECTIONS, "requests": given.http_requests}

    def distance(what: str, values: tuple[list[float], list[float]], bar: str = "") -> Distance:
        return Distance(
            "http",
            "retrieval",
            what,
            by,
            "an empty answer",
            "per_cpu_second",
            "rate",
            *values,
            sizes=sizes,
            limit_beside={"per_second": round(median(values[1]))},  # of one core that is busy
            bar=bar,
        )

    return [
        distance("HTTP layer, /healthz", layer),
        distance(f"HTTP question, k = {K}, {given.http_events} events before", whole, "http_most"),
        Distance(
            "http",
            "retrieval",
            f"HTTP question at {RATE}/s, k = {K}, {given.http_events} events before",
            by,
            "an empty answer",
            "p99_ms",
            "cost",
            *due,
            sizes={"rate": RATE, "seconds": given.seconds},
            beside={"p50_ms": median(p50[own])},
            limit_beside={"p50_ms": median(p50[port])},
            bar="http_300",
        ),
    ]


def requests(port: int, pid: int, path: str, count: int) -> float:
    """Ask so many times; return requests a CPU second of the process that answers."""
    statuses: set[int] = set()

    async def run() -> None:
        connections = Connections(port)
        left = iter(range(count))

        async def one() -> None:
            for number in left:
                statuses.add((await connections.ask("GET", path.format(number % ACCOUNTS)))[0])

        await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
        for _, writer in connections._idle:
            writer.close()

    before = cpu_of(pid)
    asyncio.run(run())
    spent = cpu_of(pid) - before
    if not {200} <= statuses <= {200, 404, 410}:  # some accounts are deactivated or deleted
        raise RuntimeError(f"{path} was answered with {sorted(statuses)}")
    return count / spent


@contextmanager
def bare() -> Iterator[tuple[int, int]]:
    """Run the bare server in a process; yield its pid and its port."""
    code = "from bench.limits_http import serve; serve()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.terminate()


def serve() -> None:
    """Answer everything with nothing, on the loopback, until ended."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from kithstream.streams.serve.http import listen

    async def nothing(_: Request) -> Response:
        return Response(b"", media_type="application/json")

    app = Starlette(routes=[Route(path, nothing) for path in ("/", "/v1/candidates/{account}")])
    with listen("127.0.0.1", 0) as listening:
        print(listening.getsockname()[1], flush=True)
        config = uvicorn.Config(
            app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False, server_header=False
        )
        uvicorn.Server(config).run(sockets=[listening])
