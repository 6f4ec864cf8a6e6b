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
