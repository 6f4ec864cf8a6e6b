import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kithstream.models.sampling import Negatives, Recent, SamplingConfig

ROWS = st.lists(st.integers(1, 3000), max_size=60)


@given(st.lists(ROWS, max_size=5), st.integers(1, 40))
def test_the_ring_holds_the_last(pushes: list[list[int]], size: int) -> None:
    recent = Recent(size)
    for rows in pushes:
        recent.push(np.array(rows, np.int32))
    last = [row for rows in pushes for row in rows][-size:]
    assert recent.ordered().tolist() == last
    asked = np.arange(1, 3001)
    expected = np.bincount(np.array(last, np.int64), minlength=3001)[1:] / max(1, len(last))
    np.testing.assert_array_equal(recent.shares(asked.astype(np.int32)), expected)


@given(ROWS, st.sets(st.integers(1, 3000)), st.integers(1, 40))
def test_a_dropped_row_never_was(rows: list[int], gone: set[int], size: int) -> None:
    recent = Recent(size)
    recent.push(np.array(rows, np.int32))
    recent.drop(np.array(sorted(gone), np.int32))
    assert recent.ordered().tolist() == [row for row in rows[-size:] if row not in gone]
    recent.push(np.array([5], np.int32))
    assert recent.ordered()[-1] == 5


def test_counts_come_out_as_expected() -> None:
    negatives = Negatives(SamplingConfig(count=64, recent=50))
    rng = np.random.default_rng(0)
    negatives.push(rng.integers(1, 30, 200).astype(np.int32), rng.integers(1, 10, 200).astype(np.int32))
    known = np.arange(1, 41, dtype=np.int32)
    draws = 4000
    counts = np.zeros(41)
    for _ in range(draws):
        sample = negatives.sample(known, rng)
        assert len(sample.rows) == 64
        np.add.at(counts, sample.rows, 1)
    expected = negatives.expected(known, len(known))
    np.testing.assert_allclose(expected.sum(), 64)
    error = np.sqrt(expected / draws)  # of a mean of Poisson counts
    assert (np.abs(counts[1:] / draws - expected) < 4.5 * error).all()


def test_a_sample_knows_its_expected_counts() -> None:
    negatives = Negatives(SamplingConfig())
    negatives.push(np.array([3, 4], np.int32), np.array([5, 5], np.int32))
    known = np.array([3, 4, 5, 6], np.int32)
    sample = negatives.sample(known, np.random.default_rng(0))
    by_row = dict(zip(sample.rows.tolist(), sample.expected.tolist(), strict=True))
    assert by_row == {3: 8 + 4, 4: 8 + 4, 5: 32 + 4, 6: 4}


def test_nothing_to_draw_from_draws_nothing() -> None:
    sample = Negatives(SamplingConfig()).sample(np.zeros(0, np.int32), np.random.default_rng(0))
    assert len(sample.rows) == len(sample.expected) == 0
