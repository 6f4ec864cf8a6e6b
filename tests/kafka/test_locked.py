"""TLS and SCRAM, both on: every client, the worker's two processes and the trainer, and who is not let in."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from workers import PATIENCE, Worker

from kithstream.models.lineage import day_zero_lineage
from kithstream.streams.clients import CandidateConsumer, EventPublisher, RetrievalClient
from kithstream.streams.config import Config, EngineConfig, KafkaConfig, load
from kithstream.streams.errors import Unreachable
from kithstream.streams.kafka.local import JARS, LocalKafka, NoKafka
from kithstream.streams.kafka.locked import certify, lock
from kithstream.streams.kafka.names import steps
from kithstream.streams.kafka.producer import Producer
from kithstream.streams.kafka.security import reach
from kithstream.streams.kafka.topics import check, wanted

PARTITIONS = 3
CLIENTS = (EventPublisher, CandidateConsumer, RetrievalClient)
HERE = Path(__file__).parents[2] / JARS

# kafka-python leaves the sockets of refused connections to the collector, and what is logged holds them.
pytestmark = [pytest.mark.kafka, pytest.mark.filterwarnings("ignore:unclosed <(socket|ssl):ResourceWarning")]
Secured = tuple[LocalKafka, KafkaConfig, Path]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A broker behind TLS and SCRAM, the settings of a client, and the broker's directory; skips as `broker` does."""
    folder = tmp_path_factory.mktemp("locked")
    try:
        local, config = lock(folder, jars=HERE, heap_mib=256)
        local.start()
    except NoKafka as missing:
        pytest.skip(f"no Apache Kafka, or no openssl: {missing}")
    yield local, msgspec.structs.replace(config, prefix="locked."), folder
    local.stop()


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an authority that has signed nothing here."""
    return certify(tmp_path_factory.mktemp("stranger")).authority


@pytest.fixture(autouse=True)
def unlogged() -> Iterator[None]:
    """Nothing but the code under test keeps what kafka-python logs."""
    logger = logging.getLogger("kafka")
    logger.propagate = False
    yield
    logger.propagate = True
    gc.collect()


def settings(config: KafkaConfig, **more: object) -> list[str]:
    """The options of a process; the password goes by the environment."""
    changed = msgspec.structs.replace(config, **more)
    names = (
        "servers",
        "prefix",
        "security",
        "sasl_mechanism",
        "username",
        "ca_file",
        "cert_file",
        "key_file",
    )
    return [f"kafka.{name}={getattr(changed, name)}" for name in names]


def secret(config: KafkaConfig) -> dict[str, str]:
    return {"KITHSTREAM_KAFKA__PASSWORD": config.password}


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kithstream", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=PATIENCE,
    )


def test_the_whole_runs_behind_tls_and_passwords_and_tells_nobody(secured: Secured, tmp_path: Path) -> None:
    """Topics by the file of settings; worker and trainer, one with a certificate; publisher, consumer, questions."""
    _, kafka, folder = secured
    few = ["-o", f"kafka.prefix={kafka.prefix}", "-o", f"engine.partitions={PARTITIONS}"]
    made = command("topics", "create", "--config", str(folder / "client.toml"), *few)
    assert made.returncode == 0, made.stderr
    table = wanted(Config(kafka=kafka, engine=EngineConfig(partitions=PARTITIONS)), day_zero_lineage(0))
    assert check(kafka, table) == []
    own = folder / "tls"
    shown = settings(kafka, cert_file=own / "client.pem", key_file=own / "client-key.pem")
    said = tmp_path / "said"
    given = [*settings(kafka), f"engine.partitions={PARTITIONS}", f"trainer.data={tmp_path / 'trainer'}"]
    words = [part for option in (*given, "trainer.publish_seconds=0.1") for part in ("-o", option)]
    with (
        open(said, "wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "kithstream", "trainer", *words],
            stdout=log,
            stderr=log,
            env={**os.environ, **secret(kafka)},
        ) as trainer,
    ):
        try:
            with Worker(kafka, tmp_path / "one", PARTITIONS, shown, secrets=secret(kafka)) as one:
                one.ready()
                with (
                    EventPublisher(kafka) as publisher,
                    RetrievalClient(kafka) as client,
                    CandidateConsumer(kafka) as lists,
                ):
                    follows = [
                        {"signal": "follow", "actor": f"fan{n}", "target": f"ada{n % 9}"} for n in range(99)
                    ]
                    token = publisher.publish(follows)
                    found = client.ask("eve", after=token, deadline=PATIENCE).candidates
                    assert {candidate.account for candidate in found} == {f"ada{n}" for n in range(9)}
                    assert next(iter(lists)).account.startswith("fan")
                one.until(lambda: published(kafka) > 0, "for the trainer to publish a step")
                for pid in (one.pid, one.retrieval, trainer.pid):
                    assert kafka.password.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
                one.stop()
                told = one.log()
            trainer.terminate()
            assert trainer.wait(PATIENCE) == 0
        finally:
            trainer.kill()
    for text in (told, said.read_text(), made.stdout, made.stderr, repr(kafka)):
        assert kafka.password not in text


def published(kafka: KafkaConfig) -> int:
    """How many records of steps there are."""
    part = TopicPartition(steps(kafka.prefix, day_zero_lineage(0)), 0)
    consumer = KafkaConsumer(**reach(kafka))
    found: int = consumer.end_offsets([part])[part]
    consumer.close()
    return found


# -- who is not let in ---------------------------------------------------------------------------------------


def wrong(kafka: KafkaConfig, stranger: Path, what: str) -> KafkaConfig:
    changed: dict[str, dict[str, object]] = {
        "password": {"password": "wr0ng"},
        "user": {"username": "nobody", "password": "wr0ng"},
        "authority": {"ca_file": str(stranger)},
        "system's authorities": {"ca_file": ""},
        "name": {"servers": kafka.servers.replace("127.0.0.1", "localhost")},
        "no TLS": {"security": "SASL_PLAINTEXT"},
    }
    return msgspec.structs.replace(kafka, **changed[what])


PASSWORD = r"Authentication failed|refuses the password"  # kafka-python loses the word if the broker is quick
REASONS = {
    "password": PASSWORD,
    "user": PASSWORD,
    "authority": "certificate verify failed",
    "system's authorities": "certificate verify failed",
    "name": "Hostname mismatch",
}


@pytest.mark.parametrize("what", REASONS)
def test_a_command_tells_why_it_is_not_let_in(secured: Secured, stranger: Path, what: str) -> None:
    config = wrong(secured[1], stranger, what)
    with pytest.raises(Unreachable) as told:
        check(config, wanted(Config(kafka=config), day_zero_lineage(0))[:1], seconds=2.0)
    assert re.search(REASONS[what], str(told.value))
    assert "wr0ng" not in f"{told.value}{told.value.__cause__!r}"


@pytest.mark.parametrize("what", ["password", "authority", "name", "no TLS"])
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_that_is_not_let_in_says_so(
    secured: Secured, stranger: Path, client: Callable[..., AbstractContextManager[object]], what: str
) -> None:
    config = wrong(secured[1], stranger, what)
    with pytest.raises(Unreachable) as told, client(config, connecting=2.0):
        pass
    assert re.search(REASONS.get(what, "address, certificate or password"), str(told.value))
    assert "wr0ng" not in f"{told.value}{told.value.__cause__!r}"


@pytest.mark.parametrize("what", ["password", "authority", "name"])
def test_what_a_worker_writes_with_is_not_let_in_either(
    secured: Secured, stranger: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """aiokafka, by which the two processes and the trainer connect."""
    caplog.set_level(logging.DEBUG)
    config = wrong(secured[1], stranger, what)

    async def connect() -> None:
        async with Producer(config, lambda _: None):
            pass

    with pytest.raises(Unreachable) as told:
        asyncio.run(connect())
    assert re.search(REASONS[what], str(told.value))
    assert "wr0ng" not in f"{told.value}{told.value.__cause__!r}{caplog.text}"


@pytest.mark.parametrize(("words", "what"), [(["worker"], "password"), (["models", "list"], "authority")])
def test_a_command_that_is_not_let_in_ends_with_the_reason_and_status_2(
    secured: Secured, stranger: Path, words: list[str], what: str, tmp_path: Path
) -> None:
    config = wrong(secured[1], stranger, what)
    given = [part for option in (*settings(config), f"worker.data={tmp_path}") for part in ("-o", option)]
    done = command(*words, *given, **secret(config))
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: no broker of ")
    assert re.search(REASONS[what], last)
    assert "wr0ng" not in done.stderr


def test_the_settings_open_the_door_for_the_libraries_themselves(secured: Secured) -> None:
    """So a product in another language knows that nothing of kithstream is needed."""
    part = TopicPartition("plain", 0)
    admin = KafkaAdminClient(**reach(secured[1]))
    admin.create_topics([NewTopic("plain", 1, 1)])
    admin.close()
    producer, consumer = KafkaProducer(**reach(secured[1])), KafkaConsumer(**reach(secured[1]))
    producer.send("plain", b"x").get(PATIENCE)
    assert consumer.end_offsets([part]) == {part: 1}
    producer.close()
    consumer.close()


# -- what lies in files --------------------------------------------------------------------------------------


def test_only_the_owner_reads_secrets_and_they_are_made_once(secured: Secured) -> None:
    _, kafka, folder = secured
    for name in ("users.json", "client.toml", "server.properties", "tls"):
        assert not stat.S_IMODE((folder / name).stat().st_mode) & 0o077, name
    _, again = lock(folder, port=int(kafka.servers.partition(":")[2]), jars=HERE)
    assert msgspec.structs.replace(again, prefix=kafka.prefix) == kafka
    assert load(folder / "client.toml", environment={}).kafka == again


def test_a_key_that_cannot_be_used_is_named_and_nobody_is_asked(stranger: Path, tmp_path: Path) -> None:
    folder = stranger.parent
    locked = tmp_path / "encrypted.pem"
    words = [
        "openssl",
        "pkcs8",
        "-topk8",
        "-in",
        folder / "client-key.pem",
        "-out",
        locked,
        "-passout",
        "pass:s3cret",
    ]
    subprocess.run(words, check=True, capture_output=True)
    began = time.monotonic()
    for key in (locked, folder / "broker-key.pem", tmp_path / "none.pem", stranger):
        config = KafkaConfig(
            security="SSL", ca_file=str(stranger), cert_file=str(folder / "client.pem"), key_file=str(key)
        )
        with pytest.raises(ValueError, match=r"kafka\.cert_file is '.*client\.pem'"):
            reach(config)
    with pytest.raises(ValueError, match=r"kafka\.ca_file is '.*none\.pem'"):
        reach(KafkaConfig(security="SSL", ca_file=str(tmp_path / "none.pem")))
    assert time.monotonic() - began < PATIENCE
