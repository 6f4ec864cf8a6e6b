"""A follow graph whose communities are known."""

from __future__ import annotations

import numpy as np
import pytest

from kithstream.streams.communities.follows import Arcs, Follows, numbered

GROUPS, PRODUCERS, FOLLOWERS = 8, 12, 240


@pytest.fixture(scope="session")
def planted() -> Follows:
    """Accounts f0 ... follow eight producers of their group and two of any; producer p7 is of group 7 % GROUPS."""
    draw = np.random.default_rng(7)
    rows = []
    for follower in range(FOLLOWERS):
        own = draw.permutation(PRODUCERS)[:8] * GROUPS + follower % GROUPS
        other = draw.integers(0, PRODUCERS * GROUPS, 2)
        rows += [(PRODUCERS * GROUPS + follower, producer) for producer in np.concatenate([own, other])]
    accounts = [f"p{n}" for n in range(PRODUCERS * GROUPS)] + [f"f{n}" for n in range(FOLLOWERS)]
    source, target = np.array(rows).T
    return numbered(accounts, Arcs(source, target, np.zeros(len(rows), np.int64)))


def group(account: str) -> int:
    return int(account[1:]) % GROUPS
