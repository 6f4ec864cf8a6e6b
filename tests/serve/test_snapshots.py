"""A runtime that opens from a snapshot is the one that encodes everybody anew, and the one that never stopped."""

from __future__ import annotations

import logging
import random
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from soup import ACCOUNTS, DAY, START, soup

from kithstream.models.ages import TICK
from kithstream.models.checkpoint import read_header
from kithstream.models.features import SCHEMA
from kithstream.models.model import Model
from kithstream.models.ranker import MEASURED, Weights
from kithstream.streams.audit import audit
from kithstream.streams.backup import MODEL
from kithstream.streams.config import Config, EngineConfig, IndexSection, ModelConfig
from kithstream.streams.events.wire import Event
from kithstream.streams.load import Progress
from kithstream.streams.metrics import fresh
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.serve.embedded import restore as restore_checkpoint
from kithstream.streams.serve.snapshots import DERIVED, FOLDER, facts_of
from kithstream.streams.state.reader import Reader

ENGINE = EngineConfig(job_edges=3)
FROZEN = Config(engine=ENGINE, model=ModelConfig(learn=False), index=IndexSection(background=False))
LEARNING = Config(engine=ENGINE, index=IndexSection(background=False))
ANEW = IndexSection(background=False, snapshot_seconds=0)


class Clock:
    def __init__(self) -> None:
        self.now = START + 7 * DAY

    def __call__(self) -> int:
        return self.now


def follow(actor: str, target: str, time: int = START + 6 * DAY) -> Event:
    return Event(f"{actor}>{target}", "follow", actor, time, target=target)


CROWD = [follow(a, b) for a in ACCOUNTS for b in ACCOUNTS[:4] if a != b]


@contextmanager
def killed(live: Embedded, path: Path, config: Config) -> Iterator[Embedded]:
    """Open what kill -9 leaves of a runtime at this moment: what it wrote, and nothing that it would write yet."""
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(live.path, path)
    with Embedded(path, config, clock=live.clock) as again:
        yield again


def vectors(live: Embedded) -> dict[str, tuple[int, bytes]]:
    index = live.chain.index
    return {name: (index.sequence(name), index.vector(name).tobytes()) for name in sorted(index.ids())}


def told(live: Embedded) -> dict[str, tuple[object, ...]]:
    """What the facts hold, in names: of candidates everything, of others who their neighbours are."""
    assert live.chain.whole is not None
    facts = live.chain.whole.facts
    arrays = {key.removeprefix("facts."): values for key, values in facts.arrays().items()}
    followers, followees = arrays.pop("followers"), arrays.pop("followees")
    rest = [values for key, values in sorted(arrays.items()) if key not in ("names", "ends")]
    found: dict[str, tuple[object, ...]] = {}
    for number, name in enumerate(facts.names):
        near = tuple(tuple(facts.names[n] for n in side[number] if n) for side in (followers, followees))
        if name in live.chain.index:
            found[name] = (*near, *(np.asarray(values[number]).tobytes() for values in rest))
        elif any(near):
            found[name] = near
    return found


def ranking_model(folder: Path) -> Path:
    """A model that stays as it is, and whose ranker ranks."""
    model = Model.day_zero(0)
    rng = np.random.default_rng(0)
    dense, tables = model.ranker.weights
    model.ranker.weights = Weights(rng.normal(size=dense.shape), rng.normal(size=tables.shape))
    model.ranker.examples, model.ranker.gain = MEASURED, 0.1
    assert model.ranker.ready
    model.save(folder / "ranking.safetensors")
    return folder / "ranking.safetensors"


def is_exact(live: Embedded) -> None:
    """Every vector is what encoding the account anew at the vector's own tick gives, and none is overdue."""
    chain, index = live.chain, live.chain.index
    by_tick: dict[int, list[str]] = defaultdict(list)
    for name in sorted(index.ids()):
        by_tick[index.sequence(name)].append(name)
    for tick, names in by_tick.items():
        rows = Reader(live.engine, 1).read(names, tick * TICK)
        anew = chain.model.encode_producers(rows).vectors
        for name, vector in zip(names, anew, strict=True):
            assert index.vector(name).tobytes() == vector.tobytes(), (name, tick)
    assert sorted(chain.vectors.ageing) == sorted(index.ids())
    assert not chain.vectors.ageing.due(chain.tick, 1)


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(soup(), st.randoms(use_true_random=False), st.booleans())
def test_a_killed_runtime_opens_as_if_everybody_was_encoded_anew(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], rng: random.Random, still: bool
) -> None:
    """At one tick, bit for bit; after others, each vector at its own, and all of them once they are at one."""
    clock, base = Clock(), tmp_path_factory.mktemp("snapshots")
    config = structs.replace(FROZEN, model=structs.replace(FROZEN.model, path=str(ranking_model(base))))
    with Embedded(base / "live", config, clock=clock) as live:
        for first in range(0, len(events), 4):
            live.publish(events[first : first + 4])
            live.pump(rng.randrange(1, 4))
            if not still:
                clock.now += rng.choice((0, 0, TICK, 3 * TICK, 90 * TICK))
            if rng.random() < 0.4:
                live.save()
        live.save()
        live.publish(events[::3])  # again: nothing changes
        live.publish([follow("late", name, clock.now) for name in rng.sample(ACCOUNTS, 2)])
        live.pump()
        with (
            killed(live, base / "snapshot", config) as one,
            killed(live, base / "anew", structs.replace(config, index=ANEW)) as other,
        ):
            assert one.recovery.snapshot
            assert not other.recovery.snapshot
            is_exact(one)
            if not still:
                one.chain.rebuild(clock.now)
            assert vectors(one) == vectors(other)
            if still:
                assert told(one) == told(other)
            for name in ACCOUNTS:
                answers = [each.candidates(name, 10).candidates for each in (one, other)]
                assert answers[0] == answers[1]


def test_only_what_changed_is_encoded(tmp_path: Path) -> None:
    with Embedded(tmp_path / "live", FROZEN, clock=Clock()) as live:
        live.publish(CROWD)
        live.catch_up()
        live.save()
        live.publish([follow("late", "ann", START + 7 * DAY)])
        live.catch_up()
        with killed(live, tmp_path / "again", FROZEN) as again:
            assert again.recovery.changed == 2  # who followed, and whom
            assert again.recovery.encoded < len(again.chain.index)
            is_exact(again)
            assert vectors(again) == vectors(live)
            assert again.chain.vectors.ageing.capture()() == live.chain.vectors.ageing.capture()()


def test_a_snapshot_is_of_the_moment_that_it_was_begun(tmp_path: Path) -> None:
    """It is written beside folding: what happens meanwhile is marked, and not in it."""
    with Embedded(tmp_path / "live", FROZEN, clock=Clock()) as live:
        live.publish(CROWD)
        live.catch_up()
        live.save()
        chain, keeping = live.chain, live._keeping
        assert chain.whole is not None
        facts = {name: np.array(values) for name, values in chain.whole.facts.arrays().items()}
        captured, aged = facts_of(chain), chain.vectors.ageing.capture()
        ageing = aged()
        saving, _ = keeping.snapshots.begin(chain, keeping.trails[chain.model.lineage], live.path / MODEL)
        live.publish([follow("late", "ann", START + 7 * DAY), follow("ann", "late", START + 7 * DAY)])
        live.publish([Event("gone", "account_delete", ACCOUNTS[1], START + 7 * DAY)])
        live.catch_up()
        saving.run()
        keeping.snapshots.finish(saving)
        for name, values in captured().items():
            np.testing.assert_array_equal(values, facts[name], err_msg=name)
        assert aged() == ageing != chain.vectors.ageing.capture()()
        now = chain.whole.facts.arrays()
        same = {name for name in facts if np.array_equal(facts[name], now[name][: len(facts[name])])}
        assert not same & {"facts.names", "facts.ends", "facts.keys", "facts.listed", "facts.followers"}
        with killed(live, tmp_path / "again", FROZEN) as again:
            assert again.recovery.snapshot == saving.name
            is_exact(again)
            assert vectors(again) == vectors(live)
            assert told(again) == told(live)


def test_what_is_settled_outside_of_a_round_is_in_the_snapshot_that_drops_its_marks(tmp_path: Path) -> None:
    """Background work of a checkpoint changes rows that no flush has encoded when the runtime is closed."""
    slow = structs.replace(FROZEN, engine=EngineConfig(job_edges=1))
    with Embedded(tmp_path / "live", slow, clock=Clock()) as live:
        live.publish(CROWD)
        live.catch_up()
        live.save()
        live.publish([Event("p", "profile", ACCOUNTS[0], START + 7 * DAY, language="de")])
        live.pump()
        assert live.engine.working  # its follows carry the language, a few at a time
        live.checkpoint(tmp_path / "copy")
        assert live.chain.vectors.dirty
    with Embedded(tmp_path / "live", FROZEN, clock=Clock()) as again:
        assert again.recovery.snapshot
        assert again.recovery.changed == 0
        is_exact(again)


def test_a_deletion_after_the_snapshot_stays_deleted(tmp_path: Path) -> None:
    gone = ACCOUNTS[1]
    with Embedded(tmp_path / "live", LEARNING, clock=Clock()) as live:
        live.publish(CROWD)
        live.catch_up()
        live.save()
        assert gone in live.chain.index
        live.publish([Event("gone", "account_delete", gone, START + 7 * DAY)])
        live.catch_up()
        left = {f.place.split("/")[0]: f.until for f in audit(gone, live.path, [], LEARNING).leftovers}
        assert left == {
            FOLDER: "until the next snapshot (index.snapshot_seconds), or the runtime is closed",
            MODEL: "until it is saved again (model.save_seconds), or its runtime is closed; a copy until it is removed",
        }
        with killed(live, tmp_path / "again", LEARNING) as again:
            assert again.recovery.snapshot
            assert gone not in again.chain.index
            assert gone not in again.chain.vectors.ageing
            assert again.chain.whole is not None
            assert gone not in again.chain.whole.facts.names
            assert gone not in {c.account for c in again.candidates("stranger", 50).candidates}
        assert not audit(gone, tmp_path / "again", [], LEARNING).leftovers
        live.save()
        assert not audit(gone, live.path, [], LEARNING).leftovers


def test_learning_goes_on_from_the_last_save(tmp_path: Path) -> None:
    """What was learned since is lost; vectors of the model's own past are kept, and no others."""
    with Embedded(tmp_path / "live", LEARNING, clock=Clock()) as live:
        live.publish(CROWD[:20])
        live.catch_up()
        live.save()
        saved = live.chain.model.step
        live.publish(CROWD[20:])
        live.catch_up()
        assert live.chain.model.step > saved > 0
        with killed(live, tmp_path / "again", LEARNING) as again:
            assert again.recovery.snapshot
            assert again.chain.model.step == saved
            names = sorted(again.chain.index.ids())
            assert names == sorted(live.chain.index.ids())
        live.save_model()  # without a snapshot: those of before are of its past
        with killed(live, tmp_path / "again", LEARNING) as again:
            assert again.recovery.snapshot
            assert again.chain.model.step == live.chain.model.step


def test_a_model_that_learned_something_else_refuses_the_snapshot(tmp_path: Path) -> None:
    """Same lineage, more steps, other weights: the vectors would be of no model that there is."""
    with Embedded(tmp_path / "other", LEARNING, clock=Clock()) as other:
        other.publish(CROWD[::-1])
        for _ in range(len(CROWD)):
            other.pump(1)
    with Embedded(tmp_path / "live", LEARNING, clock=Clock()) as live:
        live.publish(CROWD)
        live.catch_up()
        live.save()
        lineage, step = live.chain.model.lineage, live.chain.model.step
    theirs = read_header(tmp_path / "other" / MODEL, SCHEMA.hash)
    assert theirs.lineage == lineage
    assert theirs.step >= step
    shutil.copy(tmp_path / "other" / MODEL, tmp_path / "live" / MODEL)
    with Embedded(tmp_path / "live", LEARNING, clock=Clock()) as again:
        assert "no past one" in again.recovery.refused
        assert again.recovery.encoded == len(again.chain.index)
    (tmp_path / "live" / MODEL).unlink()
    with Embedded(tmp_path / "live", LEARNING, clock=Clock()) as again:
        assert "at step 0" in again.recovery.refused


def test_where_nothing_is_learned_no_vector_is_of_a_step_before(tmp_path: Path) -> None:
    """What learned is opened to stand still: one model made all, bit for bit, and the next opening keeps them."""
    still = structs.replace(LEARNING, model=ModelConfig(learn=False))
    with Embedded(tmp_path / "live", LEARNING, clock=Clock()) as live:
        for event in CROWD:
            live.publish([event])
            live.pump()
    with Embedded(tmp_path / "live", still, clock=Clock()) as live:
        assert "no past one" in live.recovery.refused
        is_exact(live)
        before = vectors(live)
    with Embedded(tmp_path / "live", still, clock=Clock()) as live:
        assert live.recovery.snapshot
        assert vectors(live) == before


def test_a_model_whose_training_was_taken_away_is_not_what_the_file_says(tmp_path: Path) -> None:
    """An evaluation stops learning in the middle: nothing is saved of that, and the next opening encodes everybody."""
    with Embedded(tmp_path / "live", LEARNING, clock=Clock()) as live:
        live.publish(CROWD)
        live.catch_up()
        live.chain.trainer = None
        live.save()
    with Embedded(tmp_path / "live", LEARNING, clock=Clock()) as live:
        assert (live.recovery.snapshot, live.recovery.refused) == ("", "")
        assert live.recovery.encoded == len(live.chain.index) > 0


def test_another_model_in_the_settings_refuses_the_snapshot(tmp_path: Path) -> None:
    Model.day_zero(1).save(tmp_path / "one.safetensors")
    with Embedded(tmp_path / "live", FROZEN, clock=Clock()) as live:
        live.publish(CROWD)
        live.catch_up()
    other = structs.replace(FROZEN, model=ModelConfig(learn=False, path=str(tmp_path / "one.safetensors")))
    with Embedded(tmp_path / "live", other, clock=Clock()) as live:
        assert live.recovery.refused.startswith("lineage is")
        is_exact(live)
    with Embedded(tmp_path / "live", other, clock=Clock()) as live:
        assert live.recovery.snapshot


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("file", ["vectors.npy", "ids.json", "meta.json", DERIVED, ""])
def test_a_damaged_snapshot_is_refused_and_everybody_encoded(
    tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Embedded(tmp_path / "live", FROZEN, clock=Clock()) as live:
        live.publish(CROWD)
        live.catch_up()
    before = vectors(live)
    (folder,) = (path for path in (tmp_path / "live" / FOLDER).iterdir() if path.is_dir())
    path = folder / file
    if not file:
        shutil.rmtree(folder)
    elif damage == "remove":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    with caplog.at_level(logging.WARNING), Embedded(tmp_path / "live", FROZEN, clock=Clock()) as again:
        assert again.recovery.snapshot == ""
        assert (file or "names no snapshot") in again.recovery.refused
        assert again.recovery.refused in caplog.text
        assert vectors(again) == before
        metrics = fresh()
        metrics.watch(again)
        assert b"kithstream_snapshots_refused_total 1.0" in metrics.text()
    with Embedded(tmp_path / "live", FROZEN, clock=Clock()) as again:
        assert again.recovery.snapshot  # a good one took its place


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", "another"),
        ("lineage", "another"),
        ("communities", "v"),
        ("form", 2),
        ("applied", "[900, 0, 0]"),
    ],
)
def test_a_snapshot_that_does_not_fit_is_refused(tmp_path: Path, key: str, value: str | int) -> None:
    with Embedded(tmp_path / "live", FROZEN, clock=Clock()) as live:
        live.publish(CROWD)
        live.catch_up()
        live.save()
        _, metadata = live.chain.index.restore(live.snapshots.folder, live.chain.index.config)
        (derived,) = live.snapshots.folder.glob(f"*/{DERIVED}")
        content = derived.read_bytes()
        wrong = live.chain.index.capture().write(
            live.snapshots.folder,
            {**metadata, key: value},
            beside=lambda folder: (folder / DERIVED).write_bytes(content) and None,
        )
        for partition in live.engine.partitions:
            partition.changed.name(partition.changed.begin(), wrong.path.name)
        with killed(live, tmp_path / "again", FROZEN) as again:
            assert again.recovery.refused.startswith(
                "it is of offset 900" if key == "applied" else f"{key} is"
            )
            assert vectors(again) == vectors(live)


def test_an_older_checkpoint_stands_on_its_own_snapshot_or_on_none(tmp_path: Path) -> None:
    with Embedded(tmp_path / "live", FROZEN, clock=Clock()) as live:
        live.publish(CROWD[:20])
        live.catch_up()
        live.save()
        live.publish(CROWD[20:30])
        live.catch_up()
        live.checkpoint(tmp_path / "copy")
        live.publish(CROWD[30:])
        live.catch_up()
        with killed(live, tmp_path / "again", FROZEN) as again:
            expected = vectors(again)
        shutil.copytree(live.path, tmp_path / "back")
    restore_checkpoint(tmp_path / "copy", tmp_path / "back")
    with Embedded(tmp_path / "back", FROZEN, clock=Clock()) as back:
        assert back.recovery.snapshot  # is still there
        back.catch_up()
        is_exact(back)
        assert vectors(back) == expected
    restore_checkpoint(tmp_path / "copy", tmp_path / "live")  # whose snapshot another took the place of
    with Embedded(tmp_path / "live", FROZEN, clock=Clock()) as back:
        assert "names no snapshot" in back.recovery.refused
        back.catch_up()
        assert vectors(back) == expected


def test_a_bulk_load_leaves_no_snapshot_behind_that_lacks_it(tmp_path: Path) -> None:
    (tmp_path / "graph.csv").write_text(
        "source,target\n" + "".join(f"u{n},{ACCOUNTS[n % 3]}\n" for n in range(9))
    )
    with Embedded(tmp_path / "live", FROZEN, clock=Clock()) as live:
        live.publish(CROWD)
        live.catch_up()
        live.save()

        def copy(progress: Progress) -> None:
            """What a kill leaves when the ledgers of the last partition are ahead of its rows."""
            if progress.stage == "edges":
                shutil.rmtree(tmp_path / "broken", ignore_errors=True)
                shutil.copytree(live.path, tmp_path / "broken")

        live.load(tmp_path / "graph.csv", on_progress=copy)
        with killed(live, tmp_path / "again", FROZEN) as again:
            assert not again.recovery.snapshot
            is_exact(again)
    with Embedded(tmp_path / "broken", FROZEN, clock=Clock()) as broken:
        is_exact(broken)
        assert (
            broken.chain.index.vector(ACCOUNTS[0]).tobytes()
            == again.chain.index.vector(ACCOUNTS[0]).tobytes()
        )
    with Embedded(tmp_path / "live", FROZEN, clock=Clock()) as again:
        assert again.recovery.snapshot
        is_exact(again)


def test_a_runtime_that_folds_by_itself_saves_by_itself(tmp_path: Path) -> None:
    config = structs.replace(
        LEARNING,
        model=ModelConfig(save_seconds=0.01),
        index=IndexSection(background=False, snapshot_seconds=0.05),
    )
    with Embedded(tmp_path / "live", config, clock=Clock()).start() as live:
        for event in CROWD:
            live.wait(live.publish([event]), deadline=30)
        wanted = live.chain.model.step
        at = 0
        while not live.snapshots.saved or read_header(tmp_path / "live" / MODEL, SCHEMA.hash).step < wanted:
            live.wait(live.publish([follow(f"u{at}", ACCOUNTS[0], START + 7 * DAY)]), deadline=30)
            at += 1
            assert at < 5000
    assert live.snapshots.failed == 0
