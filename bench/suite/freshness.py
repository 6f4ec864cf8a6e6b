"""Freshness: from when an event was due to be published to when it is in an answer, at fixed rates of an open loop."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

from bench.suite.given import MIX, Given, percentiles, windows
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, EngineConfig, IndexSection
from kithstream.streams.events.record import Record
from kithstream.streams.pace import run
from kithstream.streams.serve import tokens
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.simulate import simulate
from kithstream.streams.world import SimulationConfig

RATES: Final = (100, 1000, 5000, 10_000)  # events a second
BARS: Final = {1000: "visible_1k", 5000: "visible_5k"}
WINDOWS: Final = 5


@contextmanager
def filled(
    accounts: int, events: int, seed: int, index: IndexSection | None = None
) -> Iterator[tuple[Embedded, StreamClock, Iterator[Record]]]:
    """A runtime that has folded a world's first events, its clock, and the events that come next."""
    clock = StreamClock()
    coming = chain.from_iterable(simulate(SimulationConfig(seed=seed, accounts=accounts)))
    with (
        tempfile.TemporaryDirectory(prefix="kithstream-bench-") as folder,
        Embedded(
            Path(folder), Config(engine=EngineConfig(), index=index or IndexSection()), clock=clock
        ) as live,
    ):
        while events > 0:
            part = list(islice(coming, min(events, 5000)))
            clock.advance(max(event["time"] for event in part))
            live.publish(part)
            live.catch_up()
            events -= len(part)
        live.chain.index.merge()
        yield live, clock, coming


def asked(live: Embedded, most: int = 1000) -> list[str]:
    """Some of the accounts that are known."""
    return sorted(map(str, live.engine.route))[:most]


def in_process(given: Given) -> None:
    """Due to visible in process, with 50 questions a second beside; by stage: folding, encoding."""
    accounts, events = given.size(100_000, 2000), given.size(200_000, 10_000)
    seconds = given.size(10, 2)
    with filled(accounts, events, given.seed) as (live, clock, coming):
        asking = asked(live)
        live.start()
        for rate in RATES[: given.size(len(RATES), 2)]:
            rows = []
            for _ in range(given.size(WINDOWS, 2)):
                batch = list(islice(coming, rate * seconds))
                token = tokens.write({n: p.applied for n, p in enumerate(live.engine.partitions)})
                paced = run(live, clock, batch, asking, rate=rate, heard=lambda *_: None, published=token)
                if live.failed:
                    live.publish([])  # raises the cause
                folds, encodes = zip(*paced.rounds, strict=True)
                stages = {
                    **{f"fold_{name}": value for name, value in percentiles(folds, shares=(50, 99)).items()},
                    **{
                        f"encode_{name}": value
                        for name, value in percentiles(encodes, shares=(50, 99)).items()
                    },
                    **{f"query_{name}": value for name, value in percentiles(paced.queries).items()},
                    "late_ms": paced.late * 1000,
                }
                rows.append({**percentiles(paced.freshness), **stages})
            given.record(
                "due to visible, in process",
                windows(rows),
                sizes={"rate": rate, "accounts": accounts, "events_before": events, "seconds": seconds},
                mix=MIX,
                bar=BARS.get(rate, ""),
            )


def block_in_process(given: Given) -> None:
    """From publishing a block to its being in force on either side, beside 1,000 events a second."""
    accounts, events = given.size(100_000, 2000), given.size(200_000, 10_000)
    seconds, rate = given.size(20, 3), 1000
    with filled(accounts, events, given.seed) as (live, clock, coming):
        asking = asked(live)
        live.start()
        rows: dict[str, list[float]] = {"blocker": [], "blocked": []}
        stop = threading.Event()
        failures: list[BaseException] = []

        def shown(account: str, other: str, token: str) -> bool:
            answer = live.candidates(account, 1, allow=[other], after=token, deadline=30.0)
            return bool(answer.candidates)

        def block() -> None:
            for number in range(1 << 30):
                pair = f"blocker{number}", f"blocked{number}"
                for side, name in enumerate(rows):
                    pair = f"blocker{number} {side}", f"blocked{number} {side}"
                    both = pair if side == 0 else pair[::-1]
                    token = live.publish(
                        [{"signal": "follow", "actor": asking[number % 100], "target": one} for one in pair]
                    )
                    if not shown(*both, token):
                        raise RuntimeError(f"{pair} are no candidates of one another")
                    began = time.perf_counter()
                    token = live.publish([{"signal": "block", "actor": pair[0], "target": pair[1]}])
                    if shown(*both, token):
                        raise RuntimeError(f"the block of {pair} is not in force")
                    rows[name].append(time.perf_counter() - began)
                if stop.wait(0.05):
                    return

        def guarded() -> None:
            try:
                block()
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=guarded)
        thread.start()
        token = tokens.write({n: p.applied for n, p in enumerate(live.engine.partitions)})
        try:
            batch = list(islice(coming, rate * seconds))
            run(live, clock, batch, asking, rate=rate, heard=lambda *_: None, published=token)
        finally:
            stop.set()
            thread.join()
        if failures:
            raise failures[0]
    for side, times in rows.items():
        given.record(
            f"block to in force, in process, {side}",
            {**percentiles(times), "blocks": len(times)},
            sizes={"rate": rate, "accounts": accounts},
            mix=MIX,
        )


def over_http(given: Given) -> None:
    """Due to the answer's last byte over HTTP, from an empty state; the load is another process on the same cores."""
    from bench.server import Load, serve

    seconds = given.size(15, 3)
    for rate in RATES[: given.size(len(RATES), 2)]:
        load = Load(
            rate=float(rate), seconds=float(seconds), batch=max(10, rate // 100), blocks=2.0, seed=given.seed
        )
        rows: list[Mapping[str, Any]] = [serve(load, 3) for _ in range(given.size(WINDOWS, 1))]
        odd = sum(
            row["sent_in"][name]["odd"]
            for row in rows
            for name in ("publish", "query", "publish_due_to_answer")
        )
        figures = windows([_plain(row["sent_in"]["publish_due_to_answer"]) for row in rows])
        stages = windows(
            [
                {
                    "publish_p99_ms": row["sent_in"]["publish"]["p99_ms"],
                    "query_p50_ms": row["sent_in"]["query"]["p50_ms"],
                    "query_p99_ms": row["sent_in"]["query"]["p99_ms"],
                    "fold_mean_ms": row["inside"]["fold_ms"],
                    "encode_mean_ms": row["inside"]["encode_ms"],
                }
                for row in rows
            ]
        )
        sizes = {"rate": rate, "accounts": load.accounts, "batch": load.batch, "seconds": seconds}
        mix = "follows, likes, replies and clicks"
        given.record(
            "due to the answer's last byte, HTTP",
            {**figures, **stages, "odd": odd},
            sizes=sizes,
            mix=mix,
            bar=BARS.get(rate, ""),
        )
        for side in ("blocker", "blocked"):
            blocks = [row["sent_in"]["block_to_in_force"][side] for row in rows]
            given.record(
                f"block to in force, HTTP, {side}",
                {**windows([_plain(one) for one in blocks]), "odd": sum(one["odd"] for one in blocks)},
                sizes=sizes,
                mix=mix,
            )


def over_kafka(given: Given) -> None:
    """Due to the answer's last byte through a real Kafka and one worker, over HTTP and over the stream; by stage."""
    from bench.kafka_latency import latency

    seconds = given.size(20, 5)
    names = ("publish_to_visible_http", "publish_to_visible_stream", "publish_to_state_http")
    blocks = ("block_to_in_force_blocker", "block_to_in_force_blocked")
    for rate in RATES[: given.size(len(RATES), 1)]:
        rows = [
            latency(float(rate), float(seconds), 1, 4, given.seed, (*names, *blocks))
            for _ in range(given.size(WINDOWS, 1))
        ]
        for name in (*names, *blocks):
            seen = [row[name] for row in rows if row[name].get("n")]
            failed = sum(row[name]["failed"] for row in rows)
            figures = (
                {f"{key}_ms": values for key, values in windows(seen).items() if key[0] in "pm"}
                if seen
                else {}
            )
            stages = windows([{f"{k}_mean_ms": v for k, v in row["stages_mean_ms"].items()} for row in rows])
            given.record(
                f"{name.replace('_', ' ')}, Kafka",
                {**figures, "failed": failed, **(stages if name == names[0] else {})},
                sizes={"rate": rate, "accounts": 20_000, "seconds": seconds, "partitions": 4, "workers": 1},
                mix=MIX,
                bar=BARS.get(rate, "") if name in names[:2] and figures else "",
            )


def _plain(summary: Mapping[str, float]) -> dict[str, float]:
    """The times of a summary."""
    return {name: value for name, value in summary.items() if name.endswith("_ms")}
