"""A worker of the least possible application: sums by key over the transport, in a store with its offset.

python summing.py SERVERS TOPIC PARTITIONS DIRECTORY [SLOW_SECONDS]
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection
from pathlib import Path

from faust.types import TP

from kithstream.streams.config import StoreConfig
from kithstream.streams.kafka.transport import RAW, SCHEME, App, Fetch, register
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.store import RocksStore

SMALL = StoreConfig(cache_bytes=1 << 20, write_buffer_bytes=1 << 20)


class Sums:
    """Stores by partition; prints what happens, so that a test can wait for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open: dict[int, RocksStore] = {}
        self.applied: dict[int, int] = {}
        self.reseeks = 0

    async def assigned(self, partitions: Collection[TP], generation: int) -> None:
        mine = {tp.partition for tp in partitions}
        for number in set(self.open) - mine:
            self.open.pop(number).close()
            del self.applied[number]
        for number in mine - set(self.open):
            self.open[number] = RocksStore(self.folder / str(number), SMALL)
            (stored,) = self.open[number].get(Column.META, [b"applied"])
            self.applied[number] = int(stored or b"0")
        print(f"assigned {generation} {sorted(mine)}", file=sys.__stdout__, flush=True)

    async def revoked(self, partitions: Collection[TP]) -> None:
        print(f"revoked {sorted(tp.partition for tp in partitions)}", file=sys.__stdout__, flush=True)

    def position(self, tp: TP) -> int | None:
        return self.applied.get(tp.partition)

    def fold(self, number: int, fetch: Fetch) -> bool:
        """Add a fetch; False if something between the state and the fetch is missing."""
        applied = self.applied[number]
        if fetch.begins > applied:
            self.reseeks += 1
            return False
        store, changed = self.open[number], {}
        for record in fetch.records:
            if record.offset >= applied:
                held = changed.get(record.key) or store.get(Column.ROWS, [record.key])[0]
                changed[record.key] = str(int(held or b"0") + int(record.value)).encode()
        self.applied[number] = max(applied, fetch.ends)
        at = str(self.applied[number]).encode()
        store.write({Column.ROWS: changed, Column.META: {b"applied": at}})
        return True


def main(servers: str, topic: str, partitions: int, folder: Path, slow: float) -> None:
    register()
    sums = Sums(folder)
    app = App(
        topic,
        broker=f"{SCHEME}://{servers}",
        store="memory://",
        datadir=str(folder / "faust"),
        topic_allow_declare=False,
        topic_disable_leader=True,
        stream_wait_empty=False,
        web_enabled=False,
        broker_session_timeout=6,
        broker_heartbeat_interval=1,
        broker_commit_interval=0.5,
        broker_max_poll_records=200,
        stream_buffer_maxsize=partitions + 16,
        topic_partitions=partitions,
    )
    app.hot, app.stores = [topic], sums
    events = app.topic(topic, value_serializer=RAW, key_serializer="raw", partitions=partitions)

    @app.agent(events)
    async def add(stream: object) -> None:
        async for event in stream.events():  # type: ignore[attr-defined]
            for number, fetch in event.value.items():
                if number in sums.open and not sums.fold(number, fetch):
                    await app.consumer.reseek(TP(topic, number), sums.applied[number])
            await asyncio.sleep(slow)

    @app.timer(0.2)
    async def tell() -> None:
        print("at", dict(sorted(sums.applied.items())), sums.reseeks, file=sys.__stdout__, flush=True)

    sys.argv = ["summing", "worker", "-l", "warn", "--without-web"]
    app.main()


if __name__ == "__main__":
    _, servers, topic, partitions, folder, *rest = sys.argv
    main(servers, topic, int(partitions), Path(folder), float(rest[0]) if rest else 0.0)
