"""Pictures of the reproduction, as SVG. Bands are 95 % intervals over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.paper_claims import Arms, Results, by_recall, estimate
from bench.paper_sampling import RATIOS, SCALES
from bench.paper_tau import TAUS
from bench.paper_tuning import LENGTHS, SHARES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE: Final = {
    "svg.hashsalt": "kithstream",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


def draw(results: Results, folder: Path) -> None:
    """Writes all of them."""
    import matplotlib as mpl

    mpl.use("svg")
    pictures: dict[str, tuple[int, Callable[[Sequence[Axes], Results], None]]] = {
        "e1-threshold": (3, _thresholds),
        "e2-ratio": (3, _ratios),
        "e6-popularity": (3, _popularity),
        "e8-operating-curve": (2, _operating),
        "e11-recall": (1, _recalls),
    }
    with mpl.rc_context(STYLE):
        from matplotlib import pyplot as plt

        for name, (panels, paint) in pictures.items():
            figure, axes = plt.subplots(1, panels, figsize=(3.1 * panels, 2.7), squeeze=False)
            paint(axes[0], results)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)


def _band(
    axis: Axes, x: Sequence[float], values: Sequence[Sequence[float]], label: str, style: str = "o-"
) -> None:
    """A line with its band."""
    found = np.array([estimate(v) for v in values])
    (line,) = axis.plot(x, found[:, 0], style, label=label, markersize=3)
    if np.isfinite(found).all():
        axis.fill_between(x, found[:, 1], found[:, 2], alpha=0.15, color=line.get_color(), linewidth=0)


def _thresholds(axes: Sequence[Axes], results: Results) -> None:
    for axis, name in zip(axes, ("auc", "ap", "accuracy"), strict=True):
        for data, style in zip(dict.fromkeys(one.data for one in results.taus), ("-", "--"), strict=False):
            for side, mark in (("biased", "o"), ("full", "s")):
                values = [
                    [
                        getattr(getattr(one, side), name)
                        for one in results.taus
                        if (one.data, one.tau) == (data, tau)
                    ]
                    for tau in TAUS
                ]
                _band(axis, TAUS, values, f"{side}, {data}", mark + style)
        axis.set(xlabel="tau", title={"auc": "AUC", "ap": "average precision", "accuracy": "accuracy"}[name])
    axes[0].legend(frameon=False, fontsize=7)


def _ratios(axes: Sequence[Axes], results: Results) -> None:
    arms = Arms(results.rows)
    names = [f"E2 {ratio}" for ratio in RATIOS]
    panels = (
        ("on served pairs", (("served.auc", "AUC"), ("served.per_user_auc", "per-user AUC"))),
        ("nearest: true engagement", (("nearest.truth", "of 5"), ("nearest.truth_deep", "of 20"))),
        ("nearest: other language first", (("nearest.mismatch", "mismatch@1"),)),
    )
    for axis, (title, measures) in zip(axes, panels, strict=True):
        for measure, label in measures:
            _band(axis, RATIOS, [arms.values(name, measure) for name in names], label)
        axis.set(xscale="log", xlabel="negatives per positive", title=title)
        axis.legend(frameon=False, fontsize=7)


def _popularity(axes: Sequence[Axes], results: Results) -> None:
    arms = Arms(results.rows)
    streams = sorted({arm.partition(" E6")[0] for arm in arms.rows if " E6 " in arm})
    panels = (
        ("nearest.prpc", "PRPC"),
        ("nearest.follow_auc", "AUC, held-out follows"),
        ("nearest.recall", "recall@20, follows"),
    )
    for axis, (measure, title) in zip(axes, panels, strict=True):
        for prefix, label in (("", "simulated"), *((f"{stream} ", stream) for stream in streams)):
            values = [arms.values(f"{prefix}E6 {scale:g}", measure) for scale in SCALES]
            _band(axis, SCALES, values, label)
        axis.axvline(1.0, color="grey", linewidth=0.6)
        axis.set(xscale="log", xlabel="t / 90 % quantile of followers", title=title)
    axes[0].legend(frameon=False, fontsize=7)


def _operating(axes: Sequence[Axes], results: Results) -> None:
    arms = Arms(results.rows)

    def place(arm: str, measure: str) -> float:
        return float(np.mean(arms.values(arm, measure)))

    for axis, measure in zip(axes, ("served.auc", "served.per_user_auc"), strict=True):
        for number, share in enumerate(SHARES):
            names = ["E7 random", *(f"E8 {number} {length}" for length in LENGTHS)]
            axis.plot(
                [place(n, "nearest.mismatch") for n in names],
                [place(n, measure) for n in names],
                "o-",
                markersize=3,
                label=f"{share:.3g} of the rate",
            )
        for name in ("implicit", "random"):
            x, y = place(f"E7 {name}", "nearest.mismatch"), place(f"E7 {name}", measure)
            axis.plot(x, y, "k*")
            axis.annotate(name, (x, y), fontsize=7, xytext=(3, -9), textcoords="offset points")
        axis.set(
            xlabel="mismatch@1 of nearest neighbours",
            title={"served.auc": "AUC, served", "served.per_user_auc": "per-user AUC, served"}[measure],
        )
    axes[0].legend(frameon=False, fontsize=7)


def _recalls(axes: Sequence[Axes], results: Results) -> None:
    for told, truth in by_recall(results.rows):
        axes[0].plot(told, truth, ".", markersize=4)
    axes[0].set(
        xlabel="recall@20, served",
        ylabel="true p of the twenty",
        title="an arm on a seed each",
    )
