"""More load than can be taken, by hand: `python -m bench.overload --through http|kafka --seconds 600 --factor 3`.

First the rate is measured at which events become visible, then `--factor` times as many are sent open-loop: what is due
is sent when it is due. Prints one JSON object: what was accepted and what was put off (429 and 503, all with
Retry-After), the greatest lag, memory, and after the end how long the lag takes to drain and how long it is until a
publish is visible within 100 ms again. On Kafka a consumer of pushed lists reads on beside it, slowly.
Exit status 1 if an accepted event is neither folded nor a dead letter (late, of a deleted account), a reply is of
another kind, or freshness does not come back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count, islice
from pathlib import Path
from typing import Any

import httpx
import msgspec

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "kafka")]

from workers import Worker  # noqa: E402

from bench.kafka import FULL, cluster, simulated, told  # noqa: E402
from bench.machine import machine, resident, say  # noqa: E402
from bench.served import Served  # noqa: E402
from kithstream.streams.clients import CandidateConsumer, EventPublisher  # noqa: E402

PARTITIONS = 4
LINES = 50  # events of one request
FRESH = 0.1  # seconds from publish to visible that are as usual
PATIENCE = 1800.0  # seconds for the lag to drain
ACCEPTED = 'kithstream_records_total{outcome="accepted"}'
DELETED = 'kithstream_dead_letters_total{reason="deleted"}'


class Watch:
    """Looks at lag and memory while load runs."""

    def __init__(self, behind: Callable[[], float], memory: Callable[[], int]) -> None:
        self.lag = 0.0
        self.memory = [memory()]
        self._behind, self._memory = behind, memory
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            self.lag = max(self.lag, self._behind())
            self.memory.append(self._memory())

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def told(self) -> dict[str, object]:
        """Memory in MiB."""
        found = self.memory
        return {"begin": found[0], "middle": found[len(found) // 2], "greatest": max(found), "end": found[-1]}


def world(seed: int) -> Iterator[dict[str, object]]:
    """Events of a simulated world, without their times: whoever takes them stamps them."""
    for event in simulated(seed):
        yield {name: value for name, value in event.items() if name != "time"}


def bodies(events: Iterator[dict[str, object]]) -> Iterator[bytes]:
    """Requests of lines."""
    while part := list(islice(events, LINES)):
        yield b"\n".join(map(msgspec.json.encode, part))


def until(holds: Callable[[], bool], what: str) -> float:
    """Wait; return the seconds."""
    say(f"waiting {what}")
    began = time.perf_counter()
    while not holds():
        if time.perf_counter() - began > PATIENCE:
            raise SystemExit(f"waited {PATIENCE:g} s {what}")
        time.sleep(0.05)
    return time.perf_counter() - began


def recovered(probe: Callable[[], float]) -> tuple[float, float]:
    """Probe until a publish is visible as fast as usual; return the seconds until then, and the last probe's."""
    began = told = time.perf_counter()
    while (took := probe()) > FRESH and time.perf_counter() - began < PATIENCE:
        if time.perf_counter() - told > 10:
            told = time.perf_counter()
            say(f"{told - began:.0f} s after the load a publish is visible after {1000 * took:.0f} ms")
    return time.perf_counter() - began, took


def over_http(factor: float, seconds: float, warm: int, seed: int) -> dict[str, object]:
    """An embedded runtime behind its server."""
    with Served() as server:
        events = world(seed)
        sent = 0

        def folded() -> int:
            return int(server.figure(ACCEPTED))

        def refused() -> int:
            return int(server.figure(DELETED))

        def settled() -> int:
            return folded() + refused()

        began = time.perf_counter()
        for body in islice(bodies(events), warm // LINES):
            assert server.post_lines(body)[0] == 200
            sent += LINES
        until(lambda: settled() >= sent, "for the first events")
        capacity = sent / (time.perf_counter() - began)
        say(f"{capacity:.0f} events/s are taken; {factor:g} times as many for {seconds:g} s")
        watch = Watch(lambda: server.figure("kithstream_behind_records"), lambda: resident(server.pid) >> 20)
        with watch:
            statuses, taken, late, spent = asyncio.run(
                _load(server.url, bodies(events), factor * capacity, seconds)
            )
        sent += taken

        def probe() -> float:
            nonlocal sent
            name, began = f"probe-{uuid.uuid4().hex}", time.perf_counter()
            event = {"signal": "follow", "actor": name, "target": "u1"}
            status, body = server.post_json(msgspec.json.encode(event))
            if status != 200:
                return PATIENCE
            sent += 1
            asked = f"/v1/candidates/{name}?after={body['token']}&deadline_ms=1000"
            return time.perf_counter() - began if server.ask(asked)[0] == 200 else PATIENCE

        fresh, last = recovered(probe)
        drained = until(lambda: not server.figure("kithstream_behind_records"), "for the lag to drain")
        until(lambda: settled() >= sent, "for every accepted event")
        return {
            "capacity_events_per_s": round(capacity),
            "offered_events_per_s": round(factor * capacity),
            "sent_events_per_s": round(LINES * statuses.total() / spent),
            "replies": {str(status): count for status, count in statuses.items()},
            "accepted": sent,
            "folded": folded(),
            "dead_letters": refused(),
            "late_ms": round(late * 1000),
            "greatest_lag": int(watch.lag),
            "memory_mib": watch.told(),
            "fresh_again_s": round(fresh, 2),
            "last_probe_ms": round(last * 1000, 1),
            "drained_s": round(fresh + drained, 2),
            "lost": sent - settled(),
            "wrong": sum(count for status, count in statuses.items() if status not in (200, 429, 503)),
        }


async def _load(
    url: str, source: Iterator[bytes], rate: float, seconds: float
) -> tuple[Counter[int], int, float, float]:
    """Send at a rate. Return replies by status (-1: put off without Retry-After), events taken, lateness, seconds."""
    statuses: Counter[int] = Counter()
    taken, late, flying = 0, 0.0, set[asyncio.Task[None]]()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    headers = {"content-type": "application/x-ndjson"}
    async with httpx.AsyncClient(base_url=url, timeout=120.0, limits=limits) as client:

        async def post(body: bytes) -> None:
            nonlocal taken
            try:
                reply = await client.post("/v1/events", content=body, headers=headers)
            except httpx.HTTPError:
                statuses[0] += 1
                return
            if reply.status_code == 200:
                taken += reply.json()["accepted"]
            put_off = reply.status_code in (429, 503)
            statuses[-1 if put_off and "retry-after" not in reply.headers else reply.status_code] += 1

        begin = time.perf_counter()
        for turn in count():
            due = begin + turn * LINES / rate
            if max(due, time.perf_counter()) - begin > seconds:  # it lasts as long as it is to, late or not
                break
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            late = max(late, time.perf_counter() - due)
            task = asyncio.create_task(post(next(source)))
            flying.add(task)
            task.add_done_callback(flying.discard)
        spent = time.perf_counter() - begin
        while flying:
            await asyncio.wait(list(flying))
    return statuses, taken, late, spent


def over_kafka(factor: float, seconds: float, warm: int, seed: int) -> dict[str, object]:
    """One worker; its brokers keep what it has not come to."""
    with ExitStack() as stack:
        kafka = cluster(stack, PARTITIONS)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kithstream-bench-")))
        worker = stack.enter_context(Worker(kafka, folder / "worker", PARTITIONS, FULL))
        worker.ready()
        publisher = stack.enter_context(EventPublisher(kafka, linger=0.005))
        events, sent = world(seed), 0

        def publish(number: int) -> str:
            nonlocal sent
            sent += number
            return publisher.publish(list(islice(events, number)))

        def visible(account: str, token: str) -> bool:
            return bool(worker.get(f"/v1/candidates/{account}?after={token}&deadline_ms=1000")[0] == 200)

        def folded() -> int:
            return int(max(told(worker, ACCEPTED), 0))

        def refused() -> int:
            return int(max(told(worker, DELETED), 0))

        def settled() -> int:
            return folded() + refused()

        publish(1000)
        began = time.perf_counter()
        token = publish(warm)
        until(lambda: visible("nobody", token), "for the first events")
        capacity = warm / (time.perf_counter() - began)
        say(f"{capacity:.0f} events/s are taken; {factor:g} times as many for {seconds:g} s")
        stop, lists = threading.Event(), [0]

        def read_slowly() -> None:
            with CandidateConsumer(kafka) as pushed:
                while not stop.is_set():
                    lists[0] += len(list(islice(pushed.poll(1.0), 1)))
                    stop.wait(0.5)

        reader = threading.Thread(target=read_slowly)
        reader.start()

        def load() -> float:
            nonlocal sent
            begin, late, rate = time.perf_counter(), 0.0, factor * capacity
            each = max(int(rate / 100), 1)
            for turn in count():
                due = begin + turn * each / rate
                if max(due, time.perf_counter()) - begin > seconds:
                    break
                time.sleep(max(due - time.perf_counter(), 0))
                late = max(late, time.perf_counter() - due)
                publisher.send(list(islice(events, each)))
                sent += each
            publisher.flush()
            return late

        watch = Watch(lambda: sent - settled(), lambda: resident(worker.pid, worker.retrieval) >> 20)
        with watch:
            late = load()

        def probe() -> float:
            nonlocal sent
            name, began = f"probe-{uuid.uuid4().hex}", time.perf_counter()
            token = publisher.publish([{"signal": "follow", "actor": name, "target": "u1"}])
            sent += 1
            return time.perf_counter() - began if visible(name, token) else PATIENCE

        fresh, last = recovered(probe)
        until(lambda: settled() >= sent, "for every event")
        stop.set()
        reader.join()
        done, dead, pushed = folded(), refused(), int(told(worker, "kithstream_pushed_total"))
        worker.stop()
        return {
            "capacity_events_per_s": round(capacity),
            "offered_events_per_s": round(factor * capacity),
            "accepted": sent,
            "folded": done,
            "dead_letters": dead,
            "late_ms": round(late * 1000),
            "greatest_lag": int(watch.lag),
            "memory_mib": watch.told(),
            "fresh_again_s": round(fresh, 2),
            "last_probe_ms": round(last * 1000, 1),
            "lists_pushed": pushed,
            "lists_read_slowly": lists[0],
            "lost": sent - done - dead,
            "wrong": 0,
        }


def main() -> None:
    """Measure, and fail where something accepted is lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--through", choices=("http", "kafka"), default="http")
    parser.add_argument("--factor", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--warm", type=int, default=20_000, help="Events by which the rate is measured.")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    run = over_http if given.through == "http" else over_kafka
    found: dict[str, Any] = run(given.factor, given.seconds, given.warm, given.seed)
    asked = {"through": given.through, "factor": given.factor, "seconds": given.seconds, "seed": given.seed}
    print(json.dumps({**asked, **found, "machine": machine()}, indent=1))
    if found["lost"] or found["wrong"] or found["last_probe_ms"] > FRESH * 1000:
        sys.exit(1)


if __name__ == "__main__":
    main()
