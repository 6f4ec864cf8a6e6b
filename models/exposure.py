"""Who is shown, and to how many: measures of lists, as pure functions of account numbers.

A list says more of a model than its scores on what was served: the IRS 2020 who-to-follow paper, section 4.3.2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def exposure(recommended: Ints, accounts: int) -> Floats:
    """(accounts,) share of users that have the account in their list (n_users, k); -1 stands for nobody.

    An account that a list names twice counts once.

    >>> exposure(np.array([[0, 1], [1, 1], [1, -1], [2, 0]]), 4).tolist()
    [0.5, 0.75, 0.25, 0.0]
    """
    _check(recommended, accounts)
    if len(recommended) == 0:
        return np.zeros(accounts)
    ordered = np.sort(recommended, axis=1)
    repeated = np.zeros(ordered.shape, np.bool_)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    shown = ordered[~repeated & (ordered >= 0)]
    return np.bincount(shown, minlength=accounts) / len(recommended)


def prpc(popularity: NDArray[np.number], exposure: Floats) -> float:
    """Popular-recommendation Pearson correlation: of accounts' popularity and the share that is shown them.

    Accounts that nobody is shown count. 0.0 where either side is the same for all accounts, or fewer than two
    are there. Popularity of who-to-follow is the number of followers; of its logarithm: give the logarithm.
    """
    x, y = np.asarray(popularity, np.float64), np.asarray(exposure, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"popularity is {list(x.shape)} and exposure {list(y.shape)}, one length is due")
    if len(x) < 2:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    length = np.sqrt((x @ x) * (y @ y))
    if not length > 1e-12 * len(x):  # below it the differences are what rounding left of equal numbers
        return 0.0
    return float(np.clip((x @ y) / length, -1.0, 1.0))


def spearman(popularity: NDArray[np.number], exposure: Floats) -> float:
    """As `prpc`, of ranks: equal numbers share their mean rank.

    >>> spearman(np.array([1, 10, 100]), np.array([0.0, 0.1, 0.2]))
    1.0
    """
    return prpc(_ranks(np.asarray(popularity)), _ranks(np.asarray(exposure)))


def gini(exposure: Floats) -> float:
    """Inequality of what accounts are shown: 0 if all alike, (n - 1) / n if one has everything.

    0.0 where nobody is shown.

    >>> gini(np.array([0.0, 0.0, 0.0, 1.0]))
    0.75
    """
    values = np.sort(np.asarray(exposure, np.float64))
    if len(values) and not values[0] >= 0:
        raise ValueError(f"exposure is {values[0]}, 0 or more is due")
    total = values.sum()
    if total == 0:
        return 0.0
    n = len(values)
    places = np.arange(1, n + 1)
    return float(max(0.0, 2.0 * (places @ values) / (n * total) - (n + 1) / n))


def coverage(recommended: Ints, accounts: int) -> float:
    """The share of accounts that at least one list holds; 0.0 where there are no accounts."""
    _check(recommended, accounts)
    return len(np.unique(recommended[recommended >= 0])) / accounts if accounts else 0.0


def mismatch(top: Ints, own: Ints) -> float:
    """The share of users whose first candidate has another label than their own; NaN if none is known.

    Labels are numbers, -1 if unknown: such a pair is left out. Of language, neither 0 nor 1 is what one wants:
    people read more than one (section 4.3.2).
    """
    if top.shape != own.shape:
        raise ValueError(f"top is {list(top.shape)} and own {list(own.shape)}, one shape is due")
    known = (top >= 0) & (own >= 0)
    return float((top != own)[known].mean()) if known.any() else float("nan")


def _ranks(values: NDArray[np.number]) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2.0)[place]
    return ranks


def _check(recommended: Ints, accounts: int) -> None:
    if recommended.ndim != 2:
        raise ValueError(f"recommended is {list(recommended.shape)}, (users, k) is due")
    if recommended.size and not (recommended.min() >= -1 and recommended.max() < accounts):
        raise ValueError(
            f"recommended holds {recommended.min()} to {recommended.max()}, -1 to {accounts - 1} are due"
        )
