"""The bench that turns groups of features off: each turns off what it names, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from bench.ablation import FIELDS, GROUPS, Arm, blanked, measures, simulated, world
from tests.models.worlds import some_rows

from kithstream.models.features import Rows, blank

ROWS = some_rows(20, seed=2, languages=(1, 2))
CHANGED = {
    **{group: set(names) for group, names in FIELDS.items()},
    "optional": set(blank(1)),
    "languages": {"languages", "countries", "audience_languages", "audience_shares"},
    "engage-counts": {"counts"},
    "negative-counts": {"counts"},
    "neighbours": {"followers", "follower_ages", "followees", "followee_ages"},
    "reciprocity": {"unreciprocated", "unreciprocated_ages"},
}


def equal(one: object, other: object) -> bool:
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_that_is_off_blanks_its_fields_alone(group: str) -> None:
    off = blanked(ROWS, group)
    changed = {
        name
        for name, before, after in zip(Rows._fields, ROWS, off, strict=True)
        if name != "as_of" and not equal(before, after)
    }
    assert changed == CHANGED[group]


def test_engagement_off_leaves_who_is_a_candidate() -> None:
    off = blanked(ROWS, "engage-counts")
    listed, before = off.counts[:, 0, 1, -1] > 0, ROWS.counts[:, 0, 1, -1] > 0
    np.testing.assert_array_equal(listed, before)
    assert off.counts[:, :, 1].max() <= 1.0
    np.testing.assert_array_equal(off.counts[:, :, [0, 2]], ROWS.counts[:, :, [0, 2]])


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(ValueError, match="group is 'weather'"):
        blanked(ROWS, "weather")


def test_a_change_is_paired() -> None:
    full, other = np.array([0, 5, -1, 30]), np.array([0, -1, -1, 3])
    assert measures(other, full)["recall@20"][0] == 0.0
    assert measures(full)["recall@20"][0] == 0.5
    assert measures(full, full)["ndcg@20"] == [0.0, 0.0, 0.0]


def test_a_group_off_reaches_the_answers_of_the_runtime() -> None:
    """Without neighbours and reciprocity the same questions about the same events are answered otherwise."""
    events = simulated(60, 1500, 0)
    run = world(events, 60)
    full = run(Arm(None, False, 0))
    assert len(full) == 20
    np.testing.assert_array_equal(run(Arm(None, False, 0)), full)
    assert (run(Arm("reciprocity", False, 0)) != full).any()
