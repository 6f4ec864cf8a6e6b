"""Freshness and query latency over HTTP, by hand: `python bench/server.py --rate 1000 --seconds 20`.

The server runs in this process on a free loopback port, the load in another one. The load is open-loop: what
is due is sent when it is due, however late the server is, and times count from when it was due. Events are
published in requests of `--batch`; a probe publishes a follow of an account that nobody knows and asks with
the token it got for that account, until the answer's last byte. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import quote

import msgspec
import numpy as np

from kithstream.__main__ import ready

MIX: Final = (("follow", 0.3), ("like", 0.4), ("reply", 0.2), ("click", 0.1))
GONE: Final = (404, 410)  # what is said of accounts that are deactivated or deleted


class Load(msgspec.Struct, frozen=True):
    """What is sent."""

    rate: float = 1000.0  # events a second
    queries: float = 50.0  # a second, without a token
    probes: float = 10.0  # a second
    seconds: float = 20.0
    batch: int = 10  # events a request
    accounts: int = 20_000
    seed: int = 0
    blocks: float = 0.0  # pairs a second, of which one blocks the other once each is a candidate of the other
    k: int = 20
    asker: str = ""  # who asks, if always the same account
    closed: int = 0  # connections that ask again as soon as they are answered, in place of all else


class Connections:
    """Kept-alive connections to one server, one request at a time on each."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
        """Return status and body."""
        reader, writer = (
            self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        )
        head = (
            f"{method} {target} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        received = await reader.readexactly(length)
        if b"connection: close" in lines:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(lines[0].split()[1]), received


class Measured:
    """Milliseconds of what was answered, and how often something else came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.odd = 0

    def summary(self) -> dict[str, float]:
        """Return count, quantiles in milliseconds, and what went wrong."""
        if not self.times:
            return {"count": 0, "odd": self.odd}
        shares = {
            f"p{share}_ms": round(float(np.percentile(self.times, share)), 2) for share in (50, 90, 95, 99)
        }
        most = round(max(self.times), 2)
        return {"count": len(self.times), **shares, "max_ms": most, "odd": self.odd}


async def every(rate: float, seconds: float, send: Callable[[int, float], Awaitable[None]]) -> None:
    """Start `send(number, due)` at its due time, whether or not those before have ended; wait for all."""
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            due = began + number / rate
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            group.create_task(send(number, due))


async def load(port: int, load: Load) -> dict[str, object]:
    """Send it all; return what was measured."""
    rng = random.Random(load.seed)
    connections = Connections(port)
    published, asked, fresh, visible = Measured(), Measured(), Measured(), Measured()
    blocker, blocked = Measured(), Measured()
    signals, weights = zip(*MIX, strict=True)

    def account() -> str:
        return f"u{int(load.accounts * rng.random() ** 2)}"

    def event() -> dict[str, str]:
        actor, target = account(), account()
        signal = rng.choices(signals, weights)[0]
        made = {"signal": signal, "actor": actor, "target": target if target != actor else f"{target}x"}
        return {**made, "item": f"p{rng.randrange(1 << 30)}"} if signal == "like" else made

    async def publish(_: int, due: float) -> None:
        body = msgspec.json.encode([event() for _ in range(load.batch)])
        status, _body = await connections.ask("POST", "/v1/events", body)
        published.times.append((time.perf_counter() - due) * 1000)
        published.odd += status != 200

    async def ask(_: int, due: float) -> None:
        status, _body = await connections.ask("GET", f"/v1/candidates/{load.asker or account()}?k={load.k}")
        asked.times.append((time.perf_counter() - due) * 1000)
        asked.odd += status not in (200, *GONE)

    async def probe(number: int, due: float) -> None:
        marker = f"marker {number}"
        body = msgspec.json.encode({"signal": "follow", "actor": account(), "target": marker})
        status, raw = await connections.ask("POST", "/v1/events", body)
        taken = time.perf_counter()
        token = msgspec.json.decode(raw).get("token", "") if status == 200 else ""
        where = f"/v1/candidates/reader?k=1&after={token}&allow={quote(marker)}"
        status, raw = await connections.ask("GET", where)
        seen = status == 200 and [c["account"] for c in msgspec.json.decode(raw)["candidates"]] == [marker]
        now = time.perf_counter()
        fresh.times.append((now - due) * 1000)
        visible.times.append((now - taken) * 1000)
        fresh.odd += not seen

    async def shown(account: str, other: str, token: str) -> bool:
        where = f"/v1/candidates/{quote(account)}?k=1&after={token}&allow={quote(other)}"
        status, raw = await connections.ask("GET", where)
        return status == 200 and bool(msgspec.json.decode(raw)["candidates"])

    async def told(*events: dict[str, str]) -> str:
        status, raw = await connections.ask("POST", "/v1/events", msgspec.json.encode(events))
        return str(msgspec.json.decode(raw).get("token", "")) if status == 200 else ""

    async def block(number: int, _: float) -> None:
        one, other = f"blocker {number}", f"blocked {number}"
        token = await told(
            *({"signal": "follow", "actor": account(), "target": name} for name in (one, other))
        )
        before = await shown(one, other, token) and await shown(other, one, token)
        began = time.perf_counter()
        token = await told({"signal": "block", "actor": one, "target": other})

        async def gone(side: Measured, *pair: str) -> None:
            side.odd += await shown(*pair, token) or not token or not before
            side.times.append((time.perf_counter() - began) * 1000)

        await asyncio.gather(gone(blocker, one, other), gone(blocked, other, one))

    began = time.perf_counter()

    async def again(number: int) -> None:
        while (due := time.perf_counter()) < began + load.seconds:
            await ask(number, due)

    if load.closed:
        await asyncio.gather(*map(again, range(load.closed)))
        seconds = time.perf_counter() - began
        return {**asked.summary(), "per_second": round(len(asked.times) / seconds, 1)}
    await asyncio.gather(
        every(load.blocks, load.seconds, block),
        every(load.rate / load.batch, load.seconds, publish),
        every(load.queries, load.seconds, ask),
        every(load.probes, load.seconds, probe),
    )
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "publish": published.summary(),
        "query": asked.summary(),
        "publish_due_to_answer": fresh.summary(),
        "published_to_answer": visible.summary(),
        "block_to_in_force": {"blocker": blocker.summary(), "blocked": blocked.summary()},
    }


def loaded(port: int, load: Load, core: int | None = None) -> dict[str, Any]:
    """Load a server from another process, on a core of its own if one is named; return what that measured."""
    words = [sys.executable, __file__, "--port", str(port), "--load", msgspec.json.encode(load).decode()]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as child:
        if core is not None:
            os.sched_setaffinity(child.pid, {core})
        output, _ = child.communicate()
    if child.returncode:
        raise RuntimeError(f"the load ended with {child.returncode}")
    found: dict[str, Any] = msgspec.json.decode(output)
    return found


def machine() -> str:
    """Name processor, cores and system."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def serve(settings: Load, partitions: int) -> dict[str, Any]:
    """Serve in this process, load from another; return what it measured."""
    from prometheus_client import CollectorRegistry

    import kithstream
    from kithstream.streams.config import Config, EngineConfig, ServeConfig
    from kithstream.streams.metrics import Metrics
    from kithstream.streams.serve.http import listen, make_server
    from kithstream.streams.serve.service import InProcess

    registry = CollectorRegistry()
    metrics = Metrics(registry)
    config = Config(
        engine=EngineConfig(partitions=partitions), serve=ServeConfig(port=0, deadline_ms=10_000.0)
    )
    with (
        tempfile.TemporaryDirectory() as directory,
        listen("127.0.0.1", 0) as listening,
        kithstream.open(directory, config=config) as live,
    ):
        live.on_pumped = metrics.pumped
        server = make_server(InProcess(live, config.serve, metrics), config.serve, metrics)

        async def run() -> dict[str, Any]:
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            measured = await asyncio.to_thread(loaded, listening.getsockname()[1], settings)
            server.should_exit = True
            await serving
            return measured

        measured = asyncio.run(run())
        if live.failed:
            live.publish([])  # raises the cause
        rounds = registry.get_sample_value("kithstream_fold_seconds_count") or 1.0
        inside = {
            "rounds": rounds,
            "fold_ms": round(
                1000 * (registry.get_sample_value("kithstream_fold_seconds_sum") or 0) / rounds, 2
            ),
            "encode_ms": round(
                1000 * (registry.get_sample_value("kithstream_encode_seconds_sum") or 0) / rounds, 2
            ),
            "records": registry.get_sample_value("kithstream_records_total", {"outcome": "accepted"}),
            "dead": registry.get_sample_value("kithstream_records_total", {"outcome": "dead"}),
            "behind_at_end": live.behind,
            "indexed": len(live.chain.index),
        }
    return {
        "machine": machine(),
        "load_1m": round(os.getloadavg()[0], 1),
        "partitions": partitions,
        **msgspec.to_builtins(settings),
        "sent_in": measured,
        "inside": inside,
    }


def main() -> None:
    """Read the arguments; with a port, be the load."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = Load()
    for field in msgspec.structs.fields(Load):
        parser.add_argument(
            f"--{field.name}", type=type(field.default), default=getattr(defaults, field.name)
        )
    parser.add_argument("--partitions", type=int, default=3)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    given = parser.parse_args()
    ready()
    if given.port is not None:
        settings = msgspec.json.decode(given.load, type=Load)
        sys.stdout.write(msgspec.json.encode(asyncio.run(load(given.port, settings))).decode())
        return
    settings = Load(*(getattr(given, field.name) for field in msgspec.structs.fields(Load)))
    print(msgspec.json.encode(serve(settings, given.partitions)).decode())


if __name__ == "__main__":
    main()
