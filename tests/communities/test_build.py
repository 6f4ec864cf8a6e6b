from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kithstream.streams.communities.build import BuildConfig, build, described, interests, norms
from kithstream.streams.communities.follows import Arcs, Follows, in_file, numbered, stored
from kithstream.streams.communities.graph import GraphConfig
from kithstream.streams.communities.interest import thresholded
from kithstream.streams.communities.known import KnownFor
from kithstream.streams.communities.walk import WalkConfig
from kithstream.streams.config import Config, EngineConfig, IndexSection, ModelConfig
from kithstream.streams.serve.embedded import Embedded


def group(account: str) -> int:
    return int(account[1:]) % 8


def one_by_one(follows: Follows, known: KnownFor) -> dict[str, list[tuple[int, int]]]:
    """The interests of each account, from `thresholded` of what it follows."""
    found = {}
    for number, account in enumerate(follows.accounts):
        followees = [follows.accounts[at] for at in follows.target[follows.source == number].tolist()]
        of = known.of(followees).tolist()
        found[account] = thresholded({c: of.count(c) for c in set(of) - {-1}})
    return found


def test_a_version_finds_the_planted_communities(planted: Follows) -> None:
    built = build(planted, BuildConfig())
    producers = [account for account in planted.accounts if account.startswith("p")]
    found = built.known.of(producers).tolist()
    assert len(set(zip(found, map(group, producers), strict=True))) == 8
    assert (built.communities, built.members, built.producers) == (8, 96, 96)
    assert set(built.known.of([a for a in planted.accounts if a.startswith("f")]).tolist()) == {-1}
    assert (built.accounts, built.edges) == (len(planted.accounts), len(planted.source))
    assert built.modularity > 0.5
    assert sorted(set(found)) == list(range(8)) == list(range(built.known.count))


def test_norms_are_those_of_a_batch_over_all_accounts(planted: Follows) -> None:
    built = build(planted, BuildConfig())
    squares = [0] * 8
    for interest in one_by_one(planted, built.known).values():
        for community, t in interest:
            squares[community] += t * t
    assert min(squares) > 0
    assert built.known.norms.tolist() == np.sqrt(squares).astype(np.float32).tolist()


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 70)), max_size=400),
    st.integers(71, 80),
    st.integers(1, 4),
)
def test_interests_and_norms_are_thresholded_counts(
    rows: list[tuple[int, int]], count: int, times: int
) -> None:
    source, community = np.array(rows * times, np.int64).reshape(-1, 2).T
    mine: dict[int, dict[int, int]] = {}
    for account, c in rows * times:
        if c >= 0:
            counts = mine.setdefault(account, {})
            counts[c] = counts.get(c, 0) + 1
    expected = [(a, c, t) for a in sorted(mine) for c, t in thresholded(mine[a])]
    assert list(zip(*(column.tolist() for column in interests(source, community, count)), strict=True)) == (
        expected
    )
    squares = np.zeros(count)
    for _, c, t in expected:
        squares[c] += t * t
    assert norms(source, community, count).tolist() == np.sqrt(squares).astype(np.float32).tolist()


def test_equal_follows_and_settings_give_equal_bytes(planted: Follows, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    order = draw.permutation(len(planted.accounts))  # accounts come in another order
    place = np.argsort(order)
    rows = draw.permutation(len(planted.source))
    again = numbered(
        [planted.accounts[at] for at in order],
        Arcs(place[planted.source[rows]], place[planted.target[rows]], np.zeros(len(rows), np.int64)),
    )
    config = BuildConfig(walk=WalkConfig(epochs=1))
    for name, follows, seed in (("a", planted, 0), ("b", again, 0), ("c", planted, 1)):
        build(follows, BuildConfig(walk=config.walk, seed=seed)).known.save(tmp_path / name)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("seed", [0, 9])
def test_a_warm_start_keeps_the_numbers(planted: Follows, seed: int) -> None:
    producers = [account for account in planted.accounts if account.startswith("p")]
    # An earlier version of other numbers: group g was g + 5, group 2 was not there, and some were unknown.
    known = {a: group(a) + 5 for n, a in enumerate(producers) if n % 7 and group(a) != 2}
    warm = KnownFor.of_accounts(known, np.ones(13, np.float32))
    built = build(planted, BuildConfig(seed=seed), warm)
    found = dict(zip(producers, built.known.of(producers).tolist(), strict=True))
    assert {a: c for a, c in found.items() if group(a) != 2} == {
        a: group(a) + 5 for a in producers if group(a) != 2
    }
    assert {c for a, c in found.items() if group(a) == 2} == {0}  # the lowest that is free
    assert built.known.count == 13
    assert built.known.norms[1:5].tolist() == [0.0] * 4  # nobody is in them
    assert built.communities == 8
    assert built.epochs < build(planted, BuildConfig(seed=seed)).epochs  # it began there


def test_settings_reach_the_graph_and_the_walk(planted: Follows) -> None:
    assert build(planted, BuildConfig(walk=WalkConfig(resolution=6.0))).communities > 8
    assert build(planted, BuildConfig(graph=GraphConfig(min_followers=10_000))).producers == 0
    assert (
        build(planted, BuildConfig(graph=GraphConfig(neighbours=2))).near < build(planted, BuildConfig()).near
    )


def test_no_follows_make_a_version_of_nobody() -> None:
    nothing = np.zeros(0, np.int64)
    built = build(numbered([], Arcs(nothing, nothing, nothing)), BuildConfig())
    assert (len(built.known), built.known.count, built.modularity) == (0, 0, 0.0)
    assert described(built.known, 5)["largest"] == []


def test_the_largest_communities_are_described() -> None:
    known = {"a": 3, "b": 3, "c": 1, "d": 1, "e": 0}
    found = described(KnownFor.of_accounts(known, np.array([1, 2, 0, 4], np.float32)), 2)
    assert found["largest"] == [
        {"community": 1, "members": 2, "norm": 2.0},
        {"community": 3, "members": 2, "norm": 4.0},
    ]
    assert (found["communities"], found["members"], found["median_size"]) == (3, 5, 2.0)


def test_file_runtime_and_checkpoint_make_one_version(planted: Follows, tmp_path: Path) -> None:
    file = tmp_path / "follows.csv"
    pairs = zip(planted.source.tolist(), planted.target.tolist(), itertools.count(1))
    lines = (f"{planted.accounts[a]},{planted.accounts[b]},{time}\n" for a, b, time in pairs)
    file.write_text("source,target,time\n" + "".join(lines))
    config = Config(
        engine=EngineConfig(partitions=3),
        model=ModelConfig(learn=False),
        index=IndexSection(background=False),
    )
    with Embedded(tmp_path / "live", config) as live:
        live.load(file)
        live.checkpoint(tmp_path / "copy")
        sources = in_file(file), stored(tmp_path / "live"), stored(tmp_path / "copy")
        built = [build(follows, BuildConfig()) for follows in sources]
    assert len({one.known.version for one in built}) == 1
    assert len({one._replace(known=None, seconds=0) for one in built}) == 1  # type: ignore[arg-type]
    assert built[0].communities == 8
