"""The table of candidates as training reads it."""

from __future__ import annotations

import numpy as np

import kithstream
from kithstream.models.producers import ProducerTable


def test_a_row_that_was_never_written_reads_as_zeros() -> None:
    features = ProducerTable().read(np.array([5, 3000], np.int32))
    assert features.rows.tolist() == [5, 3000]
    assert not any(values.any() for values in features[1:])


def test_those_who_follow_and_are_no_candidates_may_be_many(tmp_path) -> None:
    with kithstream.open(tmp_path, start=False) as live:
        for first in range(0, 2000, 100):
            live.publish(
                {"signal": "follow", "actor": f"fan {n}", "target": "star"} for n in range(first, first + 100)
            )
            live.catch_up()
        assert len(live.chain.index) == 1
