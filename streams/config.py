"""One tree of settings: defaults here, then a TOML file, then the environment, then `-o section.key=value`.

An unknown key is an error with its path. A component receives its own section; nobody else reads the environment.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec


class StoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One partition's RocksDB."""

    cache_bytes: int = 64 << 20  # block cache
    write_buffer_bytes: int = 32 << 20  # per column, up to three of them
    wal_bytes: int = 32 << 20  # of logs of writes, which whoever opens or follows the store reads again
    sync: bool = False  # fsync each batch: needed against power loss, not against kill -9


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The two stages."""

    partitions: int = 3
    batch_events: int = 2000  # most events of one poll batch
    row_cache: int = 100_000  # rows and neighbour lists held per partition
    job_edges: int = 5000  # edges re-sent per step after a slow attribute changed; of a deletion, a tenth
    retention_hours: float = 168.0  # of the embedded log
    communities: str = ""  # file of a version to adopt when the stores are opened; empty keeps what they read


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which towers serve, and whether they learn."""

    path: str = ""  # a checkpoint; empty is the day-zero model
    learn: bool = True
    seed: int = 0
    example_batch: int = 64  # follows of one training step
    idle_days: int = 365  # after which what was learned of an account is forgotten if nothing was read of it
    ageing_ratio: float = 2.0  # growth of the ticks at which an unchanged account is encoded again
    aged_rows: int = 128  # most of those between two batches of live events
    save_seconds: float = (
        60.0  # between two saves of what was learned, which a kill goes back to; 0: when closed
    )


Nominator = Literal["popular", "two_hop", "reciprocal", "communities"]


class RankingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the scores of the towers are corrected by, and who is ranked beside the index's hits."""

    ranker: bool = True  # once it has learned, one score of towers and pairs ranks; False: the towers alone
    nominators: tuple[Nominator, ...] = (
        "popular",
        "two_hop",
        "reciprocal",
        "communities",
    )  # beside the index
    considered: int = 200  # the index's best that the ranker ranks
    nominated: int = 50  # accounts that each nominator adds at most
    train_share: float = 0.2  # of the follows from which the ranker learns
    train_most: int = 12  # of them in a second of event time, at most: a whole ranking each
    used_to_follow: bool = True  # whom an account unfollowed is not recommended to it again
    contact: float = 1.0  # what is added to the score of one in the asking account's address book
    fatigue: float = 0.3  # what each ignored impression of a candidate takes off its score; 0 takes nothing


class ServeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The HTTP server."""

    host: str = "127.0.0.1"
    port: int = 8484
    token: str = (
        ""  # bearer token that may do everything; empty, and no file of tokens either, lets everybody in
    )
    tokens: str = (
        ""  # file of tokens with scopes, read again when it changes; `kithstream token new` makes its lines
    )
    rate: float = 0.0  # requests a second of one token, or of one address without; 0 counts none
    rate_burst: int = 100  # requests that may come at once beside
    connections: int = 2048  # open at a time; more are refused as overloaded
    head_bytes: int = (
        1 << 18
    )  # of a request's line and headers: long lists of `exclude` and `allow` are in it
    deadline_ms: float = 1000.0  # longest wait for a token's state
    request_bytes: int = 1 << 20
    threads: int = 8  # publishing and answering at a time
    waiting: int = 64  # requests that wait for a token's state at a time; more queue until their deadline
    requests: int = 1024  # in flight; more are refused as overloaded
    behind: int = (
        200_000  # events accepted and not visible yet, in one process: with so many no more are; 0: any
    )
    shadow_seconds: float = (
        10.0  # between two answers of the graph that are compared with an exact scan; 0: none
    )

    def __repr__(self) -> str:
        return _without(self, "token")


class IndexSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The live index; `index.config.IndexConfig` has the rest."""

    hot_capacity: int = 32_768  # accounts held in the exact segment
    exact_rows: int = 250_000  # vectors up to which an answer is an exact scan; four times as many by codes
    ef: int = 1000  # neighbours asked of the graph at least
    background: bool = True  # merge in a thread of its own
    snapshot_seconds: float = (
        300.0  # between two snapshots, so that opening encodes what changed since; 0: none
    )


class KafkaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The brokers, and how to reach them; every client of the project takes these settings."""

    servers: str = "127.0.0.1:9092"  # bootstrap servers, comma-separated
    prefix: str = ""  # before the name of every topic and group: a tenant
    replication: int = 1  # of topics that `kithstream topics create` makes
    reply_partitions: int = 16  # of the topic of replies; a client reads one
    security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ca_file: str = ""  # PEM; empty takes the system's authorities
    cert_file: str = ""  # PEM of the client
    key_file: str = ""
    check_hostname: bool = True
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return _without(self, "password")


class WorkerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A worker on Kafka: its stream process and its retrieval process."""

    data: str = "kithstream-worker"  # directory of this worker alone: its partitions' stores
    checkpoints: str = ""  # directory that all workers share; empty makes and takes none
    checkpoint_seconds: float = 300.0  # between two checkpoints of a partition
    checkpoints_kept: int = 2  # of each partition
    salt: str = (
        ""  # secret of all workers, under which deleted accounts are remembered; empty is the cluster's id
    )
    advertise: str = ""  # URL under which other workers reach this one's HTTP; empty is host and port
    session_seconds: float = 10.0  # silence after which the group takes a worker for dead
    poll_records: int = 500  # most records of one partition folded at a time
    poll_milliseconds: float = 5.0  # between two polls: what came meanwhile is folded together
    linger_milliseconds: float = 3.0  # between two requests to a broker: frames of all partitions go together
    flush_milliseconds: float = 15.0  # between two flushes of vectors: changes meanwhile are encoded together
    dirty_rows: int = 16_384  # changed accounts from which folding waits for a flush
    outbox_frames: int = 10_000  # unacknowledged frames from which folding waits for the brokers
    drain_seconds: float = 10.0  # from SIGTERM to the end
    push_k: int = 20  # candidates of a pushed list
    push_seconds: float = 30.0  # between two pushes to one account, at least
    push_rate: float = 20.0  # pushes a second of a worker, at most; 0 pushes nothing
    push_valid_seconds: float = 3600.0  # how long a pushed list may be shown
    former_seconds: float = 30.0  # for which a lineage is published on after another took its place
    accept_gap: bool = (
        False  # open an empty store though the topic no longer reaches back to its first record
    )

    def __repr__(self) -> str:
        return _without(self, "salt")


class TrainerSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The trainer on Kafka."""

    data: str = "kithstream-trainer"  # directory of the trainer alone: its checkpoint
    publish_seconds: float = 2.0  # between two steps that workers hear of
    checkpoint_seconds: float = 60.0  # between two checkpoints
    accept_gap: bool = (
        False  # go on though the training log has lost what comes next, from the published model
    )


class ExamplesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What training examples are made of."""

    signals: str = "follow"  # what makes a positive example: names of follow and engagements, comma-separated
    window: float = 1800.0  # seconds after an impression in which an engagement closes it as engaged
    open_impressions: int = 100_000  # of a partition, that wait for that; beyond it the oldest go, counted
    part_rows: int = 50_000  # rows after which a file is closed: a pass that was killed goes on behind it
    candidates: bool = True  # write every encoding of a candidate: what a live trainer draws negatives from


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What processes that serve write to stderr."""

    format: Literal["text", "json"] = "text"
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"  # of kithstream; libraries tell warnings


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole tree."""

    store: StoreConfig = StoreConfig()
    engine: EngineConfig = EngineConfig()
    model: ModelConfig = ModelConfig()
    ranking: RankingConfig = RankingConfig()
    index: IndexSection = IndexSection()
    serve: ServeConfig = ServeConfig()
    kafka: KafkaConfig = KafkaConfig()
    worker: WorkerConfig = WorkerConfig()
    trainer: TrainerSection = TrainerSection()
    examples: ExamplesConfig = ExamplesConfig()
    log: LogConfig = LogConfig()


def _without(section: msgspec.Struct, secret: str) -> str:
    """A section as it may be shown."""
    shown = (f"{name}={getattr(section, name)!r}" for name in section.__struct_fields__ if name != secret)
    return f"{type(section).__name__}({', '.join(shown)})"


def load(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> Config:
    """Return the settings; raises ValueError naming the key that is unknown or of the wrong type.

    `environment` holds names like KITHSTREAM_STORE__SYNC; options are `section.key=value`.
    """
    tree: dict[str, dict[str, object]] = {}
    if path is not None:
        try:
            tree = {section: dict(keys) for section, keys in tomllib.loads(path.read_text()).items()}
        except (OSError, tomllib.TOMLDecodeError, ValueError, TypeError) as error:
            raise ValueError(f"settings file {path}: {error}") from error
    for name, value in sorted((os.environ if environment is None else environment).items()):
        if name.startswith("KITHSTREAM_") and "__" in name:
            section, _, key = name.removeprefix("KITHSTREAM_").lower().partition("__")
            tree.setdefault(section, {})[key] = value
    for option in options:
        where, equals, value = option.partition("=")
        section, dot, key = where.partition(".")
        if not equals or not dot:
            raise ValueError(f"option is {where!r}, expected section.key=value")
        tree.setdefault(section, {})[key] = value
    try:
        return msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"settings: {error}") from error
