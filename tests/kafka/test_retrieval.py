from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from threading import Event
from typing import Protocol

import msgspec
import pytest

from kithstream.streams.clients import RetrievalClient
from kithstream.streams.config import KafkaConfig
from kithstream.streams.engine.routing import Route
from kithstream.streams.errors import KithstreamError, NotYet, Unanswerable, Unavailable, Unreachable
from kithstream.streams.kafka.local import LocalKafka
from kithstream.streams.kafka.names import topics
from kithstream.streams.kafka.wire import Failure, Reply, Request
from kithstream.streams.serve.answers import Answer, Because, Candidate, Question

PATIENCE = 20.0  # seconds: what must be answered is; only a hang is not
Says = Callable[[Request], bytes | Reply | None]
Until = Callable[[Callable[[], bool]], None]


class Running(Protocol):
    asked: list[Request]
    keys: list[tuple[int, bytes]]

    def send(self, reply: bytes | Reply) -> None: ...

    def __enter__(self) -> Running: ...

    def __exit__(self, *_: object) -> None: ...


Respond = Callable[[Says], Running]


def answer(request: Request) -> Answer:
    because = [Because("eve", {"like": 2}, 9, 1.0, 3, 0.25, 2)]
    candidates = [Candidate(f"for-{request.account}", 1.25, ["new"], because), Candidate("plain", 1.0, [])]
    return Answer(request.account, candidates, 7, "m", 3, 2, "0:5", "exact", short=None)


def answers(request: Request) -> Reply:
    return Reply(request.id, answer=answer(request))


def fails(code: str) -> Says:
    return lambda request: Reply(request.id, failure=Failure(code, f"it is {code}"))


def test_an_answer_comes_back_whole(tenant: KafkaConfig, respond: Respond) -> None:
    with respond(answers) as responder, RetrievalClient(tenant) as client:
        found = client.ask(
            "eve",
            7,
            after="0:4,2:9",
            level="state",
            exclude=["x"],
            allow=["y", "z"],
            languages=["pt-BR"],
            reasons=3,
            explain="full",
            deadline=PATIENCE,
        )
        request = responder.asked[0]
        plain = client.ask("bob", deadline=PATIENCE)
    assert found == answer(request)
    assert plain.account == "bob"
    assert request == Request(
        id=request.id,
        account="eve",
        reply_topic=topics(tenant.prefix).replies,
        reply_partition=request.reply_partition,
        k=7,
        after="0:4,2:9",
        level="state",
        exclude=["x"],
        allow=["y", "z"],
        languages=["pt-BR"],
        reasons=3,
        explain="full",
        deadline_ms=PATIENCE * 900,  # a tenth is the reply's own way back
    )
    route = Route(3)
    assert responder.keys == [(route["eve"], b"eve"), (route["bob"], b"bob")]


def test_many_threads_ask_at_once_and_each_gets_its_own_answer(tenant: KafkaConfig, respond: Respond) -> None:
    held: list[Request] = []

    def backwards(request: Request) -> bytes | None:
        held.append(request)
        return None

    with respond(backwards) as responder, RetrievalClient(tenant) as client:
        with ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(client.ask, f"u{n}", deadline=PATIENCE) for n in range(16)]
            futures = [client.submit(Question(f"v{n}"), deadline=PATIENCE) for n in range(200)]
            while len(held) < 216:
                assert not any(future.done() for future in asked)
            for request in reversed(held):
                responder.send(answers(request))
            names = [future.result().account for future in asked]
        assert names == [f"u{n}" for n in range(16)]
        assert [future.result().account for future in futures] == [f"v{n}" for n in range(200)]
        assert len({request.id for request in responder.asked}) == 216


def test_clients_that_share_a_partition_leave_each_others_replies(
    tenant: KafkaConfig, respond: Respond
) -> None:
    with (
        respond(answers),
        RetrievalClient(tenant, reply_partition=1) as one,
        RetrievalClient(tenant, reply_partition=1) as other,
    ):
        futures = [(one, other)[n % 2].submit(Question(f"u{n}"), deadline=PATIENCE) for n in range(40)]
        assert [future.result().account for future in futures] == [f"u{n}" for n in range(40)]
        assert (one.late, other.late) == (0, 0)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("not_yet", NotYet),
        ("gone", Unanswerable),
        ("deactivated", Unanswerable),
        ("invalid", ValueError),
        ("unavailable", Unavailable),
        ("internal", Unavailable),
        ("of_a_later_version", Unavailable),
    ],
)
def test_a_failure_raises_what_the_caller_can_decide_on(
    tenant: KafkaConfig, respond: Respond, code: str, error: type[Exception]
) -> None:
    with respond(fails(code)), RetrievalClient(tenant) as client:
        with pytest.raises(error, match=f"it is {code}") as told:
            client.ask("eve", deadline=PATIENCE)
        if isinstance(told.value, Unanswerable):
            assert told.value.gone == (code == "gone")
        assert isinstance(told.value, KithstreamError) == (code != "invalid")


def test_a_passed_deadline_is_unavailable_and_its_late_reply_is_let_go(
    tenant: KafkaConfig, respond: Respond, until: Until
) -> None:
    held: list[Request] = []

    def silent(request: Request) -> None:
        held.append(request)

    with respond(silent) as responder, RetrievalClient(tenant) as client:
        with pytest.raises(Unavailable, match=r"no answer came within 0\.05 s"):
            client.ask("eve", deadline=0.05)
        with pytest.raises(Unavailable, match=r"no answer came within 0\.06 s"):
            client.submit(Question("eve"), deadline=0.06).result(PATIENCE)
        until(lambda: len(held) == 2)
        for request in held:
            responder.send(answers(request))
        until(lambda: client.late == 2)
        future = client.submit(Question("bob"), deadline=PATIENCE)
        until(lambda: len(held) == 3)
        responder.send(answers(held[2]))
        assert future.result().account == "bob"


def test_a_reply_that_cannot_be_read_stops_nothing(tenant: KafkaConfig, respond: Respond) -> None:
    def poisoned(request: Request) -> bytes | Reply:
        match request.account:
            case "whose":
                return b"{"
            case "broken":
                return msgspec.json.encode({"id": request.id, "answer": {"account": 7}})
            case "empty":
                return Reply(request.id)
            case _:
                return answers(request)

    with respond(poisoned), RetrievalClient(tenant) as client:
        with pytest.raises(Unavailable, match="no answer came within"):
            client.ask("whose", deadline=0.2)
        with pytest.raises(Unavailable, match="cannot be read"):
            client.ask("broken", deadline=PATIENCE)
        with pytest.raises(Unavailable, match="internal: an empty reply"):
            client.ask("empty", deadline=PATIENCE)
        assert client.ask("good", deadline=PATIENCE).account == "good"


def test_replies_of_before_are_not_read(tenant: KafkaConfig, respond: Respond) -> None:
    """With the same random numbers a second client has the first one's ids."""
    with respond(answers), RetrievalClient(tenant, random=Random(1)) as first:
        assert first.ask("eve", deadline=PATIENCE).account == "eve"
    started = Event()

    def late(request: Request) -> Reply | None:
        started.set()
        return None

    with respond(late), RetrievalClient(tenant, random=Random(1)) as second:
        future = second.submit(Question("bob"), deadline=0.3)
        with pytest.raises(Unavailable):
            future.result(PATIENCE)
        assert second.late == 0


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question("eve", k=0), "k is 0"),
        (Question("eve", k=1001), "k is 1001"),
        (Question(""), "account is ''"),
        (Question("a\0b"), "account"),
        (Question("\ud800"), "surrogates"),
        (Question("eve", after="9:1"), "3 partitions"),
        (Question("eve", languages=["!"]), "languages"),
    ],
)
def test_what_cannot_be_asked_is_not_sent(tenant: KafkaConfig, question: Question, message: str) -> None:
    with RetrievalClient(tenant, in_flight=1) as client:
        for _ in range(2):  # the first leaves no place taken
            with pytest.raises(ValueError, match=message):
                client.submit(question)


def test_questions_that_wait_are_bounded_and_end_with_the_client(tenant: KafkaConfig) -> None:
    with RetrievalClient(tenant, in_flight=2) as client:
        waiting = [client.submit(Question("eve"), deadline=PATIENCE) for _ in range(2)]
        with pytest.raises(Unavailable, match="2 questions wait already"):
            client.ask("eve")
        waiting[0].cancel()
    with pytest.raises(Unavailable, match="closed"):
        waiting[1].result(0)
    with pytest.raises(RuntimeError, match="closed"):
        client.ask("eve")


def test_a_partition_or_topic_that_is_not_there_is_named(tenant: KafkaConfig, broker: LocalKafka) -> None:
    with pytest.raises(ValueError, match="reply_partition is 4"), RetrievalClient(tenant, reply_partition=4):
        pass
    nobody = KafkaConfig(servers=broker.servers, prefix="nobody.")
    with pytest.raises(Unreachable, match="nobody"), RetrievalClient(nobody, connecting=0.5):
        pass
