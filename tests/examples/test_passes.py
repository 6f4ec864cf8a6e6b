"""A pass over a stream: what it writes, that killing it changes no byte, and where it can begin."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.examples.passing import CONFIG, EVENTS, WORLD, events, files, source

from kithstream.models.features import consumer_features
from kithstream.models.ids import IdVectors
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, ExamplesConfig
from kithstream.streams.engine.routing import Route
from kithstream.streams.errors import StoreRefused, UnusableSource
from kithstream.streams.events.record import Record
from kithstream.streams.examples import folder
from kithstream.streams.examples.batches import ENGAGED, IGNORED, POSITIVE, ExampleBatch, join
from kithstream.streams.examples.columns import CONSUMER
from kithstream.streams.examples.passes import make
from kithstream.streams.examples.sources import FileSource, LogSource
from kithstream.streams.serve.embedded import Embedded

MINUTE = 60_000_000
T0 = 1_790_000_000_000_000
replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a pass without a break writes."""
    path = tmp_path_factory.mktemp("whole")
    made = make(source(), path, CONFIG)
    assert made.parts > 3
    assert made.events == EVENTS
    assert min(made.positive, made.engaged, made.ignored) > 20
    return path


def read(path: Path, ids: IdVectors) -> ExampleBatch:
    return join(list(folder.examples(path, ids)))


def made_of(path: Path, some: list[Record], config: Config = CONFIG) -> ExampleBatch | None:
    make(FileSource("these", 2, lambda: some), path, config)
    found = list(folder.examples(path, IdVectors(0, 0, 0, 0.0)))
    return join(found) if found else None


def event(
    number: int, signal: str, minutes: float, actor: str = "ann", target: str = "bob", **more: str
) -> Record:
    time = T0 + round(minutes * MINUTE)
    base: Record = {"id": f"e{number}", "signal": signal, "actor": actor, "time": time, "target": target}
    return {**base, **more}  # type: ignore[typeddict-item]  # fields of Record


# -- what is written -----------------------------------------------------------------------------------------


def test_counts_and_positions_are_those_of_the_rows(whole: Path) -> None:
    ids = IdVectors(0, 0, 0, 0.0)
    found, manifest = read(whole, ids), folder.load(whole)
    kinds = Counter(found.kinds)
    counts = manifest.counts
    assert (kinds[POSITIVE], kinds[ENGAGED], kinds[IGNORED]) == (
        counts.positive,
        counts.engaged,
        counts.ignored,
    )
    assert counts.candidates + counts.forgotten == sum(part.candidates for part in manifest.parts)
    assert (np.diff(found.rounds) >= 0).all()
    assert sum(manifest.positions.values()) == manifest.events == EVENTS
    assert ((found.labels == 0) == (np.array(found.kinds) == IGNORED)).all()
    # Each row is the event at its position.
    route = Route(3)
    logs: dict[int, list[Record]] = {}
    for one in events():
        logs.setdefault(route[one["actor"]], []).append(one)
    for at in range(len(found.kinds)):
        one = logs[int(found.partitions[at])][int(found.offsets[at])]
        assert one["actor"] == ids.name(int(found.consumers.rows[at]))
        assert one["target"] == ids.name(int(found.producers.rows[at]))
        assert one["time"] == found.times[at]
        assert one["signal"] == ("follow" if found.kinds[at] == POSITIVE else "impression")


def test_features_are_those_of_before_the_poll(whole: Path, tmp_path: Path) -> None:
    """A runtime that is fed the same polls reads the same of the actors just before each."""
    ids = IdVectors(0, 0, 0, 0.0)
    found = read(whole, ids)
    clock = StreamClock()
    seen = 0
    with Embedded(tmp_path, replace(CONFIG, model=replace(CONFIG.model, learn=False)), clock=clock) as live:
        for number, first in enumerate(range(0, 600, 50), 1):
            batch = events()[first : first + 50]
            where = np.flatnonzero((found.rounds == number) & (np.array(found.kinds) == POSITIVE))
            names = [ids.name(row) or "" for row in found.consumers.rows[where].tolist()]
            if names:
                reader = live.chain.vectors.reader
                rows = reader.read(names, found.times[where].tolist(), unreciprocated=True)
                for field, array, expected in zip(
                    CONSUMER, found.consumers, consumer_features(rows, ids), strict=True
                ):
                    np.testing.assert_array_equal(array[where], expected, err_msg=field)
                seen += len(names)
            clock.advance(max(one["time"] for one in batch))
            live.publish(batch)
            live.catch_up()
    assert seen > 30


def test_only_what_came_about_is_an_example(tmp_path: Path) -> None:
    some = [
        event(1, "follow", 0),
        event(1, "follow", 0),  # the same again
        event(2, "follow", 1),  # already follows
        event(3, "like", 2, item="post"),
        event(4, "like", 3, item="post"),  # already likes it
        event(5, "reply", 4),
        event(5, "reply", 4),
        event(6, "block", 5),
        event(7, "follow", 6, actor="cyd"),
        event(8, "retract", 7, actor="cyd", retracts="e9"),
        event(9, "click", 7, actor="cyd"),  # taken back before it came
    ]
    config = replace(
        CONFIG,
        engine=replace(CONFIG.engine, batch_events=1),
        examples=ExamplesConfig(signals="follow, like,reply,click"),
    )
    found = made_of(tmp_path, some, config)
    assert found is not None
    assert list(found.signals) == ["follow", "like", "reply", "follow"]
    assert set(found.kinds) == {POSITIVE}
    assert found.encoded.tolist() == [False, True, True, True]


def test_signals_that_cannot_be_positive_are_named(tmp_path: Path) -> None:
    config = replace(CONFIG, examples=ExamplesConfig(signals="follow,block"))
    with pytest.raises(ValueError, match="'block'"):
        make(source(), tmp_path, config)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_impressions_are_closed_by_event_time(tmp_path: Path, size: int) -> None:
    some = [
        event(1, "impression", 0, target="bob", item="s1"),
        event(2, "impression", 1, target="cyd", item="s1"),
        event(3, "impression", 2, target="dan", item="s1"),
        event(4, "impression", 2, target="eve", item="s1"),
        event(2, "impression", 1, target="cyd", item="s1"),  # the same again
        event(5, "like", 20, target="bob", item="post"),
        event(7, "retract", 10, target="", retracts="e3"),
        event(6, "follow", 33, target="cyd"),  # too late
        event(8, "follow", 40, target="fox"),
        event(9, "impression", 40, target="fox", item="s2"),
    ]
    if size == 100:
        some = some[::-1]  # within a poll the order does not matter
    config = replace(CONFIG, engine=replace(CONFIG.engine, batch_events=size))
    found = made_of(tmp_path, some, config)
    assert found is not None
    closed = [
        (kind, signal, int(time - T0) // MINUTE)
        for kind, signal, time in zip(found.kinds, found.signals, found.times, strict=True)
        if kind != POSITIVE
    ]
    expected = [
        (ENGAGED, "like", 0),
        (IGNORED, "impression", 1),
        (IGNORED, "impression", 2),
        (ENGAGED, "follow", 40),
    ]
    assert sorted(closed, key=lambda one: one[2]) == expected
    assert folder.load(tmp_path).waiting == 0


def test_a_deleted_account_is_told_and_named_no_more(tmp_path: Path) -> None:
    others = [event(n, "follow", n, actor=f"u{n}", target="ann") for n in range(6)]
    some = [
        *others,
        event(10, "impression", 10, actor="u1", target="ann", item="s"),
        event(11, "follow", 11, actor="u1", target="u2"),
        {"id": "e12", "signal": "account_delete", "actor": "ann", "time": T0 + 12 * MINUTE},
        event(13, "follow", 13, actor="u1", target="u3"),
        event(14, "follow", 90, actor="u2", target="u3"),
    ]
    config = replace(CONFIG, engine=replace(CONFIG.engine, batch_events=1))
    found = made_of(tmp_path, some, config)
    assert found is not None
    assert IGNORED not in found.kinds
    ids = IdVectors(0, 0, 0, 0.0)
    gone = False
    (part,) = folder.load(tmp_path).parts
    for one in folder.rounds(tmp_path, part, ids):
        ann = int(ids.rows_of(["ann"])[0])
        if gone:
            for features in (
                one.examples and one.examples.consumers,
                one.candidates and one.candidates.producers,
            ):
                for name in ("rows", "followers", "followees"):
                    assert features is None or ann not in getattr(features, name)
        if one.candidates is not None and one.candidates.gone.any():
            assert one.candidates.producers.rows[one.candidates.gone].tolist() == [ann]
            gone = True
    assert gone
    assert folder.load(tmp_path).counts.forgotten == 1


# -- going on ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [[50], [700], [1450], [400, 900, 1200]])
def test_a_pass_that_was_killed_goes_on_to_the_same_bytes(
    whole: Path, tmp_path: Path, last: list[int]
) -> None:
    for count in last:
        child = subprocess.run(
            [sys.executable, "-m", "tests.examples.passing", str(tmp_path), str(count)],
            cwd=Path(__file__).parents[2],
            timeout=120,
            check=False,
        )
        assert child.returncode == -9
    begun = folder.load(tmp_path).events if (tmp_path / folder.MANIFEST).exists() else 0
    assert begun < EVENTS
    assert (begun > 0) == (last[-1] > 400)
    read_from: list[int] = []
    make(source(), tmp_path, CONFIG, read_from.append)
    assert read_from[0] == begun + 50  # not from the beginning
    assert dict(files(tmp_path)) == dict(files(whole))


def test_every_place_where_a_pass_can_break_off_leaves_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    class Broken(Exception):
        pass

    for last in range(100, EVENTS, 250):

        def heard(count: int, last: int = last) -> None:
            if count >= last:
                raise Broken

        with pytest.raises(Broken):
            make(source(), tmp_path, CONFIG, heard)
        assert not list(tmp_path.glob("*.writing"))
    make(source(), tmp_path, CONFIG)
    assert dict(files(tmp_path)) == dict(files(whole))


def test_a_pass_goes_on_with_what_has_come_since(tmp_path: Path) -> None:
    made = [make(source(count), tmp_path, CONFIG) for count in (600, 600, EVENTS)]
    assert [one.events for one in made] == [600, 600, EVENTS]
    assert made[0].parts == made[1].parts < made[2].parts
    numbers = [part.rounds for part in folder.load(tmp_path).parts]
    assert all(a < b for a, b in pairwise(numbers))


def test_other_settings_or_another_source_are_refused(whole: Path, tmp_path: Path) -> None:
    before = dict(files(whole))
    other = replace(CONFIG, examples=replace(CONFIG.examples, window=60.0))
    with pytest.raises(UnusableSource, match=r"made with window '1800.0', not '60.0'"):
        make(source(), whole, other)
    with pytest.raises(UnusableSource, match="made with source 'simulated', not 'another'"):
        make(FileSource("another", 3, events), whole, CONFIG)
    assert dict(files(whole)) == before


def test_two_passes_do_not_write_one_folder(tmp_path: Path) -> None:
    def heard(_: int) -> None:
        with pytest.raises(StoreRefused, match="in use by another pass"):
            make(source(), tmp_path, CONFIG)

    make(source(200), tmp_path, CONFIG, heard)


def test_a_folder_of_another_schema_is_refused(whole: Path, tmp_path: Path) -> None:
    manifest = folder.load(whole)
    folder.store(tmp_path, replace(manifest, schema_hash="0123456789abcdef"))
    with pytest.raises(UnusableSource, match="schema_hash is 0123456789abcdef"):
        folder.load(tmp_path)
    with pytest.raises(UnusableSource, match="holds no examples"):
        folder.load(tmp_path / "nowhere")


# -- other sources -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runtime that was published the same events, with a checkpoint on the way."""
    path = tmp_path_factory.mktemp("kin")
    clock = StreamClock()
    with Embedded(
        path / "live", replace(CONFIG, model=replace(CONFIG.model, learn=False)), clock=clock
    ) as live:
        for first in range(0, EVENTS, 50):
            if first == 700:
                live.checkpoint(path / "checkpoint")
            batch = events()[first : first + 50]
            clock.advance(max(one["time"] for one in batch))
            live.publish(batch)
            live.catch_up()
    return path


def test_a_log_gives_the_examples_of_the_file(whole: Path, kin: Path, tmp_path: Path) -> None:
    """Its records lie in another order, by append time and partition, but polls hold the same ones."""
    make(LogSource(kin / "live"), tmp_path, CONFIG)
    a, b = IdVectors(0, 0, 0, 0.0), IdVectors(0, 0, 0, 0.0)
    assert rows_of(read(tmp_path, a), a) == rows_of(read(whole, b), b)


def test_a_checkpoint_and_the_log_behind_it_give_the_examples_behind_it(
    whole: Path, kin: Path, tmp_path: Path
) -> None:
    make(LogSource(kin / "live", kin / "checkpoint"), tmp_path, CONFIG)
    manifest = folder.load(tmp_path)
    assert manifest.events == EVENTS - 700
    assert manifest.positions == folder.load(whole).positions
    a, b = IdVectors(0, 0, 0, 0.0), IdVectors(0, 0, 0, 0.0)
    found, every = read(tmp_path, a), read(whole, b)
    positives = [row for row, kind in zip(rows_of(found, a), found.kinds, strict=True) if kind == POSITIVE]
    behind = [
        row
        for row, kind, number in zip(rows_of(every, b), every.kinds, every.rounds.tolist(), strict=True)
        if kind == POSITIVE and number > 14
    ]
    assert positives == behind
    # Every account that can be a candidate is told before the first example.
    first = next(folder.rounds(tmp_path, manifest.parts[0], a))
    assert first.examples is None
    assert first.candidates is not None
    assert len(first.candidates.gone) > 30


def rows_of(batch: ExampleBatch, ids: IdVectors) -> list[tuple[object, ...]]:
    """Examples by name, with what they knew of the consumer."""
    names = [ids.name(row) for row in batch.consumers.rows.tolist()]
    targets = [ids.name(row) for row in batch.producers.rows.tolist()]
    psi = [tuple(row) for row in batch.consumers.psi.tolist()]
    followees = [tuple(ids.name(row) for row in several) for several in batch.consumers.followees.tolist()]
    return list(
        zip(
            batch.kinds,
            batch.signals,
            batch.times.tolist(),
            batch.partitions.tolist(),
            batch.offsets.tolist(),
            names,
            targets,
            psi,
            followees,
            strict=True,
        )
    )


def test_a_log_that_begins_later_and_a_checkpoint_of_others_are_refused(kin: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="holds no runtime"):
        LogSource(tmp_path)
    other = tmp_path / "other"
    with Embedded(other, CONFIG, clock=StreamClock(T0)):
        pass
    with pytest.raises(StoreRefused, match="is a checkpoint of another runtime"):
        LogSource(other, kin / "checkpoint")
    for log in (other / "log").iterdir():
        for file in log.iterdir():
            file.rename(log / f"{5:020d}.log")
    with pytest.raises(StoreRefused, match="begins at offset 5, expected 0"):
        make(LogSource(other), tmp_path / "out", CONFIG)


def test_the_world_has_what_these_tests_look_for() -> None:
    signals = Counter(one["signal"] for one in events())
    assert min(signals[name] for name in ("follow", "impression", "retract", "account_delete")) > 0, WORLD
