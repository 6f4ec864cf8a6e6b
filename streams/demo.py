"""The whole chain on a simulated world: throughput, freshness at a real pace, a story, a check by the log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from kithstream.streams import pace
from kithstream.streams.check import Given, check
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config
from kithstream.streams.errors import Unanswerable
from kithstream.streams.events.record import Record
from kithstream.streams.pace import Paced
from kithstream.streams.progress import Progress
from kithstream.streams.serve.answers import Answer
from kithstream.streams.serve.embedded import Embedded, Pumped
from kithstream.streams.serve.embedded import open as open_runtime
from kithstream.streams.simulate import simulate
from kithstream.streams.story import Story
from kithstream.streams.world import SimulationConfig

ANSWERS: Final = "answers.jsonl"
_BATCH: Final = 2000  # events published at once, while no pace is kept
_SPOT: Final = 3  # answers after each of these


class DemoConfig(msgspec.Struct, frozen=True):
    """How large the demo is."""

    accounts: int = 20_000
    events: int = 60_000
    seed: int = 0
    rate: float = 1000.0  # events a second of the part at a real pace
    seconds: float = 10.0  # of it; never more than a quarter of the events
    sample: int = 400  # accounts asked at the end


class Percentiles(msgspec.Struct, frozen=True):
    """Of a list of milliseconds."""

    p50: float
    p99: float


class Report(msgspec.Struct, frozen=True):
    """What the demo measured."""

    events: int
    accounts: int  # that events named
    indexed: int  # that may be candidates
    events_per_second: float  # log, two stages, training, towers, index; simulating not counted
    learned: int  # follows trained on
    encoded: int  # vectors written to the index
    rate: float  # events a second of the part at a real pace
    freshness_ms: Percentiles  # due to be published -> visible in answers
    query_ms: Percentiles  # beside them
    queries: int
    story_ms: Percentiles  # published -> answered with it, when nothing else happens
    reopened_seconds: float  # every vector made again from the stores
    answers: int  # checked against the log
    forbidden: int  # accounts in them that must not be there
    promises_broken: int  # in the story
    seconds: float


class Demo:
    """Runs once, in a directory of its own."""

    def __init__(self, path: Path, demo: DemoConfig, config: Config, write: Callable[[str], None]) -> None:
        self.given: list[Given] = []
        self._path, self._demo, self._config, self._write = path, demo, config, write
        self._clock = StreamClock()
        self._actors: Counter[str] = Counter()
        self._named: set[str] = set()
        self._learned = self._encoded = 0

    def run(self) -> Report:
        """Play all parts and return what they measured."""
        began = time.perf_counter()
        demo, write = self._demo, self._write
        world = SimulationConfig(accounts=demo.accounts, seed=demo.seed)
        self._clock.advance(world.start)
        paced_events = min(int(demo.rate * demo.seconds), demo.events // 4)
        source = _Source(simulate(world, demo.events))
        draw = np.random.default_rng(demo.seed)
        with open_runtime(self._path, config=self._config, clock=self._clock, start=False) as live:
            rate = self._feed(live, source, demo.events - paced_events, draw)
            write(f"{self._learned:,} follows were learned from, {self._encoded:,} vectors written,")
            write(f"{len(live.chain.index):,} of {len(self._named):,} accounts can be candidates.")
            paced = self._pace(live, source.take(paced_events))
            indexed = len(live.chain.index)
            write("")
            write(
                f"At {demo.rate:,.0f} events a second for {paced.events / demo.rate:.0f} s, questions beside:"
            )
            write(f"  published -> visible   {_line(paced.freshness)}")
            write(f"  a question             {_line(paced.queries)}")
        reopened = time.perf_counter()
        frozen = msgspec.structs.replace(
            self._config,
            model=msgspec.structs.replace(self._config.model, learn=False),
            index=msgspec.structs.replace(self._config.index, snapshot_seconds=0),
        )
        with open_runtime(self._path, config=frozen, clock=self._clock) as live:
            reopened = time.perf_counter() - reopened
            write("")
            write(f"Closed and opened again: every vector made anew from the stores, {reopened:.1f} s.")
            write("From here the clock stands still and the model learns no more: only events move answers.")
            story = Story(live, write, self._give)
            story.play(self._heroes(live))
            self._sample(live, draw)
        checked = check(self._path / "log", self.given)
        self._save()
        for violation in checked.violations[:10]:
            write(f"FORBIDDEN: {violation.candidate} for {violation.account}: {violation.reason}")
        report = Report(
            events=demo.events + story.events,
            accounts=len(self._named),
            indexed=indexed,
            events_per_second=round(rate, 1),
            learned=self._learned,
            encoded=self._encoded,
            rate=demo.rate,
            freshness_ms=_percentiles(paced.freshness),
            query_ms=_percentiles(paced.queries),
            queries=len(paced.queries),
            story_ms=_percentiles([took / 1e3 for took in story.answered]),
            reopened_seconds=round(reopened, 2),
            answers=checked.answers,
            forbidden=len(checked.violations),
            promises_broken=len(story.faults),
            seconds=round(time.perf_counter() - began, 1),
        )
        for line in summary(report):
            write(line)
        return report

    def _feed(self, live: Embedded, source: _Source, count: int, draw: np.random.Generator) -> float:
        """Publish and fold as fast as it goes; return events per second."""
        live.on_pumped = self._pumped
        seconds = 0.0
        with Progress("publish, fold, learn, encode", count) as progress:
            while count > 0:
                batch = source.take(min(_BATCH, count))
                count -= len(batch)
                self._note(batch)
                began = time.perf_counter()
                self._clock.advance(max(event["time"] for event in batch))
                live.publish(batch)
                live.catch_up()
                seconds += time.perf_counter() - began
                progress.advance(len(batch))
                for event in draw.integers(0, len(batch), _SPOT).tolist():
                    self._ask(live, batch[event]["actor"])
            rate = progress.done / max(seconds, 1e-9)
        live.on_pumped = None
        self._write(
            f"{progress.done:,} events of a simulated world: published, folded, learned from, encoded and"
            f" indexed in {seconds:.1f} s, {rate:,.0f} events/s."
        )
        return rate

    def _pumped(self, pumped: Pumped) -> None:
        self._learned += pumped.learned
        self._encoded += pumped.upserted

    def _pace(self, live: Embedded, events: Sequence[Record]) -> Paced:
        self._note(events)
        asking = [account for account, _ in self._actors.most_common(2000)]
        published = live.candidates(asking[0]).token
        live.start()
        return pace.run(
            live, self._clock, events, asking, rate=self._demo.rate, heard=self._give, published=published
        )

    def _heroes(self, live: Embedded) -> list[str]:
        """Active accounts with well explained candidates."""
        found: list[tuple[int, str]] = []
        for account, _ in self._actors.most_common(60):
            answer = self._ask(live, account)
            if answer is not None and len(answer.candidates) >= 10:
                told = {reason.split(" u")[0] for c in answer.candidates[:5] for reason in c.reasons}
                found.append((-len(told), account))
        if len(found) < 3:
            raise ValueError(
                f"events is {self._demo.events}, too few for a story: no three accounts have candidates"
            )
        return [account for _, account in sorted(found, key=lambda pair: pair[0])[:3]]

    def _sample(self, live: Embedded, draw: np.random.Generator) -> None:
        names = sorted(self._named)
        for number in draw.choice(len(names), min(self._demo.sample, len(names)), replace=False).tolist():
            self._ask(live, names[number])

    def _ask(self, live: Embedded, account: str) -> Answer | None:
        try:
            answer = live.candidates(account)
        except Unanswerable:
            return None
        self._give(answer, answer.token)
        return answer

    def _give(self, answer: Answer, until: str) -> None:
        names = [candidate.account for candidate in answer.candidates]
        self.given.append(Given(answer.account, names, answer.token, until))

    def _note(self, events: Sequence[Record]) -> None:
        self._actors.update(event["actor"] for event in events if "target" in event)
        self._named.update(event["actor"] for event in events)
        self._named.update(event["target"] for event in events if "target" in event)

    def _save(self) -> None:
        """Write the answers beside the log, so that they can be checked again."""
        encode = msgspec.json.Encoder().encode
        with open(self._path / ANSWERS, "wb") as file:
            for given in self.given:
                file.write(encode(given._asdict()) + b"\n")


class _Source:
    """Takes events off a stream, as many as are asked for."""

    def __init__(self, batches: Iterator[list[Record]]) -> None:
        self._batches = batches
        self._waiting: list[Record] = []

    def take(self, count: int) -> list[Record]:
        while len(self._waiting) < count and (batch := next(self._batches, None)) is not None:
            self._waiting += batch
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken


def summary(report: Report) -> list[str]:
    """Return the lines of the table at the end."""
    rows = [
        ("events", f"{report.events:,}"),
        ("accounts", f"{report.accounts:,}, {report.indexed:,} of them candidates"),
        ("throughput", f"{report.events_per_second:,.0f} events/s through the whole chain, learning"),
        ("freshness", f"{_pair(report.freshness_ms)}: published -> visible at {report.rate:,.0f} events/s"),
        ("questions", f"{_pair(report.query_ms)} beside them, of {report.queries:,}"),
        ("publish -> answer", f"{_pair(report.story_ms)} in the story"),
        (
            "answers checked",
            f"{report.answers:,} against the log: {report.forbidden} forbidden accounts in them",
        ),
        ("time", f"{report.seconds:.0f} s"),
    ]
    return ["", *(f"  {name:<18} {value}" for name, value in rows)]


def _percentiles(seconds: Sequence[float]) -> Percentiles:
    low, high = np.percentile(np.asarray(seconds or [float("nan")]) * 1e3, [50, 99]).tolist()
    return Percentiles(round(low, 3), round(high, 3))


def _pair(percentiles: Percentiles) -> str:
    return f"p50 {percentiles.p50:.1f} ms, p99 {percentiles.p99:.1f} ms"


def _line(seconds: Sequence[float]) -> str:
    return f"{_pair(_percentiles(seconds))}, of {len(seconds):,}"
