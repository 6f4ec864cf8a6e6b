from __future__ import annotations

import numpy as np
import pytest

from kithstream.index.score import nominate, score, tolerance


@pytest.mark.parametrize("dim", [1, 3, 16, 64, 124, 128, 200])
def test_the_bits_of_a_row_depend_on_no_other_row(rng, dim):
    rows = rng.normal(size=(500, dim)).astype(np.float32)
    query = rng.normal(size=dim)
    together = score(rows, query)
    for size in (1, 2, 3, 7, 64, 333):
        for start in (0, 1, 5, 160):
            part = score(rows[start : start + size], query)
            assert part.tobytes() == together[start : start + size].tobytes()
    order = rng.permutation(500)
    assert score(rows[order], query).tobytes() == together[order].tobytes()


def test_a_score_is_the_rounded_dot_product(rng):
    rows = rng.normal(size=(100, 64)).astype(np.float32)
    query = rng.normal(size=64).astype(np.float32)
    exact = rows.astype(np.longdouble) @ query.astype(np.longdouble)
    error = np.abs(score(rows, query.astype(np.float64)).astype(np.longdouble) - exact)
    assert (error <= np.spacing(np.abs(exact).astype(np.float32))).all()


def test_no_negative_zero_leaves():
    rows = np.array([[-1, 0], [0, 0]], np.float32)
    assert not np.signbit(score(rows, np.array([0.0, 1.0]))).any()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_float32_products_are_within_the_tolerance(rng, scale):
    rows = (rng.normal(size=(2000, 128)) * scale).astype(np.float32)
    query = rng.normal(size=128).astype(np.float32)
    largest = float(np.linalg.norm(rows, axis=1).max())
    error = tolerance(128, float(np.linalg.norm(query)), largest)
    apart = np.abs((rows @ query).astype(np.float64) - score(rows, query.astype(np.float64)))
    assert apart.max() <= error


def test_nominees_hold_every_one_that_can_be_among_the_best(rng):
    products = rng.normal(size=1000).astype(np.float32)
    products[::3] = -np.inf
    chosen = nominate(products, 50, 0.1)
    cut = np.sort(products)[-50]
    assert set(chosen) == set(np.flatnonzero(products >= np.float32(cut - 0.2)))
    assert len(nominate(products, 900, 0.1)) == np.isfinite(products).sum()
