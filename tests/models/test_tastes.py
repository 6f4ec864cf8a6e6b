"""What every signal does to a score on day zero, and that none leaks where it does not belong."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.models.worlds import nothing, some_rows, take

from kithstream.models import directions, features
from kithstream.models.bootstrap import AVOIDED as AVOIDED_WEIGHTS
from kithstream.models.bootstrap import ENGAGED as ENGAGED_WEIGHTS
from kithstream.models.directions import COMMUNITY, LANGUAGES, PLACE
from kithstream.models.features import (
    AGGREGATES,
    AUDIENCE_LANGUAGES,
    AVOIDED,
    COMMUNITIES,
    ENGAGED,
    ENGAGING,
    FAMILIES,
    FAMILY,
    HALF_LIVES,
    NEGATIVE,
    PSI,
    QUALITY,
    RATES,
    SKETCH,
    Rows,
    consumer_features,
    producer_features,
)
from kithstream.models.model import Model
from kithstream.models.tower import VIEWS
from kithstream.streams.events.signals import SIGNALS, Group
from kithstream.streams.state import sketches

MODEL = Model.day_zero(seed=3)
IN, OUT = 0, 1

Scores = np.ndarray


def scores(asking: Rows, candidates: Rows, model: Model = MODEL) -> Scores:
    """(askers, candidates)."""
    return model.encode_consumers(asking).vectors @ model.encode_producers(candidates).vectors.T


def asks(**changes: object) -> Rows:
    return nothing(["u"])._replace(**changes)


def with_engaged(names: list[str], family: str, age: float = 60.0) -> Rows:
    rows = asks(engaged=[names])
    rows.engaged_families[0, : len(names)] = FAMILY[family]
    rows.engaged_ages[0, : len(names)] = age
    return rows


def with_avoided(names: list[str], family: str, age: float = 60.0) -> Rows:
    rows = asks(avoided=[names])
    rows.avoided_families[0, : len(names)] = FAMILY[family]
    rows.avoided_ages[0, : len(names)] = age
    return rows


def column(names: tuple[str, ...], values: np.ndarray, name: str) -> np.ndarray:
    return values[:, names.index(name)]


# -- the numbers of families -----------------------------------------------------------------------------------


def test_families_have_the_numbers_of_the_signals() -> None:
    assert {signal.name: signal.family for signal in SIGNALS} == FAMILY
    assert max(FAMILY.values()) < FAMILIES
    for group, names in ((Group.ENGAGE, ENGAGING), (Group.NEGATIVE, NEGATIVE)):
        assert {signal.name for signal in SIGNALS if signal.group == group} == set(names)


def test_every_signal_is_a_feature_of_both_towers() -> None:
    """Counts, lists or both: a family that no tower reads would be a signal in vain."""
    for name, family in FAMILY.items():
        counted, listed = nothing(["x"]), name in (*ENGAGED_WEIGHTS, *AVOIDED_WEIGHTS)
        counted.families[0, :, family] = 3.0
        plain = nothing(["x"])
        received = MODEL.encode_producers(counted).vectors != MODEL.encode_producers(plain).vectors
        if name != "follow":  # read by group, degrees and lists
            assert received.any(), name
        psi = consumer_features(counted, MODEL.ids).psi != consumer_features(plain, MODEL.ids).psi
        assert psi.any() or listed or name == "unlike", name


# -- consumers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ENGAGING)
def test_whom_one_engaged_with_is_pulled_up(family: str) -> None:
    world = nothing([f"a{i}" for i in range(50)])
    gained = (scores(with_engaged(["a7"], family), world) - scores(asks(), world))[0]
    assert gained.argmax() == 7
    assert gained[7] > 0.05
    twice = (scores(with_engaged(["a7", "a7"], family), world) - scores(asks(), world))[0]
    assert twice[7] > gained[7]
    old = (scores(with_engaged(["a7"], family, age=40 * 86400.0), world) - scores(asks(), world))[0]
    assert 0 < old[7] < gained[7]


@pytest.mark.parametrize("family", NEGATIVE)
def test_whom_one_avoided_is_pushed_down(family: str) -> None:
    world = nothing([f"a{i}" for i in range(50)])
    lost = (scores(with_avoided(["a7"], family), world) - scores(asks(), world))[0]
    assert lost.argmin() == 7
    assert lost[7] < -1.0
    old = (scores(with_avoided(["a7"], family, age=40 * 86400.0), world) - scores(asks(), world))[0]
    assert lost[7] < old[7] < 0


def test_what_one_avoided_is_apart_from_what_one_engaged_with() -> None:
    """The same account and family in the two lists meets weights of its own in each."""
    tower = MODEL.tower
    names = {"engaged_family", "engaged_age", "avoided_family", "avoided_age"}
    for listed, other in (
        (with_engaged(["a7"], "like"), "avoided"),
        (with_avoided(["a7"], "mute"), "engaged"),
    ):
        q = MODEL.encode_consumers(listed).vectors
        kept = {name: getattr(tower, name).detach().clone() for name in names}
        with torch.no_grad():
            for name in names:
                if name.startswith(other):
                    getattr(tower, name).add_(5.0)
            same = MODEL.encode_consumers(listed).vectors
            for name, values in kept.items():
                getattr(tower, name).copy_(values)
        np.testing.assert_array_equal(q, same)


def test_padding_reads_no_weight() -> None:
    """Lists are padded with nobody: whatever nobody's family and age weigh, the vector is the same."""
    model = Model.day_zero(seed=3)
    rows = some_rows(40, seed=8)
    before = model.encode_consumers(rows).vectors
    padded = rows._replace(
        engaged_families=np.where(rows.engaged_families < 0, 5, rows.engaged_families),
        avoided_families=np.where(rows.avoided_families < 0, 5, rows.avoided_families),
    )
    with torch.no_grad():
        for weights in (model.tower.engaged_family, model.tower.avoided_family):
            weights[0] = 100.0  # follow, whose number pads
            weights[5] = -70.0  # unlike, in none of the lists
        model.tower.engaged_age[-1] = 9.0
        model.tower.avoided_age[-1] = 9.0
        model.tower.followee_age[-1] = 9.0
    followees = [names[:3] for names in rows.followees]
    ages = rows.followee_ages.copy()
    ages[:, 3:] = np.inf
    np.testing.assert_array_equal(model.encode_consumers(rows).vectors, before)
    np.testing.assert_array_equal(model.encode_consumers(padded).vectors, before)
    short = rows._replace(followees=followees, followee_ages=ages)
    assert np.isfinite(model.encode_consumers(short).vectors).all()


def test_interests_meet_the_communities_of_an_audience() -> None:
    fan = asks()
    fan.interests[0, 0], fan.interest_weights[0, 0] = 11, 1.0
    world = nothing(["same", "other", "none", "known", "strong"])
    world.communities[[0, 1, 4], 0] = 11, 12, 11
    world.community_weights[[0, 1, 4], 0] = 0.3, 0.3, 0.6
    world.known_for[3] = 11
    gained = (scores(fan, world) - scores(asks(), world))[0]
    same, other, none, known, strong = gained
    assert strong > same > max(other, none) + 0.2
    assert known > none + 0.2
    assert none == pytest.approx(0.0, abs=1e-6)


def test_another_numbering_of_communities_needs_no_training() -> None:
    """A version of communities may number them anew: what matters is which are the same."""

    def gained(number: int) -> float:
        fan, world = asks(), nothing(["x"])
        fan.interests[0, 0], fan.interest_weights[0, 0] = number, 1.0
        world.communities[0, 0], world.community_weights[0, 0] = number, 0.5
        return float((scores(fan, world) - scores(asks(), world))[0, 0])

    assert [gained(number) for number in (0, 7, 4095, 10**6)] == pytest.approx([gained(3)] * 4, rel=1e-4)


def test_a_distaste_falls_on_the_community_too() -> None:
    hurt = with_avoided(["a7"], "not_interested")
    plain = scores(hurt, nothing(["x", "y"]))
    hurt.avoided_communities[0, 0] = 11
    world = nothing(["x", "y"])
    world.communities[0, 0], world.community_weights[0, 0] = 11, 0.5
    before = scores(with_avoided(["a7"], "not_interested"), world)
    after = scores(hurt, world)
    assert after[0, 0] < before[0, 0] - 0.05
    assert after[0, 1] == pytest.approx(plain[0, 1], abs=1e-5)


def test_ones_own_country_pulls() -> None:
    here, there = nothing(["x", "x"])._replace(countries=np.array([5, 6], np.int32)), asks()
    there.countries[0] = 5
    same, other = scores(there, here)[0]
    assert same > other


@pytest.mark.parametrize(
    ("events", "ever", "state"),
    [(0.0, 0.0, None), (1.0, 4.0, "near_zero"), (10.0, 20.0, "light"), (90.0, 400.0, "heavy")],
)
def test_an_account_has_one_state_by_its_activity(events: float, ever: float, state: str | None) -> None:
    rows = asks()
    rows.counts[0, OUT, 1, 5] = events
    rows.counts[0, OUT, 1, 6] = ever
    psi = consumer_features(rows, MODEL.ids).psi
    for name in ("near_zero", "light", "heavy"):
        assert column(PSI, psi, name)[0] == (name == state)
    later = rows._replace(as_of=rows.as_of + 7 * 3600 * 1_000_000)
    np.testing.assert_array_equal(consumer_features(later, MODEL.ids).psi, psi)


def test_columns_of_a_consumer_hold_what_they_are_named_after() -> None:
    rows = some_rows(9, seed=3)
    psi = consumer_features(rows, MODEL.ids).psi
    done = rows.families[:, OUT].astype(np.float64)
    engaged = done[:, [FAMILY[name] for name in ENGAGING]].sum(axis=1)
    refused = done[:, [FAMILY[name] for name in NEGATIVE]].sum(axis=1)
    opened = done[:, FAMILY["notification_open"]] + done[:, FAMILY["notification_tab_click"]]
    for name, counts in (
        ("follow_out_86400s", done[:, 0, 1]),
        ("follow_out_4320000s", done[:, 0, 3]),
        ("engage_out_1800s", engaged[:, 0]),
        ("engage_out_86400s", engaged[:, 1]),
        ("engage_out_4320000s", engaged[:, 3]),
        ("negative_out_86400s", refused[:, 1]),
        ("negative_out_4320000s", refused[:, 3]),
        ("unfollow_out_4320000s", done[:, 1, 3]),
        ("notification_out_4320000s", opened[:, 3]),
        ("impression_out_86400s", done[:, 18, 1]),
        ("address_book_out_ever", done[:, 17, 4]),
    ):
        np.testing.assert_allclose(column(PSI, psi, name), np.log1p(counts) / 3, rtol=1e-4, err_msg=name)
    share = (engaged[:, 3] - refused[:, 3]) / (engaged[:, 3] + refused[:, 3] + 2)
    np.testing.assert_allclose(column(PSI, psi, "positive_share"), share, rtol=1e-4)


# -- candidates ------------------------------------------------------------------------------------------------


def test_columns_of_quality_hold_what_they_are_named_after() -> None:
    rows = some_rows(9, seed=3, languages=(0, 1, 2))
    quality = producer_features(rows, MODEL.ids).quality
    met = rows.families[:, IN].astype(np.float64)
    followers = rows.degrees[:, 0]
    engaged = met[:, [FAMILY[name] for name in ENGAGING]].sum(axis=1)
    events = met[:, 0] + engaged + met[:, [FAMILY[name] for name in NEGATIVE]].sum(axis=1)
    for place, window in ((2, "604800s"), (4, "ever")):
        for name, of, a, b in RATES:
            x = met[:, FAMILY[name], place]
            n = followers + x if of == "follower" else events[:, place]
            rate = np.log((x + a) / (n + a + b) / (a / (a + b))) / 3
            np.testing.assert_allclose(
                column(QUALITY, quality, f"{name}_rate_{window}"), rate, rtol=1e-3, atol=1e-5, err_msg=name
            )
    for place, window in ((1, "86400s"), (3, "4320000s")):
        for name in features.COUNTED:
            expected = np.log1p(met[:, FAMILY[name], place]) / 3
            np.testing.assert_allclose(
                column(QUALITY, quality, f"{name}_in_{window}"), expected, rtol=1e-4, err_msg=name
            )
    ratio = np.log((engaged[:, 3] + 1) / (followers + 1)) / 3
    np.testing.assert_allclose(
        column(QUALITY, quality, "engagement_per_follower"), ratio, rtol=1e-3, atol=1e-5
    )
    shares = np.maximum(rows.audience_shares.astype(np.float64), 1e-6)
    entropy = -(shares * np.log(shares)).sum(axis=1)
    np.testing.assert_allclose(column(QUALITY, quality, "language_entropy"), entropy, rtol=1e-3, atol=1e-5)
    own = (rows.audience_languages == rows.languages[:, None]) & (rows.languages[:, None] > 0)
    share = (rows.audience_shares * own).sum(axis=1) * followers / (followers + 2)
    np.testing.assert_allclose(column(QUALITY, quality, "own_language_share"), share, rtol=1e-4)
    np.testing.assert_array_equal(column(QUALITY, quality, "known_for"), rows.known_for >= 0)


@pytest.mark.parametrize("family", [name for name, _, _, _ in RATES])
def test_refusals_push_a_candidate_down(family: str) -> None:
    world = nothing([f"v{i}" for i in range(4)])
    world.degrees[:, 0] = 100
    world.families[:, IN, FAMILY["like"]] = 200.0
    world.families[:, IN, FAMILY[family]] = np.array([0.0, 2.0, 10.0, 40.0])[:, None]
    plain = nothing([f"v{i}" for i in range(4)])
    gained = (scores(asks(), world) - scores(asks(), plain))[0]
    assert all(more > less for more, less in pairwise(gained))


def test_one_refusal_of_a_newcomer_weighs_less_than_a_tenth_of_many() -> None:
    """The prior smooths: 1 block of 2 events is no rate of one half."""
    rows = nothing(["new", "old"])
    rows.families[0, IN, FAMILY["block"]] = 1.0
    rows.families[0, IN, FAMILY["like"]] = 1.0
    rows.families[1, IN, FAMILY["block"]] = 100.0
    rows.families[1, IN, FAMILY["like"]] = 900.0
    new, old = column(QUALITY, producer_features(rows, MODEL.ids).quality, "block_rate_ever")
    assert 0 < new < old


def test_engagement_pulls_a_candidate_up() -> None:
    world = nothing([f"v{i}" for i in range(3)])
    world.families[:, IN, FAMILY["reply"]] = np.array([0.0, 5.0, 50.0])[:, None]
    plain = nothing([f"v{i}" for i in range(3)])
    gained = (scores(asks(), world) - scores(asks(), plain))[0]
    assert gained[2] > gained[1] > gained[0]


def test_an_audience_that_speaks_ones_language_pulls() -> None:
    speaker = asks()
    speaker.languages[0] = 149
    world = nothing(["x", "x"])
    world.languages[:] = 7
    world.audience_languages[:, 0] = 149, 434
    world.audience_shares[:, 0] = 1.0
    same, other = scores(speaker, world)[0]
    assert same > other + 0.2


def test_an_account_with_nothing_gets_what_is_popular_in_its_language() -> None:
    newcomer = asks()
    newcomer.languages[0] = 149
    world = nothing([f"v{i}" for i in range(60)], [149] * 20 + [434] * 20 + [280] * 20)
    popular = np.tile(np.repeat([200.0, 5.0], 10), 3)
    world.counts[:, IN, 0, 3:] = popular[:, None]
    world.degrees[:, 0] = popular
    order = scores(newcomer, world)[0].argsort()[::-1]
    assert set(order[:10].tolist()) == set(range(10))


def test_a_newcomer_is_placed_by_the_one_who_followed_it() -> None:
    """Its sketch is that of its one follower: whoever follows that account sees it first."""
    people = [f"a{i}" for i in range(40)]
    world = nothing([f"n{i}" for i in range(40)])
    world.audience[:] = [sketches.vector(name) for name in people]
    world.degrees[:, 0] = 1
    plain = nothing([f"n{i}" for i in range(40)])
    asking = nothing([f"u{i}" for i in range(40)])
    asking.following[:] = [sketches.vector(name) for name in people]
    asking.degrees[:, 1] = 1
    gained = scores(asking, world) - scores(asking, plain)
    first = gained.argmax(axis=1)
    assert (first == np.arange(40)).mean() > 0.9  # 40 directions in 16 dims: two may lie close
    assert np.diag(gained).mean() > 0.1


def test_a_sketch_of_many_fades() -> None:
    """Of a candidate from a few followers on; of whoever asks more slowly, since it is all that is known of it."""
    sizes = (1, 4, 40, 4000)
    people = [sketches.vector(f"a{i}") for i in range(sizes[-1])]
    rows = nothing([f"v{n}" for n in sizes])
    rows.degrees[:, 0] = rows.degrees[:, 1] = sizes
    rows.audience[:] = rows.following[:] = [np.sum(people[:n], axis=0) for n in sizes]
    lengths = np.linalg.norm(producer_features(rows, MODEL.ids).sketches[:, :SKETCH], axis=1)
    assert lengths[0] > 0.4 > lengths[1] > 0.1 > 0.02 > lengths[2] > lengths[3]
    asking = np.linalg.norm(consumer_features(rows, MODEL.ids).following, axis=1)
    assert asking[1] > 0.9 > asking[3] * 4


# -- any rows --------------------------------------------------------------------------------------------------


def counts(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.25, 1.0, 7.5, 1e4, 1e9, 1e30]))


def integers(shape: tuple[int, ...], low: int, high: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.int64, shape, elements=st.integers(low, high))


@st.composite
def any_rows(draw: st.DrawFn) -> Rows:
    """Rows in which every field may be anything that fits its type."""
    n = draw(st.integers(1, 4))
    rows = nothing([f"v{i}" for i in range(n)])

    def lists(width: int) -> list[list[str]]:
        name = st.sampled_from(["a", "b", "v0", "é", "x" * 128])
        return [draw(st.lists(name, max_size=width)) for _ in range(n)]

    def ages(names: list[list[str]], width: int) -> np.ndarray:
        there = np.arange(width) < np.array([len(x) for x in names])[:, None]
        age = st.sampled_from([0.0, 59.0, 1e5, 1e12])
        return np.where(there, draw(hnp.arrays(np.float64, (n, width), elements=age)), np.inf)

    engaged, avoided = lists(ENGAGED), lists(AVOIDED)
    largest = 2**62
    return rows._replace(
        counts=draw(counts((n, 2, 3, len(HALF_LIVES)))),
        families=draw(counts((n, 2, FAMILIES, len(AGGREGATES)))),
        last=draw(hnp.arrays(np.float64, (n, 2), elements=st.sampled_from([0.0, 90.0, 1e11, np.inf]))),
        first=draw(hnp.arrays(np.float64, (n,), elements=st.sampled_from([0.0, 90.0, 1e11]))),
        degrees=draw(integers((n, 3), 0, 10**12)),
        languages=draw(integers((n,), 0, 20000)).astype(np.int32),
        countries=draw(integers((n,), 0, 20000)).astype(np.int32),
        engaged=engaged,
        engaged_families=draw(integers((n, ENGAGED), -1, FAMILIES - 1)).astype(np.int32),
        engaged_ages=ages(engaged, ENGAGED),
        avoided=avoided,
        avoided_families=draw(integers((n, AVOIDED), -1, FAMILIES - 1)).astype(np.int32),
        avoided_ages=ages(avoided, AVOIDED),
        avoided_communities=draw(integers((n, AVOIDED), -1, 10**9)).astype(np.int32),
        audience_languages=draw(integers((n, AUDIENCE_LANGUAGES), 0, 20000)).astype(np.int32),
        audience_shares=draw(
            hnp.arrays(np.float32, (n, AUDIENCE_LANGUAGES), elements=st.floats(0, 1, width=32))
        ),
        audience=draw(integers((n, SKETCH), -largest, largest)),
        following=draw(integers((n, SKETCH), -largest, largest)),
        known_for=draw(integers((n,), -1, 10**9)).astype(np.int32),
        interests=draw(integers((n, COMMUNITIES), -1, 10**9)).astype(np.int32),
        interest_weights=draw(hnp.arrays(np.float32, (n, COMMUNITIES), elements=st.floats(0, 1, width=32))),
        communities=draw(integers((n, COMMUNITIES), -1, 10**9)).astype(np.int32),
        community_weights=draw(hnp.arrays(np.float32, (n, COMMUNITIES), elements=st.floats(0, 1, width=32))),
    )


@settings(max_examples=60)
@given(any_rows())
def test_any_rows_give_finite_vectors_that_are_not_zero(rows: Rows) -> None:
    for encode in (MODEL.encode_producers, MODEL.encode_consumers):
        vectors = encode(rows).vectors
        assert np.isfinite(vectors).all()
        assert (np.linalg.norm(vectors, axis=1) > 0.01).all()
    assert np.linalg.norm(MODEL.encode_producers(rows).vectors, axis=1).max() <= MODEL.norm_bound * 1.00001


@settings(max_examples=40)
@given(any_rows(), st.data())
def test_any_row_has_the_bits_that_it_has_alone(rows: Rows, data: st.DataObject) -> None:
    encodes: list[Callable[[Rows], np.ndarray]] = [
        lambda some: MODEL.encode_producers(some).vectors,
        lambda some: MODEL.encode_consumers(some).vectors,
    ]
    n = len(rows.accounts)
    order = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=70))
    for encode in encodes:
        alone = [encode(take(rows, [i]))[0] for i in range(n)]
        np.testing.assert_array_equal(encode(take(rows, order)), np.stack([alone[i] for i in order]))


def test_every_parameter_matters_to_a_vector() -> None:
    """Whatever weight is turned, some vector of a full world turns with it."""
    model = Model.day_zero(seed=1)
    rows = some_rows(120, seed=5, languages=(0, 1, 2))

    def both() -> np.ndarray:
        return np.concatenate([model.encode_producers(rows).vectors, model.encode_consumers(rows).vectors])

    before = both()
    for name, parameter in model.tower.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(0.1)
            assert (both() != before).any(), name
            parameter.copy_(kept)


def test_the_views_of_quality_are_all_told_apart() -> None:
    """Two that were the same combination of columns would learn the same for ever."""
    weights = MODEL.tower.quality.detach().numpy()
    assert weights.shape == (len(VIEWS), len(QUALITY))
    assert np.linalg.matrix_rank(weights) == len(VIEWS)


def test_directions_have_unit_length_but_for_none() -> None:
    for table, none in ((COMMUNITY, [0]), (PLACE, [0, LANGUAGES])):
        lengths = np.linalg.norm(table, axis=1)
        np.testing.assert_allclose(np.delete(lengths, none), 1.0, rtol=1e-5)
        np.testing.assert_array_equal(lengths[none], 0.0)


def test_the_printed_example_holds() -> None:
    assert doctest.testmod(directions).failed == 0
