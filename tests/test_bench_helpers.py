"""What benchmarks work out from what they measured, on values worked out by hand."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from bench import cold, leaks, memory, refresh, resistance, signals, state
from bench.__main__ import NAMES

from kithstream.streams.engine.partition import FOLLOWEES, FOLLOWERS, ROW_IN, SIZES
from kithstream.streams.events.signals import CONTROLS, SIGNALS
from kithstream.streams.events.signals import NAMES as EVENTS
from kithstream.streams.state import recent
from kithstream.streams.state.memory import MemoryStore
from kithstream.streams.state.protocol import Column
from kithstream.streams.world import SimulationConfig, World

SMALL = argparse.Namespace(
    seed=0, accounts=400, batch=100, few=10, events=40, edges=300, only=[], warm=0, times=1, jobs=1
)


def test_every_benchmark_is_named() -> None:
    folder = Path(memory.__file__).parent
    runnable = {file.stem for file in folder.glob("*.py") if '__name__ == "__main__"' in file.read_text()}
    runnable |= {file.parent.name for file in folder.glob("*/__main__.py")}
    assert set(NAMES) == runnable - {"__main__"}


def test_every_name_that_a_benchmark_imports_is_there() -> None:
    """Some are imported within functions, where else a run of minutes finds that one has moved."""
    root = Path(memory.__file__).parents[1]
    missing = []
    for file in sorted(root.glob("bench/**/*.py")):
        for module, name in _imported(file):
            if module.startswith("kithstream"):
                here = importlib.import_module(module)
                submodule = hasattr(here, "__path__") and importlib.util.find_spec(f"{module}.{name}")
                found = hasattr(here, name) or bool(submodule)
            else:  # as text: some need what is not installed
                where = root.joinpath(*module.split("."))
                source = where / "__init__.py" if where.is_dir() else where.with_suffix(".py")
                found = name in _bound(source) or (where / f"{name}.py").exists()
            if not found:
                missing.append(f"{file.name}: {module} has no {name}")
    assert not missing


def _imported(file: Path) -> Iterator[tuple[str, str]]:
    """The modules of the repository that a file imports names from, with the names."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("bench", "kithstream"):
            assert node.module is not None
            yield from ((node.module, alias.name) for alias in node.names)


def _bound(file: Path) -> set[str]:
    """The names of a module."""
    bound: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.Assign(targets=targets):
                bound |= {
                    one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)
                }
            case ast.AnnAssign(target=ast.Name(id=name)):
                bound.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                bound |= {alias.asname or alias.name for alias in names}
    return bound


# -- cold start ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judge() -> cold.Judge:
    world = World.build(SimulationConfig(accounts=500))
    return cold.Judge(world, world.config.start, list(range(400)), np.arange(400))


def test_marks_of_a_perfect_and_of_a_useless_list(judge: cold.Judge) -> None:
    assert judge.marks(450, [1, 2, 3], [1, 2, 3])[:2] == (1.0, pytest.approx(1.0))
    assert judge.marks(450, [1, 2, 3], [4, 5])[:2] == (0.0, 0.0)
    assert judge.marks(450, [], [4, 5]) == (0.0, 0.0, 0.0, 0.0)


def test_marks_discount_by_place_and_read_the_truth(judge: cold.Judge) -> None:
    recall, gain, affinity, language = judge.marks(450, [9, 7], [7, 8])
    assert recall == 0.5
    assert gain == pytest.approx((1 / np.log2(3)) / (1 + 1 / np.log2(3)))
    world, at = judge.world, judge.at
    assert affinity == pytest.approx(
        (world.affinity("u450", "u9", at) + world.affinity("u450", "u7", at)) / 2
    )
    spoken = [world.language(f"u{number}") == world.language("u450") for number in (9, 7)]
    assert language == np.mean(spoken)


def test_rules_leave_out_whom_they_are_told_and_keep_to_what_they_say(judge: cold.Judge) -> None:
    rules = judge.lists(np.random.default_rng(0))
    assert rules["popularity"](450, {399, 397})[:2] == [398, 396]
    for name, rule in rules.items():
        shown = rule(450, {399, 398})
        assert len(set(shown) - {399, 398}) == cold.K, name
    assert judge.marks(450, rules["popularity in the language"](450, set()), [1])[3] == 1.0
    best = judge.affinities(450, np.array(rules["highest affinity"](450, set())))
    assert best.min() >= np.sort(judge.affinities(450, judge.present))[-cold.K]


def test_true_follows_are_of_those_that_are_there_and_liked_more_than_others(judge: cold.Judge) -> None:
    draw = np.random.default_rng(1)
    liked = [judge.true_follows(draw, account, 20) for account in range(450, 470)]
    assert all(len(set(plan)) == 20 and max(plan) < 400 for plan in liked)
    own = np.mean(
        [judge.affinities(n, np.array(plan)).mean() for n, plan in zip(range(450, 470), liked, strict=True)]
    )
    blind = np.mean([judge.affinities(n, judge.present).mean() for n in range(450, 470)])
    assert own > 2 * blind


def test_moved_places_without_the_followed_account() -> None:
    assert cold.moved([1, 2, 3], [1, 3, 4], 2) == 0
    assert cold.moved([1, 2, 3], [3, 1, 4], 2) == 2


def test_ranks_beyond_the_last_are_in_no_share() -> None:
    assert cold.ranked([1, 20, 21, 1001]) == {"median": 20.5, "in_first_20": 0.5, "in_first_100": 0.75}


# -- resistance ----------------------------------------------------------------------------------------------


def test_what_one_actor_moves_is_told_with_and_without_the_bound() -> None:
    deeds = dict(resistance.wide(640))["churn"]
    bounded, unbounded = (resistance.moved(deeds, 640, reach) for reach in (40, 0))
    assert (unbounded["moved"], unbounded["total"], unbounded["median"]) == (640, 640, 1.0)  # the unfollows
    assert 20 <= bounded["moved"] == bounded["total"] <= 60  # 40, as a hash has it
    assert bounded["standing"] == unbounded["standing"] == 0
    follows = resistance.moved(dict(resistance.wide(640))["follows"], 640, 40)
    assert follows["standing"] == 640
    assert 20 <= follows["total"] <= 60


def test_strength_tells_up_from_down_and_takes_the_largest_move() -> None:
    none = resistance.Seen(np.zeros((3, 7)), np.zeros((32, 5)), 0, np.array([10, 20]))
    counts = np.zeros((3, 7))
    counts[1, resistance.DAY], counts[2, resistance.DAY], counts[0, 0] = 5, -7, 99
    after = resistance.Seen(counts, np.zeros((32, 5)), 0, np.array([4, 6]))
    assert resistance.strength(none, after) == {"counts": 7.0, "families": 0.0, "rank": 10.0}
    assert resistance.strength(after, none)["rank"] == -10.0


# -- memory --------------------------------------------------------------------------------------------------


class Node(msgspec.Struct, gc=False):
    held: bytes


def test_reached_counts_everything_once_and_what_the_collector_does_not_see() -> None:
    array, tensor, raw = np.zeros(100_000), torch.zeros(50_000), b"x" * 30_000
    seen: set[int] = set()
    found = memory.reached([{"a": [array, array[10:]], "b": (tensor, tensor[5:]), "c": Node(raw)}], seen)
    assert 800_000 + 200_000 + 30_000 <= found < 1_040_000
    assert memory.reached([array, raw, tensor], seen) < 1000


# -- signals and refresh -------------------------------------------------------------------------------------


def test_cost_is_a_mean_over_events_and_a_percentile_over_batches() -> None:
    few = [(10, 100e-6)] * 98 + [(10, 1000e-6)] * 2
    cost = signals.cost([(100, 0.002), (50, 0.0025)], few)
    assert (cost.us, cost.us_few, cost.us_few_p99) == (30.0, 11.8, 100.0)


def test_every_event_is_measured_and_its_undo_takes_back_what_it_did(tmp_path: Path) -> None:
    bench = signals.Bench(tmp_path, SMALL)
    names, rows = [], []
    for name, events in signals.by_signal(bench):
        bench.fold(events, 100)
        names.append(name)
        if name in ("unfollow", "unmute", "unblock"):
            pairs = [pair for p in bench.engine.partitions for pair in p.store.scan(Column.ROWS, ROW_IN)]
            rows.append(sum(len(value) for _, value in pairs))
    measured = {name.split(" ")[0] for name in names}
    assert measured == set(EVENTS)
    assert {signal.name for signal in SIGNALS} | set(CONTROLS) <= measured
    assert rows == [rows[0]] * 3  # mutes and blocks have left nothing behind
    bench.close()


def test_what_a_signal_costs_is_told_of_all_its_events(tmp_path: Path) -> None:
    bench = signals.Bench(tmp_path, SMALL)
    told = signals.measured(bench, bench.events("follow", bench.pairs(40)))
    assert (told["events"], told["few_batches"]) == (40, 1)
    assert told["us"] > 0  # type: ignore[operator]
    by_column = told["by_column"]
    assert isinstance(by_column, dict)
    assert by_column["out"] > 0 < by_column["in"]
    bench.close()


def test_a_refresh_sends_every_follow_again(tmp_path: Path) -> None:
    bench = signals.Bench(tmp_path, SMALL)
    bench.fold(bench.events("follow", bench.pairs(200)), 100)
    refresh.hub(bench, "hub", 30)
    before = {key: value for p in bench.engine.partitions for key, value in p.store.scan(Column.IN, b"")}
    done = refresh.refresh(bench, "hub", "pt")
    after = {key: value for p in bench.engine.partitions for key, value in p.store.scan(Column.IN, b"")}
    changed = [key for key in after if after[key] != before[key]]
    assert len(changed) == 30
    assert all(b"hub" in key for key in changed)
    assert done.bytes > 30 * 20
    assert done.steps == 1
    bench.close()


# -- leaks ---------------------------------------------------------------------------------------------------


def test_events_of_a_pair_do_and_undo_in_turn_and_tell_whom_they_keep_out() -> None:
    pair, rng = leaks.Pair("ann", "bob"), random.Random(0)
    on: set[tuple[str, str, str]] = set()
    undone = {undo: do for do, undo in leaks.DOS.items()}
    seen = set()
    for _ in range(500):
        signal, actor, target = pair.next_event(rng)
        assert {actor, target} == {"ann", "bob"}
        edge = undone.get(signal, signal), actor, target
        assert (signal in undone) == (edge in on)
        on ^= {edge}
        seen.add((signal, actor))
        for account, other in (("ann", "bob"), ("bob", "ann")):
            kept = {do for do, by, _ in on if do != "follow"} or ("follow", account, other) in on
            assert pair.kept_out(account) == bool(kept)
    assert len(seen) == 16


def test_the_world_s_pairs_live_in_different_partitions() -> None:
    events, pairs = leaks.world(argparse.Namespace(seed=0, known=12, accounts=50))
    route = leaks.Route(leaks.PARTITIONS)
    assert pairs
    assert all(route[one] != route[other] for one, other in (pair.sides for pair in pairs))
    followed = {event["target"] for event in events if event["signal"] == "follow"}
    assert followed >= {side for pair in pairs for side in pair.sides}


# -- states compared -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", [FOLLOWERS, FOLLOWEES, *(kind.value for kind in SIZES)])
def test_states_are_equal_where_lists_differ_beyond_what_is_read(letter: bytes) -> None:
    size, key = state.LISTS[letter], letter + b"ann"
    entries = [(-time, f"u{time}") for time in range(size.capacity, 0, -1)]

    def holding(entries: list[recent.Entry]) -> MemoryStore:
        store = MemoryStore()
        listed = recent.dump(recent.Recent(entries, complete=False))
        store.write({Column.ROWS: {key: listed, letter + b"bob": recent.dump(recent.Recent())}})
        return store

    store, shorter = holding(entries), holding(entries[: size.read])
    assert state.digest(store, 0) == state.digest(shorter, 0)
    assert state.digest(store, 0)["rows"][0] == 1
    assert not list(state.differing(store, shorter, Column.ROWS, 0))
    other, nothing = holding([(-99, "u0"), *entries]), holding([])
    assert state.digest(store, 0) != state.digest(other, 0)
    assert [key for key, _, _ in state.differing(store, other, Column.ROWS, 0)] == [key]
    ((_, here, there),) = state.differing(nothing, store, Column.ROWS, 0)
    assert here is None
    assert there
