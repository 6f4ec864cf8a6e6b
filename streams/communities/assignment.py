"""What is done with communities once they are found: cut where they do not hold together, numbered, judged."""

from __future__ import annotations

from typing import Final

import numpy as np

from kithstream.streams.communities.graph import Numbers, ProducerGraph

LEAST: Final = 2  # members of a community
NONE: Final = -1


def connected(graph: ProducerGraph, community: Numbers) -> Numbers:
    """Return communities (p,) cut into connected parts; parts of fewer than `LEAST` are none, -1.

    `community` (p,) is -1 where there is none.
    """
    first, second = graph.rows(), graph.neighbours
    inside = (community[first] == community[second]) & (community[first] >= 0)
    first, second = first[inside], second[inside]
    label = np.arange(len(community))
    while True:
        least = label.copy()
        np.minimum.at(least, first, label[second])
        least = least[least]
        if (least == label).all():
            break
        label = least
    sizes = np.bincount(label, minlength=len(label))
    return np.where((sizes[label] >= LEAST) & (community >= 0), label, NONE)


def numbered(community: Numbers, before: Numbers | None = None) -> Numbers:
    """Return communities (p,) with numbers from 0 that an earlier version, `before` (p,), would know again.

    The largest overlap decides first, at equal overlaps the smaller numbers. Others take the lowest numbers
    that are free, the largest community first, of equal ones that with the smaller number.

    >>> numbered(np.array([5, 5, 9, 9, 9, -1]), np.array([0, 0, 3, 3, -1, 0])).tolist()
    [0, 0, 3, 3, 3, -1]
    """
    kept = community >= 0
    found, place, sizes = np.unique(community[kept], return_inverse=True, return_counts=True)
    number = np.full(len(found), NONE)
    if before is not None:
        both = before[kept] >= 0
        pair, overlap = np.unique(np.stack([place[both], before[kept][both]]), axis=1, return_counts=True)
        taken = set()
        for at in np.lexsort((pair[0], pair[1], -overlap)):
            mine, earlier = int(pair[0, at]), int(pair[1, at])
            if number[mine] == NONE and earlier not in taken:
                number[mine] = earlier
                taken.add(earlier)
    left = np.flatnonzero(number == NONE)
    left = left[np.lexsort((left, -sizes[left]))]
    number[left] = np.setdiff1d(np.arange(len(found) + int(number.max(initial=NONE)) + 1), number)[
        : len(left)
    ]
    result = np.full(len(community), NONE)
    result[kept] = number[place]
    return result


def modularity(graph: ProducerGraph, community: Numbers) -> float:
    """Return Newman's modularity of the weighted graph, -.5 to 1; producers without community are alone.

    Q = sum_c (in_c / 2W - (total_c / 2W)^2), with in_c the weight inside c counted from both ends, total_c the
    weights of its members, 2W that of all.
    """
    whole = graph.weights.sum()
    if not whole:
        return 0.0
    alone = np.flatnonzero(community < 0)
    label = community.copy()
    label[alone] = community.max(initial=NONE) + 1 + np.arange(len(alone))
    rows = graph.rows()
    inside = graph.weights[label[rows] == label[graph.neighbours]].sum()
    totals = np.bincount(label[rows], graph.weights)
    return float(inside / whole - ((totals / whole) ** 2).sum())
