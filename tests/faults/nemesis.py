"""The faults. Each is struck at a random moment under load; none waits for more than it needs to be that fault."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from town import PARTITIONS, Town

from kithstream.streams.kafka.checkpoints import Checkpoint, Checkpoints

FULL: Final = (
    16 << 10
)  # bytes that the largest log of writes of a worker with a full disk may grow by, at most
REFUSING: Final = 30.0  # seconds for which it stays full, unless the worker gives up before
LOW: Final = 1  # records that a fault lets pass before it strikes, at least
HIGH: Final = 150
HOUR: Final = 3_600_000_000


class Fault(Protocol):
    """One kind of trouble."""

    name: str

    def strike(self, town: Town, rng: random.Random) -> None:
        """Make it, and wait for no more than its end."""
        ...


class KillStream:
    """kill -9 of a stream process; its retrieval process goes with it."""

    name = "kill -9 of a stream process"

    def strike(self, town: Town, rng: random.Random) -> None:
        name = rng.choice(sorted(town.workers))
        town.kill(name)
        town.join(name)


class KillRetrieval:
    """kill -9 of a retrieval process; its stream process starts another."""

    name = "kill -9 of a retrieval process"

    def strike(self, town: Town, rng: random.Random) -> None:
        worker = town.workers[rng.choice(sorted(town.workers))]
        town.until(lambda: worker.alive and worker.retrieval > 0, "for a retrieval process")
        dead = worker.retrieval
        with contextlib.suppress(ProcessLookupError):
            os.kill(dead, signal.SIGKILL)
            town.deeds["kills"] += 1
        town.until(
            lambda: worker.alive and worker.retrieval not in (0, dead), "for another retrieval process"
        )


class KillBroker:
    """kill -9 of the broker; another goes on with its files."""

    name = "kill -9 of the broker"

    def strike(self, town: Town, rng: random.Random) -> None:
        town.broker.kill()
        town.broker.start()
        town.deeds["broker restarts"] += 1


class ComeAndGo:
    """A third worker joins, then any of the three leaves in order."""

    name = "a worker joins, one leaves"

    def strike(self, town: Town, rng: random.Random) -> None:
        (name,) = {"one", "two", "three"} - set(town.workers)
        town.join(name)
        town.until(lambda: town.owned()[name] > 0, f"for {name} to own a partition")
        town.crowd.until(rng.randrange(LOW, HIGH))
        town.leave(rng.choice(sorted(town.workers)))
        town.deeds["rebalances"] += 2


class Zombie:
    """SIGSTOP past the session, with or without the retrieval process; it wakes when others own its partitions."""

    name = "a zombie wakes up"

    def strike(self, town: Town, rng: random.Random) -> None:
        town.ready()
        name = rng.choice(sorted(town.workers))
        worker = town.workers[name]
        pids = [worker.pid] + ([worker.retrieval] if rng.random() < 0.5 else [])
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            town.until(lambda: _others_own_all(town, name), "for others to own a paused worker's partitions")
            town.crowd.until(rng.randrange(LOW, HIGH))
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        town.deeds["zombies"] += 1


class Repeats:
    """Hundreds of events once more, in any order."""

    name = "events published again, out of order"

    def strike(self, town: Town, rng: random.Random) -> None:
        town.deeds["repeated events"] += town.crowd.repeat(300)
        town.crowd.until(300)


class FullDisk:
    """No file of a worker grows beyond a size (RLIMIT_FSIZE: real write errors, EFBIG). Room comes back later."""

    name = "a full disk"

    def strike(self, town: Town, rng: random.Random) -> None:
        worker = town.workers[rng.choice(sorted(town.workers))]
        town.ready()
        pid = worker.pid
        size = max(_log_sizes(worker.folder), default=0) + rng.randrange(FULL)
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
        end = time.monotonic() + REFUSING
        while worker.alive and time.monotonic() < end:
            town.crowd.until(10)
        town.deeds["full disks"] += 1
        if worker.alive:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        else:
            town.deeds["gave up on a full disk"] += 1


class DamagedCheckpoints:
    """All workers die, their stores are gone, and the newest checkpoint of every partition is damaged."""

    name = "checkpoints cut short or with flipped bits"

    def strike(self, town: Town, rng: random.Random) -> None:
        with _all_dead(town):
            for number in range(PARTITIONS):
                newest = _checkpoints(town, number)[0]
                damage(newest.path, rng)
                town.wipe(number)
                town.deeds["corruptions"] += 1


class OlderCheckpoints:
    """All workers die; of some partitions nothing but an older checkpoint is left, others go on with their stores."""

    name = "restore from an older checkpoint"

    def strike(self, town: Town, rng: random.Random) -> None:
        with _all_dead(town):
            chosen = rng.sample(range(PARTITIONS), rng.randrange(1, PARTITIONS + 1))
            for number in chosen:
                found = _checkpoints(town, number)
                left = rng.randrange(1, len(found))
                for newer in found[:left]:
                    shutil.rmtree(newer.path)
                town.wipe(number)
            town.deeds["older-checkpoint restores"] += 1


class ClockSteps:
    """The workers' time of day jumps, by up to two hours to either side, and may jump back later."""

    name = "the clock steps"

    def strike(self, town: Town, rng: random.Random) -> None:
        town.clock.step(rng.randrange(-2 * HOUR, 2 * HOUR))
        town.crowd.until(rng.randrange(LOW, HIGH))
        if rng.random() < 0.5:
            town.clock.step(0)
        town.deeds["clock steps"] += 1


def damage(checkpoint: Path, rng: random.Random) -> Path:
    """Cut a file of a checkpoint short or flip bits of it; return which. Files that others link to are copied first."""
    files = sorted(path for path in checkpoint.iterdir() if path.is_file() and path.stat().st_size)
    chosen = rng.choice(files)
    raw = bytearray(chosen.read_bytes())
    if rng.random() < 0.4:
        raw = raw[: rng.randrange(len(raw))]
    else:
        for _ in range(rng.randrange(1, 9)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    chosen.unlink()
    chosen.write_bytes(raw)
    return chosen


def _log_sizes(folder: Path) -> list[int]:
    """The sizes of the logs of writes in a worker's stores."""
    found = []
    for path in folder.glob("state/*/*.log"):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            found.append(path.stat().st_size)
    return found


def _others_own_all(town: Town, name: str) -> bool:
    return sum(max(0, owned) for other, owned in town.owned().items() if other != name) == PARTITIONS


def _checkpoints(town: Town, number: int) -> Sequence[Checkpoint]:
    return Checkpoints(town.checkpoints, 1).of(number)


@contextlib.contextmanager
def _all_dead(town: Town) -> Iterator[None]:
    """Kill all workers once every partition has two checkpoints; start them all again afterwards."""
    town.until(
        lambda: all(len(_checkpoints(town, number)) >= 2 for number in range(PARTITIONS)),
        "for 2 checkpoints of every partition",
    )
    for name in sorted(town.workers):
        town.kill(name)
    yield
    for name in sorted(town.workers):
        town.join(name)
