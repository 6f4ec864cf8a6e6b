"""Promise 4 under fire: the whole runtime, killed in the middle of publishing and folding, again and again."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from promises import agree

from kithstream.streams.config import Config, IndexSection, ModelConfig
from kithstream.streams.engine.log import Log
from kithstream.streams.events import wire
from kithstream.streams.serve.embedded import Embedded

CHILD = """
import sys
from collections import deque
from itertools import islice
from pathlib import Path
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, IndexSection, ModelConfig
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.simulate import simulate
from kithstream.streams.world import SimulationConfig

path, skip = Path(sys.argv[1]), int(sys.argv[2])
clock = StreamClock()
config = Config(model=ModelConfig(learn=False), index=IndexSection(background=False))
live = Embedded(path, config, clock=clock)
world = SimulationConfig(seed=3, accounts=60, batch=64, events_per_account_day=400.0)
events = (event for batch in simulate(world) for event in batch)
for number in range(skip):
    deque(islice(events, 20), maxlen=0)  # published before this process
for number in range(skip, 10**6):
    some = list(islice(events, 20))
    clock.advance(max(event["time"] for event in some))
    live.publish(some)
    print(number, flush=True)
    live.pump(7)
"""


def test_kill_9_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    rng = random.Random(5)
    done = 0
    config = Config(model=ModelConfig(learn=False), index=IndexSection(background=False))
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), str(done)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        until = done + rng.randrange(5, 25)
        for line in child.stdout:
            done = int(line) + 1
            if done > until:
                break
        child.kill()
        child.wait()
        child.stdout.close()
        events, newest = [], 0
        for number in range(config.engine.partitions):
            with Log(tmp_path / "log" / str(number)) as log:
                for appended, raw in log.read(0, log.end):
                    newest = max(newest, appended)
                    events.append(wire.decode(raw, now=appended))
        assert len(events) >= 20 * done  # what publishing returned for is there
        with Embedded(tmp_path, config, clock=lambda at=newest: at) as live:  # type: ignore[misc]  # bound now
            live.catch_up()
            agree(live.engine, events)


LEARNING = """
import sys
from itertools import islice
from pathlib import Path
from kithstream.models.checkpoint import read_header
from kithstream.models.features import SCHEMA
from kithstream.streams.backup import MODEL
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, IndexSection, ModelConfig
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.simulate import simulate
from kithstream.streams.world import SimulationConfig

path, seed = Path(sys.argv[1]), int(sys.argv[2])
clock = StreamClock()
config = Config(
    model=ModelConfig(save_seconds=0.02), index=IndexSection(background=False, snapshot_seconds=0.1)
)
live = Embedded(path, config, clock=clock).start()
world = SimulationConfig(seed=seed, accounts=60, batch=64, events_per_account_day=400.0)
events = (event for batch in simulate(world) for event in batch)
while True:
    some = [{**event, "id": f"{seed}-{event['id']}"} for event in islice(events, 20)]
    clock.advance(max(event["time"] for event in some))
    live.wait(live.publish(some), deadline=60)
    saved = read_header(path / MODEL, SCHEMA.hash).step if (path / MODEL).exists() else 0
    print(saved, live.snapshots.saved, flush=True)
"""


def test_kill_9_loses_what_was_learned_since_the_last_save_and_opens_from_a_snapshot(tmp_path: Path) -> None:
    """Killed at any moment of saving too: what is on the disk fits together."""
    rng = random.Random(7)
    config = Config(index=IndexSection(background=False))
    step = opened = 0
    for seed in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", LEARNING, str(tmp_path), str(seed)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        left, saved, snapshots = rng.randrange(5, 25), 0, 0
        while left or not (saved > step and snapshots):  # and then at once
            saved, snapshots = map(int, child.stdout.readline().split())
            left = max(left - 1, 0)
        child.kill()
        child.wait()
        child.stdout.close()
        newest = 0
        events = []
        for number in range(config.engine.partitions):
            with Log(tmp_path / "log" / str(number)) as log:
                for appended, raw in log.read(0, log.end):
                    newest = max(newest, appended)
                    events.append(wire.decode(raw, now=appended))
        with Embedded(tmp_path, config, clock=lambda at=newest: at) as live:  # type: ignore[misc]  # bound now
            assert live.recovery.refused == ""
            assert live.chain.model.step >= saved
            opened += live.recovery.snapshot != ""
            live.catch_up()
            agree(live.engine, events)
            assert set(live.chain.index.ids()) == set(live.chain.vectors.ageing)
            step = live.chain.model.step
    assert opened == 3
