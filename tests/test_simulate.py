from __future__ import annotations

import tracemalloc
from collections import Counter, defaultdict
from typing import Final

import msgspec
import numpy as np
import pytest

from kithstream.streams.events.record import Record
from kithstream.streams.events.signals import BY_NAME, CONTROLS, NAMES, UNDO_OF
from kithstream.streams.recent import Neighbours, Recent, Ties
from kithstream.streams.simulate import MIX, SimulationConfig, World, as_json_lines, simulate
from kithstream.streams.world import LANGUAGE_CODES, zipf_ranks

SECOND: Final = 1_000_000
# Rare signals are made more frequent, so that each is there whatever the seed.
RARE: Final = {"account_delete": 0.0003, "withdraw_report": 0.001, "address_book_remove": 0.001}
CONFIG: Final = SimulationConfig(accounts=2000, seed=5, mix=MIX | RARE)
COUNT: Final = 60_000


@pytest.fixture(scope="module")
def events() -> list[Record]:
    return [event for batch in simulate(CONFIG, COUNT) for event in batch]


@pytest.fixture(scope="module")
def once(events: list[Record]) -> list[Record]:
    """Each event once, in the order of the times."""
    return sorted({event["id"]: event for event in events}.values(), key=lambda event: event["time"])


@pytest.fixture(scope="module")
def world() -> World:
    return World.build(CONFIG)


def truth(world: World, some: list[Record]) -> np.ndarray:
    return world.affinities(
        np.array([world.number(event["actor"]) for event in some]),
        np.array([world.number(event["target"]) for event in some]),
        np.array([event["time"] for event in some]),
    )


def test_a_seed_is_a_stream() -> None:
    first = b"".join(as_json_lines(CONFIG, 8000))
    assert first == b"".join(as_json_lines(CONFIG, 8000))
    other = msgspec.structs.replace(CONFIG, seed=6)
    assert first != b"".join(as_json_lines(other, 8000))


@pytest.mark.parametrize("count", [0, 1, 2500, 7999])
def test_the_first_events_do_not_depend_on_how_many_follow(count: int) -> None:
    short = b"".join(as_json_lines(CONFIG, count))
    assert short.count(b"\n") == count
    assert b"".join(as_json_lines(CONFIG, 8000)).startswith(short)


def test_json_lines_are_the_events() -> None:
    lines = b"".join(as_json_lines(CONFIG, 3000)).splitlines()
    assert [msgspec.json.decode(line) for line in lines] == [e for b in simulate(CONFIG, 3000) for e in b]


def test_some_accounts_consent_to_their_address_books(events: list[Record]) -> None:
    known = {event["actor"] for event in events if event["signal"] == "profile"}
    consenting = {event["actor"] for event in events if event.get("contacts")}
    assert 0.25 < len(consenting) / len(known) < 0.35


def test_every_event_has_the_fields_of_its_signal(events: list[Record]) -> None:
    plain = {"id", "signal", "actor", "time", "source"}
    for event in events:
        name, fields = event["signal"], set(event)
        assert name in NAMES
        signal = UNDO_OF.get(name) or BY_NAME.get(name)
        wanted = {"id", "signal", "actor", "time"}
        allowed = set(plain)
        if name == "profile":
            wanted |= {"language", "country", "private", "suspended"}
            allowed |= {"contacts"}
        elif name == "retract":
            wanted |= {"retracts"}
        elif name not in CONTROLS:
            assert signal is not None
            wanted |= {"target"}
            wanted |= {"item"} if signal.item or name == "impression" else set()
            wanted |= {"value"} if name in ("click", "video_watch", "impression") else set()
            assert event["target"] != event["actor"]
        assert wanted <= fields <= allowed | wanted, event
        assert event.get("source", "client") == "client"
        assert event["time"] >= CONFIG.start - 1


def test_all_signals_come_in_plausible_shares(events: list[Record]) -> None:
    counts = Counter(event["signal"] for event in events)
    assert set(counts) == set(NAMES)
    social = sum(counts[name] for name in counts if name not in CONTROLS and name != "impression")
    assert 0.12 < counts["follow"] / social < 0.18
    assert 0.35 < counts["like"] / social < 0.45


def test_a_profile_comes_before_everything_else(events: list[Record], world: World) -> None:
    introduced: set[str] = set()
    for event in events:
        if event["signal"] == "profile" and event["actor"] not in introduced:
            introduced.add(event["actor"])
            assert event.get("language") == world.language(event["actor"])
        assert event["actor"] in introduced
        assert event.get("target", event["actor"]) in introduced


def test_ids_are_unique_but_for_duplicates(events: list[Record]) -> None:
    by_id: dict[str, Record] = {}
    for event in events:
        assert by_id.setdefault(event["id"], event) == event
    # the share asked for, give or take five standard deviations of 60,000 draws
    assert 1 - len(by_id) / len(events) == pytest.approx(CONFIG.duplicate_share, abs=0.0021)


def test_some_events_come_late_and_most_nearly_in_order(events: list[Record]) -> None:
    times = np.array([event["time"] for event in events])
    behind = (np.maximum.accumulate(times) - times) / SECOND
    # 2 % late by half an hour in the mean, and half of the duplicates by more than 42 s
    assert 0.015 < (behind > 60).mean() < 0.035
    assert (behind > 0).mean() > 0.02
    assert behind.max() < CONFIG.late_limit + 3600


def test_undos_take_back_what_was_done(once: list[Record]) -> None:
    done: set[tuple[str, str, str, str | None]] = set()
    real: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for event in once:
        if signal := UNDO_OF.get(event["signal"]):
            total[event["signal"]] += 1
            real[event["signal"]] += (signal.name, *key(event)) in done
        elif "target" in event:
            done.add((event["signal"], *key(event)))
    assert set(total) == set(UNDO_OF)
    # orphans are 2 %; the dos of another few are published after the end
    assert real.total() / total.total() > 0.95
    assert real.total() < total.total()


def key(event: Record) -> tuple[str, str, str | None]:
    return event["actor"], event["target"], event.get("item")


def test_retracts_name_earlier_events_of_the_same_actor(once: list[Record]) -> None:
    times = {event["id"]: (event["time"], event["actor"]) for event in once}
    retracts = [event for event in once if event["signal"] == "retract"]
    found = [times[event["retracts"]] for event in retracts if event["retracts"] in times]
    assert len(found) > 0.95 * len(retracts) > 20
    assert all(
        times[event["retracts"]][0] < event["time"] and times[event["retracts"]][1] == event["actor"]
        for event in retracts
        if event["retracts"] in times
    )


def test_nobody_acts_while_away(once: list[Record]) -> None:
    away: set[str] = set()
    controls: Counter[str] = Counter()
    for event in once:
        name = event["signal"]
        controls[name] += 1
        if name == "account_reactivate":
            away.discard(event["actor"])
        assert event["actor"] not in away, event
        if name in ("account_deactivate", "account_delete"):
            away.add(event["actor"])
    assert controls["account_deactivate"] > controls["account_reactivate"] > 0
    assert controls["account_delete"] > 0


def test_popularity_and_activity_follow_power_laws(once: list[Record]) -> None:
    follows = Counter(event["target"] for event in once if event["signal"] == "follow")
    degrees = np.array(sorted(follows.values(), reverse=True))
    assert degrees[: CONFIG.accounts // 100].sum() / degrees.sum() > 0.08
    ranks = np.arange(10, 300)
    slope = np.polyfit(np.log(ranks), np.log(degrees[ranks]), 1)[0]
    assert -1.2 < slope < -0.4
    acts = np.array(sorted(Counter(event["actor"] for event in once).values(), reverse=True))
    assert acts[:20].mean() > 8 * np.median(acts)


def test_languages_are_skewed_and_go_with_communities(world: World) -> None:
    names = [world.language(f"u{number}") for number in range(CONFIG.accounts)]
    shares = {code: names.count(code) / len(names) for code in LANGUAGE_CODES}
    assert max(shares, key=lambda code: shares[code]) == "en"
    same = world.language_of[:-1] == world.language_of[1:]
    together = world.member[:-1, 0] == world.member[1:, 0]
    assert same[together].mean() > same[~together].mean() + 0.2


def test_affinity_is_a_probability_that_drifts(world: World) -> None:
    draw = np.random.default_rng(0)
    u, v = draw.integers(0, CONFIG.accounts, (2, 5000))
    at = np.full(5000, CONFIG.start)
    today = world.affinities(u, v, at)
    assert ((today > 0) & (today < 1)).all()
    assert np.array_equal(today, world.affinities(u, v, at))
    assert world.affinity(f"u{u[7]}", f"u{v[7]}", CONFIG.start) == pytest.approx(today[7], rel=1e-6)
    hour, month = (world.affinities(u, v, at + days * 86_400 * SECOND) for days in (1 / 24, 30))
    assert np.abs(hour - today).max() < 0.02
    assert np.corrcoef(today, month)[0, 1] < 0.7


def test_a_common_language_brings_accounts_closer(world: World) -> None:
    u, v = np.random.default_rng(0).integers(0, CONFIG.accounts, (2, 1000))
    at = np.full(1000, CONFIG.start)
    apart = world.language_of[u] != world.language_of[v]
    gain = world._replace(language_of=0 * world.language_of).affinities(u, v, at) / world.affinities(u, v, at)
    assert (gain[apart] > 1.2).all()
    assert (gain[~apart] == 1).all()


def test_shown_accounts_are_followed_with_the_true_probability(once: list[Record], world: World) -> None:
    followed = defaultdict(list)
    for event in once:
        if event["signal"] == "follow":
            followed[event["actor"], event["target"]].append(event["time"])
    shown = [event for event in once if event["signal"] == "impression"]
    taken = np.array(
        [
            any(
                0 <= time - event["time"] <= 31 * SECOND for time in followed[event["actor"], event["target"]]
            )
            for event in shown
        ]
    )
    affinity = truth(world, shown)
    assert len(shown) > 3000
    assert affinity[taken].mean() > affinity[~taken].mean() + 0.1
    for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 1)):
        inside = (affinity >= low) & (affinity < high)
        deviation = np.sqrt(max(affinity[inside].mean(), 0.01) / inside.sum())
        # four standard deviations, and .02 for those that are followed otherwise or twice in one batch
        assert abs(taken[inside].mean() - affinity[inside].mean()) < 4 * deviation + 0.02


def test_the_old_ranker_shows_the_popular_of_one_language(once: list[Record], world: World) -> None:
    shown = [world.number(event["target"]) for event in once if event["signal"] == "impression"]
    assert np.median(world.popularity_rank[shown]) < 0.1 * CONFIG.accounts
    assert (world.language_of[shown] == 0).mean() > (world.language_of == 0).mean() + 0.2


def test_follows_go_where_affinity_is_and_blocks_where_it_is_not(once: list[Record], world: World) -> None:
    draw = np.random.default_rng(0)
    anyone = draw.integers(0, CONFIG.accounts, (2, 5000))
    mean = world.affinities(*anyone, np.full(5000, CONFIG.start)).mean()
    by_signal = defaultdict(list)
    for event in once:
        by_signal[event["signal"]].append(event)
    assert truth(world, by_signal["follow"]).mean() > 2 * mean
    assert truth(world, by_signal["like"]).mean() > 2 * mean
    assert truth(world, by_signal["block"]).mean() < truth(world, by_signal["follow"]).mean() / 2


def test_follows_are_often_returned_after_a_while(once: list[Record]) -> None:
    first: dict[tuple[str, str], int] = {}
    for event in once:
        if event["signal"] == "follow":
            first.setdefault((event["actor"], event["target"]), event["time"])
    delays = [abs(time - first[v, u]) / SECOND for (u, v), time in first.items() if (v, u) in first]
    assert len(delays) / len(first) > 0.2
    assert 60 < np.median(delays) < 4 * 3600


def test_hot_accounts_are_talked_about_while_they_are_hot(once: list[Record], world: World) -> None:
    some = [event for event in once if event["signal"] in ("follow", "like")]
    targets = np.array([world.number(event["target"]) for event in some])
    slots = np.array([int((e["time"] - CONFIG.start) / SECOND // CONFIG.burst_seconds) for e in some])
    hot = [set(world.hot(slot).tolist()) for slot in range(slots.max() + 2)]
    now = np.mean([target in hot[slot] for target, slot in zip(targets, slots, strict=True)])
    later = np.mean([target in hot[slot + 1] for target, slot in zip(targets, slots, strict=True)])
    assert now > 0.05
    assert now > 5 * later


def test_memory_does_not_grow_with_the_number_of_events() -> None:
    tracemalloc.start()
    try:
        chunks = as_json_lines(msgspec.structs.replace(CONFIG, batch=1024), 120_000)
        lines = 0
        while lines < 30_000:
            lines += next(chunks).count(b"\n")
        early = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        for _ in chunks:
            pass
        late = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # the memories of rare signals fill up slowly: at most ten of 4096 rows of 54 bytes
    assert late < early + 2_500_000


def test_no_more_than_the_bound_is_held_back() -> None:
    config = msgspec.structs.replace(CONFIG, batch=64, pending=50, late_share=0.5, late_seconds=1e6)
    ids = {event["id"] for batch in simulate(config, 20_000) for event in batch}
    numbers = [int(name.partition(".")[2]) for name in ids]
    # what is missing is held back, or part of the last batch: 64 actions and what comes with them
    assert 50 <= max(numbers) + 1 - len(numbers) < 50 + 64 * 6


def test_days_are_livelier_than_nights(once: list[Record]) -> None:
    hours = np.array([(event["time"] - CONFIG.start) // (3600 * SECOND) for event in once])
    counts = np.bincount(hours)
    assert counts[11:13].mean() > 1.5 * counts[23:25].mean()


def test_a_mix_of_one_signal_is_that_signal() -> None:
    config = SimulationConfig(accounts=50, mix={"like": 1.0}, batch=64)
    assert {event["signal"] for batch in simulate(config, 500) for event in batch} == {"like", "profile"}


@pytest.mark.parametrize("mix", [{"nod": 1.0}, {"like": -1.0}, {"like": 0.0}])
def test_a_wrong_mix_is_refused(mix: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="mix is"):
        next(simulate(SimulationConfig(mix=mix), 10))


@pytest.mark.parametrize("accounts", [2, 3, 10])
def test_small_worlds_turn(accounts: int) -> None:
    assert sum(len(batch) for batch in simulate(SimulationConfig(accounts=accounts), 3000)) == 3000


def test_ties_are_remembered_and_forgotten() -> None:
    ties = Ties(1 << 16)
    source, target = np.arange(1000), np.arange(1000)[::-1].copy()
    ties.add(source, target)
    # 1,000 pairs on 65,536 slots: some 8 lose theirs to another
    assert ties.has(source, target).mean() > 0.98
    assert not ties.has(target, source + 1000).any()
    ties.remove(source[:500], target[:500])
    assert not ties.has(source[:500], target[:500]).any()
    assert ties.has(source[500:], target[500:]).mean() > 0.98


def test_neighbours_keep_the_newest() -> None:
    neighbours = Neighbours(3, width=2)
    neighbours.add(np.array([0, 1, 0, 0]), np.array([10, 20, 11, 12]))
    draw = np.random.default_rng(0)
    picked = neighbours.pick(draw, np.array([0] * 50 + [1] * 50 + [2, -1]))
    assert set(picked[:50].tolist()) == {11, 12}
    assert set(picked[50:100].tolist()) == {20, -1}
    assert picked[100:].tolist() == [-1, -1]
    neighbours.remove(np.array([0, 0]), np.array([11, 12]))
    assert set(neighbours.pick(draw, np.zeros(20, int)).tolist()) == {-1}


def test_recent_is_bounded_and_gives_each_row_once() -> None:
    draw = np.random.default_rng(0)
    dtype = np.dtype([("number", "i8")])
    recent = Recent(100, dtype)
    for start in range(0, 5000, 50):
        rows = np.zeros(50, dtype)
        rows["number"] = np.arange(start, start + 50)
        recent.add(draw, rows)
    assert len(recent.rows) == 100
    assert np.median(recent.rows["number"]) > 4000
    taken = [*recent.take(draw, 70)["number"].tolist(), *recent.take(draw, 70)["number"].tolist()]
    assert len(taken) == len(set(taken)) == 100


def test_ranks_fall_as_the_exponent_says() -> None:
    ranks = zipf_ranks(np.random.default_rng(0).random(200_000), np.int64(1000), 0.9)
    assert ranks.min() == 0
    assert ranks.max() == 999
    counts = np.bincount(ranks)
    bands = [counts[low : 2 * low].sum() for low in (8, 16, 32, 64, 128)]
    # a band twice as far and twice as wide holds 2 ** .1 as many; 2 % for the rounding of ranks
    assert np.diff(np.log2(bands)).mean() == pytest.approx(0.1, abs=0.03)
