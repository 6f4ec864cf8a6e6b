"""Library models as peers: implicit's ALS and BPR, and LightFM's WARP, fitted on first pairs.

Each has a few settings drawn at random, the first of them a customary one; the one that does best on rows 64 to
80 % is measured on the tests. Whatever an account follows when it asks is taken out of every answer, also where the
fit does not know of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.quality_streams import History
from kithstream.streams.prequential import MISSED, K, Pairs, border

TRIALS: Final = 8  # settings of each library model
SEGMENTS: Final = 10  # fits over the last fifth, where a model is kept up to date
FACTORS: Final = (16, 32, 64, 128)

Answerer = Callable[[int, NDArray[np.int64]], list[int]]  # asking account and whom it follows; best first


class AlsSetting(msgspec.Struct, frozen=True):
    """implicit's alternating least squares."""

    factors: int = 64
    regularization: float = 0.05
    alpha: float = 1.0
    iterations: int = 15


class BprSetting(msgspec.Struct, frozen=True):
    """implicit's Bayesian personalized ranking."""

    factors: int = 64
    regularization: float = 0.01
    learning_rate: float = 0.05
    iterations: int = 60


class WarpSetting(msgspec.Struct, frozen=True):
    """LightFM's WARP loss."""

    factors: int = 64
    alpha: float = 0.0  # L2 of both sides
    learning_rate: float = 0.05
    epochs: int = 10
    partial_epochs: int = 5  # over each tenth of the last fifth, by `fit_partial`


class Asked(NamedTuple):
    """The places of the targets of some rows, and what each question took."""

    positions: list[int]
    milliseconds: list[float]


def ask(answer: Answerer, known: Pairs, history: History, rows: NDArray[np.int64], k: int = K) -> Asked:
    """Asks for the source of each row, who follows what it followed before that row."""
    positions, took = [], []
    for row in rows.tolist():
        source = int(known.source[row])
        followed = history.before(source, row)
        began = time.perf_counter()
        found = answer(source, followed)
        took.append((time.perf_counter() - began) * 1e3)
        taken = {source, *followed.tolist()}
        best = [account for account in found if account not in taken][:k]
        target = int(known.target[row])
        positions.append(best.index(target) if target in best else MISSED)
    return Asked(positions, took)


def matrix(known: Pairs, rows: slice) -> Any:
    """Returns follows as a sparse matrix, accounts by accounts: both sides are everybody."""
    from scipy.sparse import coo_matrix

    n = len(known.accounts)
    source, target = known.source[rows], known.target[rows]
    return coo_matrix((np.ones(len(source), np.float32), (source, target)), (n, n))


def segments(known: Pairs) -> list[int]:
    """Returns the rows between which a model that is kept up to date is not: from 80 % to the end."""
    first, end = border(known), len(known.source)
    return [first + (end - first) * number // SEGMENTS for number in range(SEGMENTS + 1)]


# -- implicit ------------------------------------------------------------------------------------------------


def draw_als(draw: np.random.Generator) -> AlsSetting:
    """Returns a setting drawn at random."""
    return AlsSetting(
        int(draw.choice(FACTORS)),
        round(float(10 ** draw.uniform(-3, 1)), 5),
        float(draw.choice((1, 2, 5, 10, 20, 40))),
        int(draw.choice((10, 15, 20))),
    )


def draw_bpr(draw: np.random.Generator) -> BprSetting:
    """Returns a setting drawn at random."""
    return BprSetting(
        int(draw.choice(FACTORS)),
        round(float(10 ** draw.uniform(-4, -1)), 5),
        round(float(10 ** draw.uniform(-2, -0.7)), 5),
        int(draw.choice((60, 100, 200))),
    )


def fit_als(known: Pairs, rows: int, setting: AlsSetting, seed: int) -> Any:
    """Returns a model of the first rows, fitted on one thread."""
    from implicit.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(
        **msgspec.structs.asdict(setting), random_state=seed, num_threads=1, use_gpu=False
    )
    model.fit(matrix(known, slice(rows)).tocsr(), show_progress=False)
    return model


def fit_bpr(known: Pairs, rows: int, setting: BprSetting, seed: int) -> Any:
    """Returns a model of the first rows, fitted on one thread."""
    from implicit.bpr import BayesianPersonalizedRanking

    model = BayesianPersonalizedRanking(
        **msgspec.structs.asdict(setting), random_state=seed, num_threads=1, use_gpu=False
    )
    model.fit(matrix(known, slice(rows)).tocsr(), show_progress=False)
    return model


def recommended(model: Any, accounts: int, *, fold_in: bool = False) -> Answerer:
    """Returns implicit's way to answer: by the fitted factors, or by factors made from what the asker follows."""
    from scipy.sparse import csr_matrix

    def answer(source: int, followed: NDArray[np.int64]) -> list[int]:
        row = csr_matrix(
            (np.ones(len(followed), np.float32), np.sort(followed), [0, len(followed)]), (1, accounts)
        )
        # One more than is due, since an account may be recommended to itself.
        found: list[int] = model.recommend(source, row, N=K + 1, recalculate_user=fold_in)[0].tolist()
        return found

    return answer


# -- LightFM -------------------------------------------------------------------------------------------------


def draw_warp(draw: np.random.Generator) -> WarpSetting:
    """Returns a setting drawn at random."""
    return WarpSetting(
        int(draw.choice(FACTORS)),
        float(draw.choice((0.0, 1e-6, 1e-5, 1e-4))),
        round(float(10 ** draw.uniform(-2, -0.7)), 5),
        int(draw.choice((5, 10, 20, 40))),
        int(draw.choice((1, 5, 10))),
    )


def fit_warp(known: Pairs, rows: int, setting: WarpSetting, seed: int) -> Any:
    """Returns a model of the first rows, fitted on one thread."""
    from lightfm import LightFM

    model = LightFM(
        no_components=setting.factors,
        loss="warp",
        learning_rate=setting.learning_rate,
        item_alpha=setting.alpha,
        user_alpha=setting.alpha,
        random_state=seed,
    )
    model.fit(matrix(known, slice(rows)), epochs=setting.epochs, num_threads=1)
    return model


def scanned(model: Any) -> Answerer:
    """Returns the product of LightFM's factors, ranked: its own `predict` takes longer."""
    biases, items = model.get_item_representations()
    _, users = model.get_user_representations()

    def answer(source: int, followed: NDArray[np.int64]) -> list[int]:
        scores = items @ users[source] + biases
        scores[followed] = scores[source] = -np.inf
        best = np.argpartition(scores, len(scores) - min(K, len(scores)))[-K:]
        found: list[int] = best[np.argsort(-scores[best], kind="stable")].tolist()
        return found

    return answer


def kept_up(
    model: Any, setting: WarpSetting, known: Pairs, history: History, tests: NDArray[np.int64]
) -> tuple[Asked, float]:
    """Asks a model that is told the last fifth in tenths, each after its tests; and the seconds of telling."""
    asked, seconds = Asked([], []), 0.0
    borders = segments(known)
    for start, end in pairwise(borders):
        part = ask(scanned(model), known, history, tests[(tests >= start) & (tests < end)])
        asked.positions.extend(part.positions)
        asked.milliseconds.extend(part.milliseconds)
        began = time.perf_counter()
        model.fit_partial(matrix(known, slice(start, end)), epochs=setting.partial_epochs, num_threads=1)
        seconds += time.perf_counter() - began
    return asked, seconds
