"""Who is ranked for an account: the index's best, who is nominated, whose scores are lowered; nobody forbidden."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.index.protocol import Hits, Queryable
from kithstream.models.ranker import Ranked
from kithstream.streams.serve.nominators import About
from kithstream.streams.serve.whole import Nominated, Whole, pooled
from kithstream.streams.serve.why import Allowed


class Found(NamedTuple):
    """Candidates with the towers' scores: the index's hits first, best first, then others."""

    hits: Hits
    scored: list[tuple[str, float]]
    nominated: Nominated | None


def find(
    index: Queryable,
    query: Callable[..., Hits],
    vector: NDArray[np.float32],
    limits: Allowed,
    losses: Collection[str],
    wanted: int,
    nominate: Callable[[Collection[int], Collection[str]], Nominated] | None,
) -> Found:
    """Find candidates of an index, by its `query` or its scan; `nominate` takes languages and who is hidden."""
    exclude, allow, labels = limits
    kept_out = {*exclude, *losses} if losses else exclude  # a large set is not copied for nothing
    hits = query(vector, wanted, exclude=kept_out, allow=allow, labels=labels)
    scored = list(zip(hits.ids, hits.scores.tolist(), strict=True))
    others = set(
        losses
    )  # few, and scored one by one, so that the answer is exact whoever is lowered by how much
    nominated = None
    if nominate is not None:
        nominated = nominate(labels or (), exclude)
        others.update(nominated.sources)
        others.difference_update(hits.ids)
    if allow is not None:
        others.intersection_update(allow)
    if others:
        beside = index.query(vector, len(others), exclude=exclude, allow=others, labels=labels)
        scored += zip(beside.ids, beside.scores.tolist(), strict=True)
    return Found(hits, scored, nominated)


def looked(
    index: Queryable,
    whole: Whole,
    vector: NDArray[np.float32],
    about: About,
    exclude: Collection[str],
    losses: Collection[str],
    target: str,
    as_of: int,
) -> Ranked | None:
    """Return who would be ranked for an account at a time, with the place of the target; None if it is not there."""
    nominate = partial(whole.nominate, about)
    found = find(index, index.scan, vector, Allowed(exclude), losses, whole.config.considered, nominate)
    assert found.nominated is not None
    pool = pooled(found.scored, len(found.hits.ids), found.nominated.sources)
    if target not in pool.names:
        return None
    features = whole.features(pool, about, found.nominated.hops, as_of)
    return Ranked(pool.scores, features, pool.names.index(target))
