"""A broker without Docker: it goes on with its files, ends when it is told to, and says what is missing."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kithstream.streams.config import Config, KafkaConfig
from kithstream.streams.errors import Unreachable
from kithstream.streams.kafka.local import JARS, VERSION, LocalKafka, NoKafka, check_java, free_port
from kithstream.streams.kafka.topics import check, create, wanted

HERE = Path(__file__).parents[2] / JARS
TABLE = wanted(Config(), "1f2e")[:2]


@pytest.fixture
def command(broker: LocalKafka, tmp_path: Path) -> list[str]:
    """The module on a free port, with files of its own."""
    given = {"port": free_port(), "data": tmp_path / "data", "jars": HERE}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "kithstream.streams.kafka.local", *words]


@contextmanager
def running(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], KafkaConfig]]:
    """The module, taking connections."""
    config = KafkaConfig(servers=f"127.0.0.1:{command[command.index('--port') + 1]}")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert f"takes connections on {config.servers}, " in process.stderr.readline()
        yield process, config


def test_the_module_runs_one_until_it_is_told_to_end(command: list[str]) -> None:
    for number, there in ((signal.SIGTERM, False), (signal.SIGINT, True)):
        with running(command) as (process, config):
            assert (check(config, TABLE) == []) == there  # its files outlive it
            create(config, TABLE)
            process.send_signal(number)
            assert process.wait(30) == 0
        with socket.create_server(("127.0.0.1", int(config.servers.partition(":")[2]))):
            pass


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv here: a broker outlives a kill -9")
def test_the_broker_ends_with_a_module_that_is_killed(command: list[str]) -> None:
    with running(command) as (process, _):
        (broker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        watched = select.poll()
        descriptor = os.pidfd_open(int(broker))
        watched.register(descriptor, select.POLLIN)
        assert watched.poll(0) == []
        process.kill()
        assert watched.poll(30_000) != []
        os.close(descriptor)


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NoKafka, match=rf"127\.0\.0\.1:{port} cannot be had: Address already in use"):
            LocalKafka(tmp_path / "none", port=port, jars=ready(tmp_path)).start()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ('echo openjdk version \\"11.0.2\\" 2019-01-15 >&2', 'java is version "11.0.2"'),
        ('echo java version \\"1.8.0_202\\" >&2', 'java is version "1.8.0_202"'),
        ("exit 1", "java -version ends with 1"),
        ("", "java -version ends with 0"),
        (None, "java is not on the PATH"),
    ],
)
def test_a_java_that_does_not_run_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str | None, told: str
) -> None:
    pretend(tmp_path, monkeypatch, says)
    with pytest.raises(NoKafka, match=f"^{told}; Apache Kafka .* needs Java 17 or newer$"):
        check_java()


@pytest.mark.parametrize("version", ["17.0.15", "21", "25-ea"])
def test_a_java_that_runs_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    pretend(tmp_path, monkeypatch, f'echo openjdk version \\"{version}\\" >&2')
    check_java()


def test_what_cannot_run_is_one_line_and_status_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch, 'echo openjdk version \\"17\\" >&2')
    command = [sys.executable, "-m", "kithstream.streams.kafka.local", "--jars", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "kithstream: mvn is not on the PATH; Maven brings Apache Kafka 4.1.1\n"


def ann(guarded: LocalKafka, password: str) -> KafkaConfig:
    return KafkaConfig(
        servers=guarded.servers,
        security="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        username="ann",
        password=password,
    )


def test_the_right_password_makes_topics(guarded: LocalKafka) -> None:
    create(ann(guarded, "right horse"), TABLE)
    assert check(ann(guarded, "right horse"), TABLE) == []


def test_a_wrong_password_is_told_and_not_shown(guarded: LocalKafka) -> None:
    with pytest.raises(Unreachable, match=r"Invalid username or password|refuses the password") as refused:
        check(ann(guarded, "wrong horse"), TABLE, seconds=2.0)
    assert "horse" not in str(refused.value)


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch, says: str | None) -> None:
    """Put a `java` that runs a line of shell on an otherwise empty PATH."""
    monkeypatch.setenv("PATH", str(folder))
    if says is not None:
        (folder / "java").write_text(f"#!/bin/sh\n{says}\n")
        (folder / "java").chmod(0o755)


def ready(folder: Path) -> Path:
    """A folder that looks as if the jars were in it."""
    (folder / f".complete-{VERSION}").touch()
    return folder
