"""A real Apache Kafka on this machine without Docker: jars by Maven, one KRaft node, files in one directory.

    python -m kithstream.streams.kafka.local --port 9092 --data var/kafka/data

Needs Java 17 or newer and, the first time, `mvn`. For development and tests: one broker, no replication, loopback
alone.
"""

from __future__ import annotations

import argparse
import fcntl
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

VERSION: Final = "4.1.1"
JAVA: Final = 17  # the oldest that runs it
JARS: Final = Path("var/kafka/jars")
DATA: Final = Path("var/kafka/data")
STARTING: Final = 90.0  # seconds in which the broker must take connections
_LOG: Final = "broker.log"
_POM: Final = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>kithstream</groupId><artifactId>broker</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
      <version>{VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId>
      <version>1.7.36</version></dependency>
  </dependencies>
</project>
"""


class NoKafka(Exception):
    """Kafka cannot be had here; the message says what is missing."""


def fetch(jars: Path = JARS, *, tell: Callable[[str], None] = lambda _: None) -> Path:
    """Return the folder with the broker's jars, brought by Maven if they are not there; raises NoKafka.

    Several processes may ask for the same folder at once: one brings the jars, the others wait for it.
    """
    ready = jars / f".complete-{VERSION}"
    if ready.exists():
        return jars
    if shutil.which("mvn") is None:
        raise NoKafka(f"mvn is not on the PATH; Maven brings Apache Kafka {VERSION}")
    jars.mkdir(parents=True, exist_ok=True)
    with open(jars / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            tell(f"bringing Apache Kafka {VERSION} into {jars}; it takes a minute, once")
            _bring(jars)
            ready.touch()
    return jars


def _bring(jars: Path) -> None:
    for left in jars.glob("*.jar"):
        left.unlink()  # of another version, or of a try that was broken off
    pom = jars / "pom.xml"
    pom.write_text(_POM)
    command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime"]
    done = subprocess.run(
        [*command, f"-DoutputDirectory={jars.absolute()}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[:3]
        raise NoKafka(f"mvn could not bring Apache Kafka {VERSION}: {' '.join(said)}")


def check_java() -> None:
    """Raise NoKafka unless the `java` of the PATH runs this Kafka."""
    needed = f"Apache Kafka {VERSION} needs Java {JAVA} or newer"
    if shutil.which("java") is None:
        raise NoKafka(f"java is not on the PATH; {needed}")
    done = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(\d+)[^"]*"', done.stderr + done.stdout)
    if done.returncode or found is None:
        raise NoKafka(f"java -version ends with {done.returncode}; {needed}")
    if int(found[1]) < JAVA:
        raise NoKafka(f"java is {found[0]}; {needed}")


def free_port(*, but: int = 0) -> int:
    """Return a port of the loopback that was free a moment ago, and is not `but`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port if port != but else free_port(but=but)


class LocalKafka:
    """One broker process. Its files outlive `kill` and `stop`, so that `start` goes on with them.

    It ends with the thread that started it, where there is setpriv.

    `security` is the protocol of its listener; what a protocol needs beside, such as keystores, are `properties`, which
    go before everything that is set here. `users` are names and passwords for SCRAM-SHA-512, set when the storage is
    formatted.
    """

    def __init__(
        self,
        data: Path,
        *,
        port: int = 0,
        jars: Path = JARS,
        security: str = "PLAINTEXT",
        properties: Mapping[str, str] | None = None,
        users: Mapping[str, str] | None = None,
        heap_mib: int = 512,
    ) -> None:
        self.data = data
        self.port = port or free_port()
        self._controller = free_port(but=self.port)
        self._jars = jars
        self._security = security
        self._properties = dict(properties or {})
        self._users = dict(users or {})
        self._heap = heap_mib
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def servers(self) -> str:
        """The address that clients take as bootstrap server."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running broker."""
        if self._process is None:
            raise RuntimeError("the broker is not running")
        return self._process.pid

    def start(self) -> Self:
        """Start the broker and wait until it answers; raises NoKafka with the end of its log if it does not."""
        check_java()
        jars = fetch(self._jars)
        self._check_port()
        self.data.mkdir(parents=True, exist_ok=True)
        settings = self.data / "server.properties"
        settings.touch(mode=0o600)  # passwords may be in it
        settings.write_text("".join(f"{key}={value}\n" for key, value in self._settings().items()))
        if not (self.data / "logs" / "meta.properties").exists():
            storage = ["kafka.tools.StorageTool", "format", "-c", str(settings), "-t", _CLUSTER]
            for name, password in self._users.items():
                storage += ["--add-scram", f'SCRAM-SHA-512=[name="{name}",password="{password}"]']
            made = subprocess.run(self._java(jars, storage), capture_output=True, text=True, check=False)
            if made.returncode:
                raise NoKafka(f"the storage cannot be formatted: {made.stderr.strip()[-400:]}")
        with open(self.data / _LOG, "ab") as log:
            self._process = subprocess.Popen(
                [*_until_we_die(), *self._java(jars, ["kafka.Kafka", str(settings)])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in its terminal is told to it once, by `stop`
            )
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """Shut the broker down in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the broker as a power cut of its process would."""
        self._end(signal.SIGKILL)

    def wait(self) -> int:
        """Return the exit status of the broker once it ended."""
        return self._process.wait() if self._process is not None else 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _java(self, jars: Path, arguments: Sequence[str]) -> list[str]:
        options = [f"-Xmx{self._heap}m", f"-Xms{self._heap}m", "-XX:+UseSerialGC", "-XX:-UsePerfData"]
        quiet = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        return ["java", *options, *quiet, "-cp", f"{jars.absolute()}/*", *arguments]

    def _check_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError as error:
                raise NoKafka(f"{self.servers} cannot be had: {error.strerror}") from None

    def _settings(self) -> dict[str, str]:
        client = f"{self._security}://127.0.0.1:{self.port}"
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller}",
            "listeners": f"{client},CONTROLLER://127.0.0.1:{self._controller}",
            "advertised.listeners": client,
            "listener.security.protocol.map": f"{self._security}:{self._security},CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": self._security,
            "log.dirs": str((self.data / "logs").absolute()),
            "auto.create.topics.enable": "false",
            "num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            **self._properties,
        }

    def _wait(self) -> None:
        assert self._process is not None
        until = time.monotonic() + STARTING
        for _ in _ticks(0.05):
            if self._process.poll() is not None:
                raise NoKafka(f"the broker ended with {self._process.returncode}: {self._said()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return
            except OSError:
                if time.monotonic() > until:
                    raise NoKafka(
                        f"the broker took no connection in {STARTING:g} s: {self._said()}"
                    ) from None

    def _said(self) -> str:
        return (self.data / _LOG).read_text(errors="replace").strip()[-800:]


_CLUSTER: Final = "a2l0aHN0cmVhbWthZmthMQ"  # 16 bytes in URL-safe base64, as the storage tool wants it


def _until_we_die() -> list[str]:
    """A command before the broker's, with which it ends when the thread that started it ends, kill -9 included."""
    found = shutil.which("setpriv")
    return [found, "--pdeathsig", "TERM"] if found else []


def _ticks(seconds: float) -> Iterator[None]:
    while True:
        yield
        time.sleep(seconds)


def main() -> None:
    """Run a broker until SIGTERM or SIGINT; exit status 0 after either, 2 if it cannot run."""
    parser = argparse.ArgumentParser(description="One Apache Kafka broker on the loopback, without Docker.")
    parser.add_argument("--port", type=int, default=9092, help="of its only listener (%(default)s)")
    parser.add_argument("--data", type=Path, default=DATA, help="its files, gone on with (%(default)s)")
    parser.add_argument("--jars", type=Path, default=JARS, help="brought by Maven once (%(default)s)")
    parser.add_argument(
        "--locked",
        action="store_true",
        help="behind TLS and a password; clients take client.toml beside its files",
    )
    given = parser.parse_args()
    for number in _ENDING:
        signal.signal(number, _end)
    try:
        check_java()
        fetch(given.jars, tell=_say)
        broker, settings = _broker(given.data, given.port, given.jars, given.locked)
        with broker:
            _say(
                f"Apache Kafka {VERSION} takes connections on {broker.servers}, with its files in {given.data}"
            )
            _say(f"the topics: kithstream topics create {settings}")
            status = broker.wait()
    except NoKafka as error:
        _say(str(error))
        sys.exit(2)
    _say(f"the broker ended with {status}: {given.data / _LOG} says why")
    sys.exit(2)


def _broker(data: Path, port: int, jars: Path, locked: bool) -> tuple[LocalKafka, str]:
    """A broker, and the words that a command needs to reach it."""
    if not locked:
        broker = LocalKafka(data, port=port, jars=jars)
        return broker, f"-o kafka.servers={broker.servers}"
    from kithstream.streams.kafka.locked import lock

    return lock(data, port=port, jars=jars)[0], f"--config {data / 'client.toml'}"


_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _end(_number: int, _frame: FrameType | None) -> None:
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)  # the broker is being stopped: its files are to be closed
    sys.exit(0)


def _say(text: str) -> None:
    print(f"kithstream: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
