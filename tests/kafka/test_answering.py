"""The retrieval process: a real one beside stores that the test's own process folds, over a real broker."""

from __future__ import annotations

import asyncio
import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from answering import PATIENCE, Replies, Worker, publish, settle, until
from drive import MODEL, PARTITIONS, run
from kafka import KafkaProducer

from kithstream.models.ages import TICK
from kithstream.models.model import Model
from kithstream.models.ranker import MEASURED, Weights
from kithstream.models.train import OnlineTrainer, TrainerConfig
from kithstream.streams.config import Config, EngineConfig, IndexSection, KafkaConfig, ModelConfig
from kithstream.streams.engine.routing import Route
from kithstream.streams.errors import Unavailable
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.events.wire import Event
from kithstream.streams.kafka import wire
from kithstream.streams.kafka.feed import Feed
from kithstream.streams.kafka.names import steps
from kithstream.streams.kafka.producer import Producer
from kithstream.streams.kafka.retrieval import THREADS, Retrieval
from kithstream.streams.kafka.steps import Follower, records
from kithstream.streams.serve.access import SCOPES, new_token
from kithstream.streams.serve.answers import Question
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.state.store import RocksStore

ROUTE = Route(PARTITIONS)
EVERY = range(PARTITIONS)
CROWD = [f"u{number}" for number in range(12)]
BY = {number: [name for name in CROWD if ROUTE[name] == number] for number in EVERY}
ONE, TWO = BY[0][0], BY[1][0]
assert all(len(names) >= 2 for names in BY.values())


def event(name: str, signal: str, actor: str, **rest: Any) -> Event:
    return Event(name, signal, actor, wall_clock(), **rest)


def follows() -> list[Event]:
    """Everybody follows the next three, and some speak a language."""
    found = [
        event(f"f{at}-{step}", "follow", name, target=CROWD[(at + step) % len(CROWD)])
        for at, name in enumerate(CROWD)
        for step in (1, 2, 3)
    ]
    return [*found, *(event(f"p{name}", "profile", name, language="de") for name in CROWD[::2])]


async def answering(worker: Worker, generation: int) -> None:
    """Own every partition in a generation, with everybody's follows; return when it is ready."""
    await worker.own(EVERY, generation)
    publish(worker, follows())
    await settle(worker)
    await worker.ready()


def learned(worker: Worker, path: Path) -> str:
    """Publish a step whose ranker ranks, by any weights; return the file of the model that it leads to."""
    trainer = OnlineTrainer(Model.day_zero(0), TrainerConfig(), np.random.Generator(np.random.PCG64(0)))
    model, rng = trainer.model, np.random.default_rng(3)
    model.ranker.weights = Weights(*(rng.normal(size=w.shape) for w in model.ranker.weights))
    model.ranker.examples, model.ranker.gain = MEASURED, 0.01
    model.step = 1
    model.save(path)
    kafka = worker.drive.config.kafka
    producer = KafkaProducer(bootstrap_servers=kafka.servers)
    for key, value in records(trainer.delta(), 1, 0, 0):
        producer.send(steps(kafka.prefix, model.lineage), value, key, partition=0).get(PATIENCE)
    producer.close()
    return str(path)


@pytest.mark.parametrize("whole", [False, True], ids=["towers", "whole"])
def test_answers_equal_the_embedded_runtimes(tenant: KafkaConfig, tmp_path: Path, whole: bool) -> None:
    async def ask() -> None:
        async with Worker(tenant, tmp_path / "one", "w1") as worker:
            await worker.own(EVERY, 1)
            given = follows()
            token = publish(worker, given)
            path = learned(worker, tmp_path / "learned") if whole else ""
            tick = -1
            while True:  # once more if a minute ends meanwhile
                worker.drive.now = wall_clock()
                worker.encode_again(CROWD)
                await settle(worker)
                found = [(await worker.ask(name, after=token, k="7"))[1] for name in (*CROWD, "nobody")]
                tick = worker.drive.now // TICK
                if {(answer["as_of"] // TICK, answer["step"]) for answer in found} == {(tick, int(whole))}:
                    break
            assert sum(len(answer["candidates"]) for answer in found) > 60
            assert any(candidate["reasons"] for answer in found for candidate in answer["candidates"])
            clock = [found[0]["as_of"]]
            config = Config(
                engine=EngineConfig(partitions=PARTITIONS),
                model=ModelConfig(path=path, learn=False),
                index=IndexSection(background=False),
            )
            with Embedded(tmp_path / "embedded", config, clock=lambda: clock[0]) as live:
                live.publish(given)
                live.catch_up()
                for answer in found:
                    clock[0] = answer["as_of"]
                    same = msgspec.to_builtins(live.candidates(answer["account"], 7))
                    for field in ("account", "candidates", "as_of", "model", "step", "tick", "plan", "short"):
                        assert msgspec.json.encode(answer[field]) == msgspec.json.encode(same[field])
                told, named = 0, set[str]()
                for name in CROWD:
                    full = (await worker.ask(name, after=token, k="7", explain="full"))[1]
                    clock[0] = full["as_of"]
                    if clock[0] // TICK != tick:
                        continue  # a minute ended meanwhile
                    same = msgspec.to_builtins(live.candidates(name, 7, explain="full"))
                    assert msgspec.json.encode(full["candidates"]) == msgspec.json.encode(same["candidates"])
                    told += sum(len(candidate.get("because", ())) for candidate in full["candidates"])
                    named.update(*(candidate.get("sources", ()) for candidate in full["candidates"]))
                assert told > 12 or clock[0] // TICK != tick
                wanted = {"towers", "popular", "two_hop", "reciprocal"} if whole else set[str]()
                assert named == wanted or clock[0] // TICK != tick

    run(ask())


def test_a_token_of_a_block_covers_the_blocked_side_and_each_level_waits_for_its_own(
    tenant: KafkaConfig, tmp_path: Path
) -> None:
    async def ask() -> None:
        async with Worker(tenant, tmp_path / "one", "w1") as worker:
            status, body = await worker.get("/readyz")
            assert (status, body["error"]) == (503, "catching_up")
            await worker.own(EVERY, 1)
            publish(worker, follows())
            await settle(worker)
            await worker.ready()
            drive = worker.drive
            actor = CROWD[0]
            shown = {name: await worker.names(name) for name in CROWD if ROUTE[name] != ROUTE[actor]}
            blocked = next(name for name, names in shown.items() if actor in names)
            token = publish(worker, [event("b", "block", actor, target=blocked)])
            number = ROUTE[actor]
            status, body = await worker.ask(actor, after=token, level="state", deadline_ms="0")
            assert (status, body["error"]) == (409, "not_yet")
            waiting = asyncio.create_task(worker.names(blocked, after=token, level="state"))
            at = drive.stream.position(drive.names.engagements, number)
            assert at is not None
            await drive.stream.act(number, drive.fetch(drive.names.engagements, number, at))
            await drive.producer.settle()
            status, _ = await worker.ask(blocked, after=token, level="state", deadline_ms="100")
            assert status == 409  # its own partition has not heard of it
            assert not waiting.done()
            for one in EVERY:
                at = drive.stream.position(drive.names.edges, one)
                assert at is not None
                await drive.stream.hear(one, drive.fetch(drive.names.edges, one, at))
            assert actor not in await waiting
            assert blocked not in await worker.names(actor, after=token, level="state")
            status, _ = await worker.ask(blocked, after=token, deadline_ms="100")
            assert status == 409  # the vectors are not published
            waiting = asyncio.create_task(worker.names(blocked, after=token))
            await settle(worker)
            assert actor not in await waiting
            status, body = await worker.ask(blocked)
            assert status == 200
            assert await worker.names(blocked, after=body["token"], deadline_ms="0") is not None

    run(ask())


def test_the_token_of_a_question_goes_with_it_to_the_owner(tenant: KafkaConfig, tmp_path: Path) -> None:
    """So the owner decides by its own file; here the two workers share one."""
    made = {scope: new_token([scope]) for scope in SCOPES}
    file = tmp_path / "tokens"
    file.write_text("".join(line + "\n" for _, line in made.values()))
    bearer = {scope: f"Bearer {token}" for scope, (token, _) in made.items()}

    async def ask() -> None:
        async with (
            Worker(tenant, tmp_path / "one", "w1", tokens=str(file)) as one,
            Worker(tenant, tmp_path / "two", "w2", tokens=str(file)) as two,
        ):
            await asyncio.gather(one.own([0], 1), two.own([1, 2], 1))
            await settle(one, two)
            await one.ready()
            await two.ready()
            for worker, name in ((one, TWO), (two, ONE), (one, ONE)):
                path = f"/v1/candidates/{name}"
                status, body = await worker.get(path, authorization=bearer["query"])
                assert (status, body["account"]) == (200, name)
                for scope in ("publish", "admin"):
                    status, body = await worker.get(path, authorization=bearer[scope])
                    assert (status, body["error"]) == (403, "forbidden")

    run(ask())


def test_questions_reach_the_owner_once_and_are_refused_while_a_partition_moves(
    tenant: KafkaConfig, tmp_path: Path
) -> None:
    async def ask() -> None:
        async with (
            Worker(tenant, tmp_path / "one", "w1") as one,
            Worker(tenant, tmp_path / "two", "w2") as two,
        ):
            await asyncio.gather(one.own([0], 1), two.own([1, 2], 1))
            status, body = await one.post(
                [msgspec.to_builtins(given) | {"source": "server"} for given in follows()]
            )
            assert (status, body["accepted"]) == (200, len(follows()))
            token = body["token"]
            await settle(one, two)
            await one.ready()
            await two.ready()
            for asked, other in ((one, two), (two, one)):
                for name in CROWD:
                    own = await asked.names(name, after=token, level="state", k="5")
                    assert own == await other.names(name, after=token, level="state", k="5")
            # What the owner says is relayed as it is: a refusal, its headers, a deactivated account.
            status, body = await one.ask(TWO, after="1:999", deadline_ms="0")
            assert (status, body["error"], one.headers["retry-after"]) == (409, "not_yet", "1")
            status, body = await one.ask(TWO, k="0")
            assert (status, body["parameter"]) == (422, "k")
            status, body = await one.get(f"/v1/candidates/{TWO}", **{"kithstream-forwarded": "1"})
            assert (status, body["error"], one.headers["retry-after"]) == (503, "unavailable", "1")
            status, body = await one.get(f"/v1/candidates/{TWO}", authorization="Bearer wrong")
            assert status == 401
            # A partition that moves is nobody's until the next owner has it; then questions go there.
            await two.own([2], 2)
            await settle(one, two)

            async def refused() -> bool:
                status, body = await one.ask(TWO)
                return status == 503 and body["error"] == "unavailable"

            await until_refused(refused)
            status, _ = await two.ask(TWO)
            assert status == 503
            two.process.tell(wire.Standing(True, False, 0))
            two_refuses = False
            while not two_refuses:
                status, _ = await two.ask(BY[2][0])
                two_refuses = status == 503
            assert (await two.get("/readyz"))[0] == 503
            two.drive.stream.tell_standing()
            await two.ready()
            await one.own([0, 1], 3)
            await settle(one, two)
            assert await one.names(TWO, after=token)
            assert await two.names(TWO, after=token) == await one.names(TWO, after=token)

    async def until_refused(refused: Any) -> None:
        async with asyncio.timeout(PATIENCE):
            while not await refused():
                await asyncio.sleep(0.01)

    run(ask())


def request(name: str, account: str, worker: Worker, **rest: Any) -> bytes:
    fields = {
        "id": name,
        "account": account,
        "reply_topic": worker.drive.names.replies,
        "reply_partition": 1,
        "deadline_ms": PATIENCE * 1000,
    }
    return msgspec.json.encode({**fields, **rest})


def test_questions_over_the_stream_are_answered_or_told_why_not(tenant: KafkaConfig, tmp_path: Path) -> None:
    async def ask() -> None:
        async with Worker(tenant, tmp_path / "one", "w1") as worker:
            await worker.own([0, 1], 1)
            gone, away = BY[0][1], BY[1][1]
            token = publish(
                worker,
                [
                    *follows(),
                    event("x", "account_delete", gone),
                    event("d", "account_deactivate", away),
                ],
            )
            await worker.own(EVERY, 2)
            await settle(worker)
            await worker.ready()
            await worker.own([0, 1], 3)
            now = wall_clock() // 1000
            after = {"after": token, "level": "state"}
            third = BY[2][0]
            bad = request("bad", ONE, worker, k="many")
            asked = [
                (now, request("good", ONE, worker, k=3, **after)),
                (now, request("not_yet", ONE, worker, after="0:99999", deadline_ms=300.0)),
                (now, request("gone", gone, worker, **after)),
                (now, request("deactivated", away, worker, **after)),
                (now, request("k", ONE, worker, k=0)),
                (now, request("token", ONE, worker, after="x")),
                (now, bad),
                (now, request("unavailable", third, worker)),
                (now - 10_000, request("late", ONE, worker, deadline_ms=1000.0)),
                (now, request("astray", ONE, worker, reply_topic=worker.drive.names.engagements)),
                (now, request("nowhere", ONE, worker, reply_partition=99)),
                (now, b"{"),
                (now, b'{"id": "half"}'),
                (now, request("last", ONE, worker, k=3, **after)),
            ]
            before = len(worker.drive.everywhere(worker.drive.names.engagements))
            worker.drive.stream.ask(0, asked)
            replies = Replies(worker, 1)
            for name in ("good", "last"):
                reply = await replies.of(name)
                assert reply.failure is None
                assert reply.answer is not None
                assert reply.answer.account == ONE
                assert 0 < len(reply.answer.candidates) <= 3
            for name in ("not_yet", "gone", "deactivated", "unavailable"):
                failure = (await replies.of(name)).failure
                assert failure is not None
                assert failure.error == name
            for name in ("k", "token", "bad"):
                reply = await replies.of(name)
                assert reply.answer is None
                assert reply.failure is not None
                assert (reply.failure.error, bool(reply.failure.message)) == ("invalid", True)
            await until_told(worker, "kithstream_requests_dropped_total 5.0")
            assert {"late", "astray", "nowhere", "half"} & set(replies.all()) == set()
            assert len(worker.drive.everywhere(worker.drive.names.engagements)) == before

    run(ask())


async def until_told(worker: Worker, line: str) -> None:
    """Wait for a line of the metrics."""
    async with asyncio.timeout(PATIENCE):
        while line not in (await worker.get("/metrics"))[1].decode().splitlines():
            await asyncio.sleep(0.01)


def test_fresh_lists_are_pushed_and_withdrawn(tenant: KafkaConfig, tmp_path: Path) -> None:
    async def ask() -> None:
        async with Worker(tenant, tmp_path / "one", "w1", push_rate=1000.0) as worker:
            await worker.own(EVERY, 1)
            publish(worker, follows())
            await settle(worker)
            await worker.ready()
            names, drive = worker.drive.names, worker.drive

            def pushed(account: str) -> list[wire.Pushed | None]:
                decode = msgspec.json.Decoder(wire.Pushed).decode
                records = drive.read(names.candidates, ROUTE[account])
                return [
                    decode(record.value) if record.value is not None else None
                    for record in records
                    if record.key == account.encode()
                ]

            await until(lambda: all(pushed(name) for name in CROWD), "a list for everybody")
            first = pushed(ONE)[-1]
            assert first is not None
            assert first.valid_until - first.as_of == 3_600_000_000
            assert first.token
            shown = first.candidates[0].account
            publish(worker, [event("b", "block", shown, target=ONE)])
            await settle(worker)
            await until(lambda: len(pushed(ONE)) > 1, "another list")
            second = pushed(ONE)[-1]
            assert second is not None
            assert shown not in {candidate.account for candidate in second.candidates}
            publish(worker, [event("n", "like", ONE, target=TWO, item="i")])  # changes no list
            publish(worker, [event("d", "account_deactivate", TWO)])
            await settle(worker)
            await until(lambda: pushed(TWO)[-1] is None, "the list to be withdrawn")
            lists = [[c.account for c in one.candidates] for one in pushed(ONE) if one is not None]
            assert all(a != b for a, b in pairwise(lists))

    run(ask())


def test_an_owner_that_knows_too_low_a_generation_is_told_when_it_opens(
    tenant: KafkaConfig, tmp_path: Path
) -> None:
    """Its store is an older one and the group was forgotten; it has nothing to encode that would tell."""

    async def own() -> None:
        async with Worker(tenant, tmp_path / "one", "w1") as one:
            await one.own(EVERY, 9)
            publish(one, follows())
            await settle(one)
        async with Worker(tenant, tmp_path / "two", "w2") as two:
            await two.own((), 1)
            await two.ready()  # it has read all that there is
            await two.drive.own(EVERY, 3)
            await until(lambda: two.generations == [9] * len(EVERY), "to be told of the greater generation")
            assert two.stale == []

    run(own())


def test_a_partition_that_is_let_go_of_is_not_opened_again_by_a_word_of_zombies(
    tenant: KafkaConfig, tmp_path: Path
) -> None:
    async def own() -> None:
        async with Worker(tenant, tmp_path / "one", "w1") as one:
            await answering(one, 9)
            process = one.process._process
            assert process is not None
            os.kill(process.pid, signal.SIGSTOP)  # so that letting go takes until the word has come
            leaving = asyncio.create_task(one.drive.stream.assigned(EVERY[1:], 10))
            await until(lambda: bool(one.process._closed), "a partition to be let go of")
            one.drive.stream.stale(wire.Stale(EVERY[0], [], 40))
            os.kill(process.pid, signal.SIGCONT)
            await leaving
            assert set(one.process._opened) == set(EVERY[1:])
            gone = next(name for name in CROWD if ROUTE[name] == EVERY[0])
            status, body = await one.ask(gone)
            assert status == 503, body

    run(own())


def test_an_owner_whose_index_comes_after_its_partitions_is_told_of_a_greater_generation(
    tenant: KafkaConfig, tmp_path: Path
) -> None:
    """What was written under it lies before the snapshot that the index goes on from, and is not read again."""

    async def own() -> None:
        async with Worker(tenant, tmp_path / "one", "w1", snapshot_seconds=0.1) as one:
            await answering(one, 9)
            await until(lambda: any((tmp_path / "one").glob("index/*/CURRENT")), "a snapshot")
            one.generations.clear()
            for number, opened in one.process._opened.items():  # as one that was restored would say
                one.process._opened[number] = msgspec.structs.replace(opened, generation=3)
            dead = one.process._process
            assert dead is not None
            os.kill(dead.pid, signal.SIGKILL)
            await until(lambda: one.generations != [], "to be told of the greater generation")
            assert set(one.generations) == {9}

    run(own())


def test_a_zombies_vectors_are_mended_even_by_an_owner_that_comes_later(
    tenant: KafkaConfig, tmp_path: Path
) -> None:
    async def ask() -> None:
        async with Worker(tenant, tmp_path / "one", "w1") as one:
            await answering(one, 5)
            records = one.drive.everywhere(one.drive.vectors)
            value = next(r.value for r in records if r.key == ONE.encode())
            vector = msgspec.msgpack.decode(value, type=wire.Vector)
            vector.generation, vector.vector = 4, b"\0" * len(vector.vector)
            zombie = msgspec.msgpack.encode(vector)
            score = await one.ask(CROWD[5], allow=ONE)
            await (await one.drive.producer.send(one.drive.vectors, 0, zombie, key=ONE.encode()))
            await until(lambda: one.stale == [ONE], "the zombie to be told of")
            assert await one.ask(CROWD[5], allow=ONE) is not None
            again = await one.ask(CROWD[5], allow=ONE)
            assert again[1]["candidates"][0]["account"] == score[1]["candidates"][0]["account"] == ONE
            assert again[1]["candidates"][0]["score"] != 0.0
            # The process dies before the account is encoded again; the next has read it all before it owns it.
            one.url = ""
            one.stale.clear()
            one.process._opened.clear()
            dead = one.process._process
            assert dead is not None
            os.kill(dead.pid, signal.SIGKILL)
            await until(
                lambda: one.process.restarts == 1 and one.process._process is not dead, "a new process"
            )
            await until(lambda: one.url != "", "the new process to take connections")
            await one.ready()
            assert one.stale == []
            await one.own(EVERY, 6)
            await until(lambda: one.stale == [ONE], "the zombie to be told of by the next process")
            one.encode_again(one.stale)
            await settle(one)
            await until_names(one)

    async def until_names(one: Worker) -> None:
        async with asyncio.timeout(PATIENCE):
            while (await one.ask(CROWD[5], allow=ONE))[0] != 200:
                await asyncio.sleep(0.01)
            while await one.names(CROWD[5], allow=ONE) != [ONE]:
                await asyncio.sleep(0.01)

    run(ask())


def test_nothing_is_answered_from_half_an_index(tmp_path: Path) -> None:
    """However well the stream process stands: the vectors have not been followed to their end."""

    async def ask() -> None:
        config = Config(engine=EngineConfig(partitions=1), index=IndexSection(background=False))
        RocksStore(tmp_path / "0", config.store).close()
        told: list[wire.ToStream] = []
        producer = Producer(config.kafka, told.append)  # type: ignore[arg-type]  # never started
        retrieval = Retrieval(config, "w1", MODEL.lineage, tmp_path / "own", told.append, producer)
        await retrieval.hear(wire.Standing(False, True, 0))
        await retrieval.hear(wire.Opened(0, str(tmp_path / "0"), 1))
        assert retrieval.readiness().missing.startswith("The index has not caught up")
        with pytest.raises(Unavailable, match="has not caught up"):
            await retrieval.answer(Question("ann"), 1.0)
        feed = Feed(config, retrieval.reading, MODEL, Follower(MODEL), lambda feed, fed: None)
        retrieval.feeds[MODEL.lineage] = feed
        retrieval._switch()
        assert retrieval.served is None
        feed.caught_up = True
        retrieval._switch()
        assert told[-1] == wire.Switched(MODEL.lineage)
        assert (await retrieval.answer(Question("ann"), 1.0)).candidates == []
        for one in range(THREADS):
            await retrieval._answering.acquire_on_behalf_of(one)
        with pytest.raises(Unavailable, match="too many questions"):  # not `not_yet`: it has no token
            await retrieval.answer(Question("ann"), -1.0)
        for one in range(THREADS):
            retrieval._answering.release_on_behalf_of(one)
        await retrieval.hear(wire.Standing(True, True, 0))
        with pytest.raises(Unavailable, match="being moved"):
            await retrieval.answer(Question("ann"), 1.0)
        await retrieval.close()

    asyncio.run(ask())


@pytest.mark.parametrize("how", ["eof", "sigterm"])
def test_the_process_ends_with_its_stream_process(tenant: KafkaConfig, tmp_path: Path, how: str) -> None:
    async def end() -> None:
        async with Worker(tenant, tmp_path / "one", "w1") as worker:
            process, channel = worker.process._process, worker.process._channel
            assert process is not None
            assert channel is not None
            worker.process._stopping = True
            if how == "eof":
                await channel.close()
            else:
                process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE):
                assert await process.wait() == 0

    run(end())
