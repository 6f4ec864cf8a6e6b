"""Workers whose stream process is in the test's own hands: real brokers, stores, and retrieval processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
from drive import MODEL, Drive

from kithstream.streams.config import IndexSection, KafkaConfig, ServeConfig, WorkerConfig
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.events.wire import Event
from kithstream.streams.kafka import wire
from kithstream.streams.kafka.worker import RetrievalProcess
from kithstream.streams.serve import tokens

PATIENCE = 30.0  # seconds in which what must come about comes about
SECRET = "s3cret"


class Worker:
    """A stream process driven by the test, and the retrieval process that it started."""

    def __init__(
        self,
        kafka: KafkaConfig,
        folder: Path,
        name: str,
        *,
        push_rate: float = 0.0,
        tokens: str = "",
        snapshot_seconds: float = 300.0,
    ) -> None:
        worker = WorkerConfig(
            session_seconds=600.0, push_rate=push_rate, push_seconds=0.0, push_valid_seconds=3600.0
        )
        self.drive = Drive(kafka, folder, worker=worker, now=wall_clock(), name=name)
        self.drive.config = msgspec.structs.replace(
            self.drive.config,
            serve=ServeConfig(port=0, token=SECRET, tokens=tokens, deadline_ms=PATIENCE * 1000),
            index=IndexSection(background=False, snapshot_seconds=snapshot_seconds),
        )
        self.stale: list[str] = []
        self.generations: list[int] = []  # that it was told of as greater than a writer's
        self.url = ""
        self.process = RetrievalProcess(
            self.drive.config, name, MODEL.lineage, self._is_stale, lambda lineage: None, self._serves
        )
        self.drive.listener = self.process  # type: ignore[assignment]

    def _is_stale(self, message: wire.Stale) -> None:
        self.stale += message.accounts
        self.generations.append(message.generation)

    def encode_again(self, accounts: Iterable[str]) -> None:
        """What the stream process does when it is told of stale vectors."""
        for account in accounts:
            self.drive.stream.stale(wire.Stale(self.drive.stream.shards.route[account], [account], 0))

    def _serves(self, url: str) -> None:
        self.url = url

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.process.run())
        await self.drive.__aenter__()
        self._session = aiohttp.ClientSession(headers={"authorization": f"Bearer {SECRET}"})
        await until(lambda: self.url != "", "HTTP to take connections")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self.process.stop()
        await self._running
        await self.drive.__aexit__(kind, error, trace)

    async def own(self, numbers: Collection[int], generation: int) -> None:
        """Be assigned partitions, and say so."""
        await self.drive.own(numbers, generation)
        self.drive.stream.tell_standing()

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        """Return status and decoded body."""
        async with self._session.get(self.url + path, headers=headers) as reply:
            self.headers = reply.headers
            return reply.status, await decoded(reply)

    async def post(self, body: object) -> tuple[int, Any]:
        """Publish; return status and decoded body."""
        async with self._session.post(self.url + "/v1/events", json=body) as reply:
            return reply.status, await decoded(reply)

    async def ask(self, account: str, **query: str) -> tuple[int, Any]:
        """Ask over HTTP."""
        pairs = "&".join(f"{name}={value}" for name, value in query.items())
        return await self.get(f"/v1/candidates/{account}?{pairs}")

    async def names(self, account: str, **query: str) -> list[str]:
        """Return the candidates that an account is given."""
        status, body = await self.ask(account, **query)
        assert status == 200, body
        return [candidate["account"] for candidate in body["candidates"]]

    async def ready(self) -> None:
        """Wait until the process says that it is ready."""

        async def is_ready() -> bool:
            return (await self.get("/readyz"))[0] == 200

        await until_async(is_ready, "to be ready")


async def decoded(reply: aiohttp.ClientResponse) -> Any:
    raw = await reply.read()
    return msgspec.json.decode(raw) if reply.content_type == "application/json" else raw


async def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for a condition; fails when it does not come about."""

    async def looked() -> bool:
        return holds()

    await until_async(looked, what)


async def until_async(holds: Callable[[], Any], what: str) -> None:
    """Wait for a condition that is awaited."""
    end = time.monotonic() + PATIENCE
    while not await holds():
        assert time.monotonic() < end, f"waited {PATIENCE:g} s for {what}"
        await asyncio.sleep(0.01)  # between two looks; the machine has other work


async def settle(*workers: Worker) -> None:
    """Fold and publish what the topics hold, across workers, until nothing moves."""
    for _ in range(3):  # events, frames, replies to frames
        for worker in workers:
            await worker.drive.settle()
    for worker in workers:
        worker.drive.stream.tell_standing()


def publish(worker: Worker, given: Iterable[Event]) -> str:
    """Publish events; return the token of everything that the topic holds then."""
    worker.drive.publish(given)
    topic = worker.drive.names.engagements
    everywhere = range(worker.drive.config.engine.partitions)
    ends = {number: len(worker.drive.read(topic, number)) for number in everywhere}
    return tokens.write(ends)


class Replies:
    """The replies on a partition of their topic."""

    def __init__(self, worker: Worker, partition: int) -> None:
        self._worker = worker
        self._partition = partition

    def all(self) -> dict[str, wire.Reply]:
        drive = self._worker.drive
        decode = msgspec.json.Decoder(wire.Reply).decode
        found = [decode(record.value) for record in drive.read(drive.names.replies, self._partition)]
        assert len({reply.id for reply in found}) == len(found)
        return {reply.id: reply for reply in found}

    async def of(self, name: str) -> wire.Reply:
        """Wait for a reply."""
        await until(lambda: name in self.all(), f"the reply to {name}")
        return self.all()[name]
