"""What an event costs, by signal: CPU in both stages and bytes that stay in the store, by hand.

    python -m bench.signals
    python -m bench.signals --accounts 20000 --warm 60000 --events 4000
    python -m bench.signals --only follow --only unfollow

A simulated world (full mix) fills the state first. Then each signal, and its undo after it, is folded in batches of
it alone by accounts that act as they do in that world; an undo takes back just what was done. Made before the clock
starts; a CPU second is the whole process's: decoding, both ledgers, rows, RocksDB with its log on and its threads.

- `us`: mean microseconds an event in batches of `--batch`.
- `us_few`, `us_few_p99`: mean, and 99th percentile over batches, of an event's share in a batch of `--few`: nobody
  can time one event alone, so a slow one among them shows by its share. A small batch costs more an event.
- `bytes`: growth of the live tables after flush and compaction, an event; by column beside it. What of it belongs
  to the horizon (said, heard) goes after 7 days.

`edges` are the bytes of a state edge on either side, in stores that hold nothing else, with the ids of the
simulator and with ids of 36 characters; a like's item is named after its target. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

import msgspec
import numpy as np

from bench.machine import machine
from kithstream.streams.config import EngineConfig, StoreConfig
from kithstream.streams.engine.engine import Engine, Record
from kithstream.streams.events.signals import CONTROLS, SIGNALS
from kithstream.streams.events.wire import NEEDS_ITEM
from kithstream.streams.simulate import simulate
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.store import RocksStore
from kithstream.streams.world import LANGUAGE_CODES, SimulationConfig, World

PARTITIONS: Final = 3
STEP: Final = 1000  # microseconds between two events
SLOW: Final = {"retract": 0.1, "account_delete": 0.02}  # share of the events: each is a batch of its own
_encode = msgspec.json.Encoder().encode
Event = dict[str, object]


class Cost(NamedTuple):
    """What folding some events took."""

    us: float
    us_few: float
    us_few_p99: float


class Bench:
    """An engine on RocksDB with the events that it is given."""

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.given = given
        self.config = SimulationConfig(seed=given.seed, accounts=given.accounts)
        self.world = World.build(self.config)
        self.rng = np.random.default_rng((given.seed, 7))
        self.now = self.config.start
        self._stores = [RocksStore(folder / str(n), StoreConfig()) for n in range(PARTITIONS)]
        config = EngineConfig(partitions=PARTITIONS, batch_events=given.batch)
        self.engine = Engine(self._stores, config, salt=bytes(16))
        self._ends = [0] * PARTITIONS
        self._number = count()

    def parts(self, events: Sequence[Event]) -> list[list[Record]]:
        """Return events as records, by partition."""
        parts: list[list[Record]] = [[] for _ in range(PARTITIONS)]
        for event in events:
            self.now = max(self.now, int(str(event["time"])))
            parts[self.engine.route[str(event["actor"])]].append(Record(self.now, _encode(event)))
        return parts

    def apply(self, parts: Sequence[Sequence[Record]]) -> None:
        """Let the actors' stages fold a batch; raises ValueError for an event that cannot be used."""
        for number, records in enumerate(parts):
            if records:
                acted = self.engine.apply(number, records, self._ends[number])
                wrong = [dead for dead in acted.dead if dead.reason != "deleted"]
                if wrong:
                    raise ValueError(f"an event of the bench cannot be used: {wrong[0]}")
                self._ends[number] += len(records)

    def put(self, events: Sequence[Event]) -> None:
        """Apply events without exchanging what follows from them."""
        self.apply(self.parts(events))

    def fold(self, events: Sequence[Event], batch: int) -> list[tuple[int, float]]:
        """Fold events in batches; return of each how many events and CPU seconds it was."""
        cut = [events[first : first + batch] for first in range(0, len(events), batch)]
        calls = [(len(part), self.parts(part)) for part in cut]
        spent = []
        for size, parts in calls:
            began = time.process_time()
            self.apply(parts)
            self.engine.exchange()
            self.engine.work()
            self.engine.exchange()
            spent.append((size, time.process_time() - began))
        return spent

    def sizes(self) -> Counter[str]:
        """Return the bytes of the live tables by column, after flush and compaction."""
        self.engine.settle()
        found: Counter[str] = Counter()
        for store in self._stores:
            store.compact()
            for column, handle in store._columns.items():
                found[column.value] += handle.property_int_value("rocksdb.live-sst-files-size") or 0
        return found

    def pairs(self, size: int) -> list[tuple[str, str]]:
        """Draw who acts upon whom, each pair once."""
        found: dict[tuple[str, str], None] = {}
        while len(found) < size:
            times = np.full(size, self.now)
            actors = self.world.actors(self.rng, times)
            targets = self.world.peers(self.rng, actors)
            both = zip(actors.tolist(), targets.tolist(), strict=True)
            found.update(
                ((f"u{a}", f"u{t}"), None) for a, t in both if a != t and self.stays(a) and self.stays(t)
            )
        return list(islice(found, size))

    def stays(self, number: int) -> bool:
        """True unless the account was deleted: what it does is kept out."""
        account = f"u{number}"
        return not self.engine.at(self.engine.route[account]).is_deleted(account)

    def events(self, signal: str, pairs: Sequence[tuple[str, str]], **fields: object) -> list[Event]:
        """Return events of one signal, one a pair, after everything folded so far."""
        keyed = signal in NEEDS_ITEM
        return [
            {
                "id": f"b{next(self._number)}",
                "signal": signal,
                "actor": actor,
                "target": target,
                "time": self.now + STEP * (place + 1),
                **({"item": f"{target}.{crc32(actor.encode()) % 1000}"} if keyed else {}),
                **fields,
            }
            for place, (actor, target) in enumerate(pairs)
        ]

    def controls(self, signal: str, size: int) -> list[Event]:
        """Return events about their actors, each another one."""
        everyone = self.rng.permutation(self.config.accounts).tolist()
        numbers = list(islice(filter(self.stays, everyone), size))
        languages = self.rng.choice(LANGUAGE_CODES, len(numbers))
        made = self.events(signal, [(f"u{number}", "") for number in numbers])
        for event, language in zip(made, languages.tolist(), strict=True):
            del event["target"]
            if signal == "profile":
                event |= {"language": language, "country": "BR"}
        return made

    def close(self) -> None:
        self.engine.settle()
        self.engine.close()


def cost(spent: Sequence[tuple[int, float]], few: Sequence[tuple[int, float]]) -> Cost:
    """Return what batches of many and of few took, microseconds an event."""
    each = np.array([seconds / size for size, seconds in few]) * 1e6
    mean = sum(seconds for _, seconds in spent) / sum(size for size, _ in spent) * 1e6
    return Cost(round(mean, 1), round(float(each.mean()), 1), round(float(np.percentile(each, 99)), 1))


def measured(bench: Bench, events: Sequence[Event]) -> dict[str, object]:
    """Fold events, a quarter of them in batches of few; return what they cost."""
    given = bench.given
    before = bench.sizes()
    gc.collect()
    border = max(len(events) * 3 // 4, 1)
    many = bench.fold(events[:border], given.batch)
    few = bench.fold(events[border:] or events[:border], given.few)
    grown = bench.sizes()
    grown.subtract(before)
    by_column = {name: round(size / len(events), 1) for name, size in grown.items()}
    return {
        "events": len(events),
        "few_batches": len(few),
        **cost(many, few)._asdict(),
        "bytes": round(sum(grown.values()) / len(events), 1),
        "by_column": by_column,
    }


def by_signal(bench: Bench) -> Iterator[tuple[str, list[Event]]]:
    """Yield each signal, undo and control with events to fold before the next is asked for."""
    size, only = bench.given.events, bench.given.only

    def wanted(*names: str) -> bool:
        return not only or any(name in only for name in names)

    def shuffled(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return [pairs[at] for at in bench.rng.permutation(len(pairs)).tolist()]

    undos = {signal.undo for signal in SIGNALS}
    for signal in SIGNALS:
        undo = signal.undo
        if signal.name in undos or not wanted(signal.name, undo or ""):
            continue  # an undo that is a signal of its own comes behind what it undoes
        pairs = bench.pairs(size)
        yield signal.name, bench.events(signal.name, pairs)
        if undo is not None:
            yield undo, bench.events(undo, shuffled(pairs))
    for signal in [s for s in SIGNALS if s.name in ("follow", "reply")]:
        if wanted("retract"):
            done = bench.events(signal.name, bench.pairs(int(size * SLOW["retract"])))
            bench.fold(done, bench.given.batch)
            taken = bench.events("retract", [(str(event["actor"]), "") for event in done])
            for event, what in zip(taken, done, strict=True):
                event["retracts"] = what["id"]
            yield f"retract of {signal.name}", taken
    for name in CONTROLS:
        if name != "retract" and wanted(name):
            share = int(size * SLOW.get(name, 1.0))
            yield name, bench.controls(name, max(min(share, bench.config.accounts // 4), 1))


def edges(folder: Path, given: argparse.Namespace, named: Callable[[int], str]) -> dict[str, object]:
    """Return the bytes of follows and likes in the ledgers of either side, after compaction."""
    bench = Bench(folder, given)
    every = [named(number) for number in range(given.accounts)]
    about = bench.events("profile", [(name, "") for name in every], language="pt", country="BR")
    for event in about:
        del event["target"]
    bench.fold(about, given.batch)
    found: dict[str, object] = {"id_characters": round(float(np.mean([len(name) for name in every])), 1)}
    for signal in ("follow", "like"):
        pairs = [(named(int(a[1:])), named(int(b[1:]))) for a, b in bench.pairs(given.edges)]
        before = bench.sizes()
        bench.fold(bench.events(signal, pairs), given.batch)
        after = bench.sizes()
        found[signal] = {
            column.value: round((after[column.value] - before[column.value]) / given.edges, 1)
            for column in Column
        }
    bench.close()
    return {"edges": given.edges, **found}


def long_name(number: int) -> str:
    """Return an id of 36 characters that looks like any other."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))


def short_name(number: int) -> str:
    """Return the simulator's id."""
    return World.name(number)


def main() -> None:
    """Measure every signal and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--warm", type=int, default=400_000, help="Events that fill the state.")
    parser.add_argument("--events", type=int, default=20_000, help="Of each signal.")
    parser.add_argument(
        "--edges", type=int, default=200_000, help="For the bytes of an edge; 0 leaves them out."
    )
    parser.add_argument("--batch", type=int, default=2000)
    parser.add_argument("--few", type=int, default=50)
    parser.add_argument(
        "--only", action="append", default=[], help="One signal, undo or control; repeatable."
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    costs: dict[str, Mapping[str, object]] = {}
    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as name:
        bench = Bench(Path(name) / "signals", given)
        stream = chain.from_iterable(simulate(bench.config))
        bench.fold(list(islice(stream, given.warm)), given.batch)
        if not given.only or "mix" in given.only:
            costs["mix"] = measured(bench, list(islice(stream, 2 * given.events)))
        for signal, events in by_signal(bench):
            costs[signal] = measured(bench, events)
            print(signal, costs[signal], file=sys.stderr)
        bench.close()
        found = {}
        if given.edges:
            for kind, named in (("short", short_name), ("long", long_name)):
                found[kind] = edges(Path(name) / kind, given, named)
    settings = {key: value for key, value in vars(given).items() if key != "only"}
    result = {"bench": "signals", "machine": machine(), "partitions": PARTITIONS, **settings}
    print(json.dumps({**result, "costs": costs, "edges_by_id": found}))


if __name__ == "__main__":
    main()
