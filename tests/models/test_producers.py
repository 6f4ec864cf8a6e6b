"""The table of candidates as training reads it."""

from __future__ import annotations

import numpy as np
from tests.models.worlds import some_rows

import kithstream
from kithstream.models.model import Model
from kithstream.models.producers import ProducerTable


def test_a_row_that_was_never_written_reads_as_zeros() -> None:
    features = ProducerTable().read(np.array([5, 3000], np.int32))
    assert features.rows.tolist() == [5, 3000]
    assert not any(values.any() for values in features[1:])


def test_a_row_that_was_dropped_reads_as_zeros_and_is_named_by_none() -> None:
    model = Model.day_zero(seed=0)
    features = model.encode_producers(some_rows(12)).features
    table = ProducerTable()
    table.write(features)
    gone = features.rows[[1, 5]]
    table.drop(gone)
    assert not table.written(gone).any()
    assert not any(values.any() for values in table.read(gone)[1:])
    kept = table.read(table.rows)
    assert kept.rows.tolist() == np.delete(features.rows, [1, 5]).tolist()
    assert not np.isin(kept.followers, gone).any()
    np.testing.assert_array_equal(kept.dense, np.delete(features.dense, [1, 5], axis=0))


def test_those_who_follow_and_are_no_candidates_may_be_many(tmp_path) -> None:
    with kithstream.open(tmp_path, start=False) as live:
        for first in range(0, 2000, 100):
            live.publish(
                {"signal": "follow", "actor": f"fan {n}", "target": "star"} for n in range(first, first + 100)
            )
            live.catch_up()
        assert len(live.chain.index) == 1
