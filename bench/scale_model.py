"""What so many accounts and events take, from unit costs: plain sums, each a line. `bench.scale` prints them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from bench.scale_simulate import Crowd, crowd, kept
from bench.scale_units import Unit
from kithstream.streams.kafka import wire

DAYS: Final = 7  # that engagements and edges are kept, and the horizon of the ledgers
HOURS: Final = 730  # a month
MONTH: Final = 3600 * HOURS  # seconds
GB: Final = 1e9
RECORD: Final = (
    40  # bytes of a small record in Kafka beside its value, its share of the batch's head included
)
POLLED: Final = 500  # most records of a partition that are folded together: `worker.poll_records`


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What is assumed. Everything of it is a flag of `bench.scale`."""

    accounts: float = 1e8
    events: float = 1e6  # a second
    questions: float = 20_000.0  # a second
    followees: float = 100.0  # of an account, mean
    k: int = 200  # candidates that the ranker is given
    partitions: int = 512
    gather: float = 0.1  # seconds between two polls of a partition: `worker.poll_milliseconds`
    flush: float = 10.0  # seconds between two flushes of vectors: `worker.flush_milliseconds`
    replication: int = 3  # of every topic
    cached: float = 0.1  # share of the rows' bytes that is held in memory
    busy: float = 0.6  # share of a core that is planned for
    process_gb: float = 64.0  # memory of one retrieval process
    process_cores: int = 1  # that it can use: one, as it is built, in Python
    visited: int = 0  # shards that a question goes to; 0: all, as a cut by hash needs
    replicas: int = 2  # of each shard at least
    broker_mb: float = 20.0  # MB/s in and out that a core of a broker moves; assumed, not measured
    missed: float = 1e-3  # share of the k best that scatter-gather may miss
    vcpu_hour: float = 0.04  # money
    gb_hour: float = 0.005  # of memory
    disk_gb_month: float = 0.08
    traffic_gb: float = 0.01  # between zones
    crossing: float = 2 / 3  # share of the traffic between machines that crosses zones


class Costs:
    """Unit costs by short names."""

    def __init__(self, units: Mapping[str, Unit]) -> None:
        self.units = units

        def of(part: str, name: str) -> float:
            return units[part].figures[name]

        self.fold = of("fold", "fold_us") / 1e6
        self.touched = of("touches", "touched_per_event")
        self.exponent = of("touches", "exponent")
        self.frame = (of("frame", "frame_us") + of("record", "record_us")) / 1e6
        self.frame_bytes = of("frame", "frame_bytes") + RECORD
        # What edges themselves take: of few frames, the frames' own bytes taken off.
        few = "4_partitions_500_events"
        whole = of("exchange", f"bytes_{few}") - of("exchange", f"frames_{few}") * of("frame", "frame_bytes")
        self.edges_bytes = whole
        self.encode = of("vectors", "encode_us") / 1e6
        self.apply = (of("vectors", "apply_us") + of("vectors", "merge_us")) / 1e6
        self.vector_bytes = of("vectors", "record_bytes") + RECORD
        self.candidates = of("vectors", "candidate_share")
        self.account_bytes = of("vectors", "account_bytes")
        self.query = of("vectors", "query_200_us") / 1e6
        self.query_few = of("vectors", "query_20_us") / 1e6
        self.row_bytes = of("rows", "row_bytes")
        self.event_bytes = of("rows", "event_bytes") + RECORD
        self.edge_bytes = of("store", "edge_bytes")
        self.horizon_bytes = of("store", "horizon_bytes_per_event")

    def searched(self, named: int) -> float:
        """Seconds of CPU of one shard's search for so many: between the two that were measured, on a line."""
        share = min(max((named - 20) / 180, 0.0), 1.0)
        return self.query_few + share * (self.query - self.query_few)


class Exchange(NamedTuple):
    """What partitions send each other."""

    batch: float  # events of a partition folded together
    frames: float  # a second
    bytes: float  # a second, without replication


def exchanged(costs: Costs, events: float, partitions: int, gather: float) -> Exchange:
    """Each batch tells every partition how far it has come: frames grow with the square of the partitions."""
    batch = min(max(events * gather / partitions, 1.0), POLLED)
    frames = events * partitions / batch
    return Exchange(batch, frames, events * costs.edges_bytes + frames * costs.frame_bytes)


def progress_bytes(partitions: int) -> int:
    """Bytes of a partition's progress among its vectors: one offset for each partition."""
    offsets = [10**9] * partitions
    one = wire.Progress(1, 10**9, offsets, 1_790_000_000_000_000, 1_790_000_000_000_000, True)
    return len(msgspec.msgpack.encode(one)) + len(wire.PROGRESS)


class Vectors(NamedTuple):
    """What is encoded a second."""

    changed: float
    aged: float

    @property
    def all(self) -> float:
        return self.changed + self.aged


def encoded(costs: Costs, accounts: float, events: float, flush: float) -> Vectors:
    """Changes of an account between two flushes are encoded once; those that rest are encoded as they age."""
    all_of_them: Crowd = crowd(int(accounts), events * costs.touched, costs.exponent)
    return Vectors(all_of_them.encoded(flush), all_of_them.aged())


class Replica(NamedTuple):
    """What one process takes that holds and follows everything."""

    vectors: float  # a second
    cores: float  # to apply them
    gigabytes: float
    megabytes: float  # a second that it reads

    def ends(self, setting: Setting) -> str:
        """Return what it ends at first; empty if it holds."""
        if self.cores > setting.busy * setting.process_cores:
            return "CPU"
        return "memory" if self.gigabytes > setting.process_gb else ""


def replica(costs: Costs, accounts: float, events: float, setting: Setting) -> Replica:
    """Return what the index costs each retrieval process as it is built: every one applies every vector."""
    rate = encoded(costs, accounts, events, setting.flush).all * costs.candidates
    progress = setting.partitions * (progress_bytes(setting.partitions) + RECORD) / setting.flush
    held = accounts * costs.candidates * costs.account_bytes
    return Replica(rate, rate * costs.apply, held / GB, (rate * costs.vector_bytes + progress) / 1e6)


def largest(costs: Costs, accounts: float, setting: Setting) -> float:
    """Return at how many events a second the full replica ends, to a hundredth.

    0 where it never fits; infinite where all accounts can be encoded at every flush.
    """
    low, high = 0.0, 1e8
    if replica(costs, accounts, 1e-3, setting).ends(setting):
        return 0.0
    if not replica(costs, accounts, high, setting).ends(setting):
        return math.inf
    while high - low > max(low, 1.0) / 100:
        middle = (low + high) / 2
        if replica(costs, accounts, middle, setting).ends(setting):
            high = middle
        else:
            low = middle
    return low


class Sharded(NamedTuple):
    """An index cut into shards."""

    shards: int
    replicas: int
    visited: int  # by a question
    named: int  # k' of each of those
    gigabytes: float  # of a process

    @property
    def processes(self) -> int:
        return self.shards * self.replicas


def sharded(costs: Costs, vectors: float, setting: Setting) -> Sharded:
    """Return the cut with the least money in which no process is busier or larger than planned.

    A shard applies its part of the vectors in each of its replicas; a question goes to one replica of each shard that
    it visits. Raises ValueError where no cut fits.
    """
    held = setting.accounts * costs.candidates * costs.account_bytes / GB
    applying = vectors * costs.candidates * costs.apply
    capacity = setting.busy * setting.process_cores
    found: list[tuple[float, Sharded]] = []
    shards = 1
    while shards <= 1 << 14:
        own = applying / shards
        if own < capacity and held / shards <= setting.process_gb:
            visited = min(setting.visited or shards, shards)
            named = kept(setting.k, visited, setting.missed)
            asked = setting.questions * visited / shards * costs.searched(named)
            replicas = max(math.ceil(asked / (capacity - own)), setting.replicas)
            one = Sharded(shards, replicas, visited, named, held / shards)
            found.append((index_money(costs, one, vectors, setting), one))
        shards = max(shards + 1, math.ceil(shards * 1.1))
    if not found:
        raise ValueError(f"{vectors:.0f} vectors a second fit in no cut")
    return min(found)[1]


def index_money(costs: Costs, cut: Sharded, vectors: float, setting: Setting) -> float:
    """A month of an index: processes, their memory, and the vectors that every replica reads."""
    traffic = vectors * costs.candidates * costs.vector_bytes * cut.replicas * setting.crossing
    return (
        cut.processes * setting.process_cores * setting.vcpu_hour * HOURS
        + cut.processes * cut.gigabytes * setting.gb_hour * HOURS
        + traffic * MONTH / GB * setting.traffic_gb
    )


class Stage(NamedTuple):
    """A line of the bill. Cores are planned ones: what is needed over the share that may be busy."""

    name: str
    cores: float
    memory_gb: float
    disk_gb: float
    traffic_mb: float  # a second, between machines

    def money(self, setting: Setting) -> float:
        """A month's."""
        traffic = self.traffic_mb / 1000 * MONTH * setting.crossing * setting.traffic_gb
        return (
            self.cores * setting.vcpu_hour * HOURS
            + self.memory_gb * setting.gb_hour * HOURS
            + self.disk_gb * setting.disk_gb_month
            + traffic
        )


def bill(costs: Costs, setting: Setting) -> list[Stage]:
    """Return what the whole takes, with a sharded index."""
    over = exchanged(costs, setting.events, setting.partitions, setting.gather)
    made = encoded(costs, setting.accounts, setting.events, setting.flush)
    cut = sharded(costs, made.all, setting)
    folding = setting.events * costs.fold + over.frames * costs.frame
    week = DAYS * 86_400
    logged = setting.events * costs.event_bytes
    published = made.all * costs.candidates * costs.vector_bytes
    ledgers = setting.accounts * (costs.row_bytes + setting.followees * costs.edge_bytes)
    horizon = setting.events * week * costs.horizon_bytes
    topics = logged + over.bytes + published
    written = topics * setting.replication  # the copies go from broker to broker
    read = logged + over.bytes + published * cut.replicas
    return [
        Stage("fold and exchange", folding / setting.busy, 0.0, 0.0, 0.0),
        Stage(
            "state: rows, ledgers, the horizon's events",
            0.0,
            setting.accounts * costs.row_bytes * setting.cached / GB,
            (ledgers + horizon) / GB,
            0.0,
        ),
        Stage("towers", made.all * costs.encode / setting.busy, 0.0, 0.0, 0.0),
        Stage(
            f"index: {cut.shards} shards of {cut.replicas} replicas",
            cut.processes * setting.process_cores,
            cut.processes * cut.gigabytes,
            cut.processes * cut.gigabytes,
            0.0,
        ),
        Stage(
            "brokers",
            (written + read) / 1e6 / setting.broker_mb,
            0.0,
            ((logged + over.bytes) * week + setting.accounts * costs.candidates * costs.vector_bytes)
            * setting.replication
            / GB,
            (written + read) / 1e6,
        ),
    ]
