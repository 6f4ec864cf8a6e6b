"""What holds for the clients together: what they import, and that their examples run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest

import kithstream
from kithstream.streams import clients
from kithstream.streams.config import KafkaConfig
from kithstream.streams.errors import Unreachable
from kithstream.streams.kafka.local import JARS, LocalKafka
from kithstream.streams.kafka.wire import Reply, Request
from kithstream.streams.serve.answers import Answer, Candidate

ROOT = Path(__file__).parents[2]
SERVER = [  # what the extra `server` brings
    *("aiokafka", "anyio", "faust", "hnswlib", "mode", "numpy", "prometheus_client", "pyarrow", "rich"),
    *("rocksdict", "safetensors", "starlette", "structlog", "torch", "uvicorn"),
]


def run(code: str, *arguments: str, config: KafkaConfig | None = None) -> str:
    own = (
        {"KITHSTREAM_KAFKA__SERVERS": config.servers, "KITHSTREAM_KAFKA__PREFIX": config.prefix}
        if config
        else {}
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **own},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def example(name: str) -> str:
    return (ROOT / "examples" / name).read_text()


CLIENTS = [clients.EventPublisher, clients.CandidateConsumer, clients.RetrievalClient]


@pytest.mark.parametrize("name", ["EventPublisher", "CandidateConsumer", "RetrievalClient"])
def test_a_client_needs_the_bare_package_alone(name: str) -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:]))"
    made = f"from kithstream import {name}; from kithstream.streams.config import KafkaConfig; {name}(KafkaConfig())"
    run(f"{blocked}\n{made}", *SERVER)


def test_the_facade_gives_the_clients() -> None:
    assert kithstream.EventPublisher is clients.EventPublisher
    assert kithstream.CandidateConsumer is clients.CandidateConsumer
    assert kithstream.RetrievalClient is clients.RetrievalClient


@pytest.mark.parametrize(
    "client", [clients.EventPublisher, clients.CandidateConsumer, clients.RetrievalClient]
)
@pytest.mark.usefixtures("refused")
def test_a_client_that_cannot_connect_leaves_no_thread_behind(
    client: Callable[..., AbstractContextManager],
) -> None:
    before = threading.active_count()
    with pytest.raises(Unreachable), client(KafkaConfig(servers="127.0.0.1:1"), connecting=0.2):
        pass
    assert threading.active_count() == before


@pytest.mark.parametrize("client", CLIENTS)
def test_a_missing_password_is_named(client: Callable[..., AbstractContextManager[object]]) -> None:
    config = KafkaConfig(security="SASL_PLAINTEXT", username="u")
    with pytest.raises(ValueError, match=r"kafka\.password"), client(config):
        pass


@pytest.mark.usefixtures("tenant")  # which skips where there is no Kafka
def test_every_client_says_who_it_is(tmp_path: Path) -> None:
    """The broker's one listener wants a password of clients, and of itself."""
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    properties = {
        "listener.security.protocol.map": "PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.plaintext.plain.sasl.jaas.config": (
            f'{module} required username="us" password="own" user_us="own" user_product="s3cret";'
        ),
    }
    with LocalKafka(tmp_path, jars=ROOT / JARS, properties=properties, heap_mib=256) as broker:
        config = KafkaConfig(
            servers=broker.servers,
            security="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            username="product",
            password="s3cret",
        )
        for client in CLIENTS:
            # Who is let in learns that there is no such topic; who is not does not get that far.
            with pytest.raises(Unreachable, match="is not shown"), client(config, connecting=0.5):
                pass
            wrong = msgspec.structs.replace(config, password="wr0ng")
            with pytest.raises(Unreachable, match="address, certificate or password") as told:
                client(wrong, connecting=0.5).__enter__()
            assert "wr0ng" not in f"{told.value}{told.value.__cause__!r}"


def test_the_examples_publish_and_ask(
    tenant: KafkaConfig, respond: Callable[..., AbstractContextManager[object]]
) -> None:
    asked: list[Request] = []

    def answers(request: Request) -> Reply:
        asked.append(request)
        return Reply(request.id, Answer(request.account, [Candidate("ada", 1.0)], 7, "m", 3, 2, "", "exact"))

    token = run(example("kafka_publish.py"), config=tenant).strip()
    assert token
    with respond(answers):
        assert run(example("kafka_ask.py"), token, config=tenant) == "['ada']\n"
    assert [(request.account, request.k, request.after) for request in asked] == [("eve", 5, token)]
