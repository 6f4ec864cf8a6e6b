import re

import msgspec
import numpy as np
from tests.models.worlds import nothing, some_rows

from kithstream.models.features import (
    DENSE,
    NEVER,
    PSI,
    SCHEMA,
    Schema,
    age_buckets,
    consumer_features,
    producer_features,
)
from kithstream.models.ids import IdVectors


def index() -> IdVectors:
    return IdVectors(dim=4, signs=4, seed=0, scale=0.1)


def test_the_hash_is_stable() -> None:
    assert Schema().hash == SCHEMA.hash
    assert re.fullmatch("[0-9a-f]{16}", SCHEMA.hash)


def test_any_change_of_the_schema_changes_its_hash() -> None:
    for field in msgspec.structs.fields(Schema):
        value = getattr(SCHEMA, field.name)
        other = value[::-1] if isinstance(value, tuple) else value + value
        assert msgspec.structs.replace(SCHEMA, **{field.name: other}).hash != SCHEMA.hash, field.name


def test_columns_hold_what_they_are_named_after() -> None:
    rows = some_rows(5, seed=3)
    dense = producer_features(rows, index()).dense

    def column(name: str) -> np.ndarray:
        return dense[:, DENSE.index(name)]

    counts = rows.counts.astype(np.float64)
    for name, direction, group, half_life, offset, shift in (
        ("follow_in_600s", 0, 0, 0, 0.01, 2.0),
        ("follow_in_ever", 0, 0, 6, 0.01, 2.0),
        ("follow_out_86400s", 1, 0, 3, 0.01, 2.0),
        ("engage_in_3600s", 0, 1, 1, 1.0, 0.0),
        ("engage_out_ever", 1, 1, 6, 1.0, 0.0),
        ("negative_in_604800s", 0, 2, 4, 1.0, 0.0),
        ("negative_out_ever", 1, 2, 6, 1.0, 0.0),
    ):
        expected = (np.log(counts[:, direction, group, half_life] + offset) + shift) / 3
        np.testing.assert_allclose(column(name), expected, rtol=1e-4, atol=1e-5)  # float32 logarithm
    ages = np.minimum(np.log1p(rows.last / 60) / 5, 3)
    np.testing.assert_allclose(column("age_in"), ages[:, 0], rtol=1e-4)
    np.testing.assert_allclose(column("age_out"), ages[:, 1], rtol=1e-4)
    degrees = np.log1p(rows.degrees)
    np.testing.assert_allclose(
        column("out_over_in"), (degrees[:, 1] - degrees[:, 0]) / 2, rtol=1e-3, atol=1e-5
    )
    np.testing.assert_array_equal(column("in_empty"), rows.degrees[:, 0] == 0)
    np.testing.assert_array_equal(column("bias"), 0.0)


def test_neighbours_are_rows_padded_with_nobody() -> None:
    ids = index()
    rows = nothing(["u", "v"])._replace(followers=[["a", "b"], []], followees=[["c"] * 15, ["a"]])
    features = producer_features(rows, ids)
    a, b, c = ids.rows_of(["a", "b", "c"]).tolist()
    assert features.followers.tolist() == [[a, b] + [0] * 8, [0] * 10]
    assert features.followees.tolist() == [[c] * 10, [a] + [0] * 9]
    assert consumer_features(rows, ids).followees.tolist() == [[c] * 15, [a] + [0] * 14]


def test_an_age_beyond_measure_is_the_last_bucket_but_one() -> None:
    assert age_buckets(np.array([1e12, np.inf])).tolist() == [NEVER - 1, NEVER]


def test_psi_holds_one_first() -> None:
    psi = consumer_features(some_rows(7), index()).psi
    assert psi.shape == (7, len(PSI))
    np.testing.assert_array_equal(psi[:, 0], 1.0)
    assert np.isfinite(psi).all()
