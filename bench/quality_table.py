"""Parts of the comparison put together: recall and NDCG with intervals, paired ratios, times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.quality_part import Part
from bench.quality_streams import NAMES, TITLES
from kithstream.streams import prequential
from kithstream.streams.prequential import Estimate

LABELS: Final = {  # in the order of the table
    "popularity": "decayed popularity, live",
    "two_hop": "2-hop co-follow, live",
    "hand_rule": "hand rule, live",
    "als": "implicit ALS, fitted at 80 %",
    "als_fold_in": "implicit ALS, the asker's follows folded in when it asks",
    "als_refit": "implicit ALS, folded in, and fitted again ten times",
    "bpr": "implicit BPR, fitted at 80 %",
    "bpr_refit": "implicit BPR, fitted again ten times",
    "warp": "LightFM WARP, fitted at 80 %",
    "warp_partial": "LightFM WARP, `fit_partial` ten times",
    "day_zero": "kithstream, day-zero weights",
    "frozen_towers": "kithstream, learning ended at 80 %: towers",
    "frozen_whole": "kithstream, learning ended at 80 %: whole",
    "towers": "**kithstream, towers alone**",
    "whole": "**kithstream, whole**",
    "towers_events": "kithstream told every event: towers alone",
    "whole_events": "kithstream told every event: whole",
}
OWN: Final = tuple(name for name, label in LABELS.items() if "kithstream" in label)
COMPARED: Final = ("towers", "whole", "towers_events", "whole_events")
DRAWS: Final = 1000


class Row(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="row"):
    """What one method reached on one stream."""

    stream: str
    method: str
    queries: int
    complete: bool  # False: some of its parts are missing, and so are their tests
    recall_at_20: Estimate
    ndcg_at_20: Estimate
    fit_seconds: float  # of all its fits, or of its pass over the stream without questions
    query_ms: tuple[float, float]  # median and 99th percentile
    setting: str
    tried: int  # settings
    refused: int
    seed: int
    pairs: int
    machine: str
    versions: Mapping[str, str]


class Ratio(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="ratio"):
    """A method's mean over that of the best which is not kithstream's, on the same tests."""

    stream: str
    method: str
    other: str
    measure: str
    ratio: Estimate


class _Method:
    """The parts of one method on one stream."""

    def __init__(self, name: str, parts: Sequence[Part]) -> None:
        self.name = name
        self.parts = parts
        found = {
            row: position
            for part in parts
            for row, position in zip(part.rows, part.positions[name], strict=True)
        }
        self.rows = sorted(found)
        self.positions = np.array([found[row] for row in self.rows], np.int64)

    def values(self, measure: str) -> NDArray[np.float64]:
        if measure == "recall":
            return prequential.recalled(self.positions)
        return prequential.gained(self.positions)


def summed_up(parts: Mapping[str, Part], seed: int = 0) -> list[Row | Ratio]:
    """Returns a row for each method of each stream, and ratios where a method and its rivals are complete."""
    made: list[Row | Ratio] = []
    for stream in NAMES:
        own = [part for part in parts.values() if part.stream == stream]
        methods = _methods(own)
        longest = max((method.rows for method in methods), key=len, default=[])
        tried: defaultdict[str, int] = defaultdict(int)
        for part in own:
            for name in part.recalls:
                tried[name] += 1
        made += [_row(method, method.rows == longest, tried, seed) for method in methods if method.rows]
        made += _ratios(stream, [method for method in methods if method.rows == longest], seed)
    return made


def _methods(parts: Sequence[Part]) -> list[_Method]:
    return [
        _Method(name, having)
        for name in LABELS
        if (having := [part for part in parts if name in part.positions])
    ]


def _row(method: _Method, complete: bool, tried: Mapping[str, int], seed: int) -> Row:
    first = method.parts[0]
    took = [ms for part in method.parts for ms in part.query_ms[method.name]]
    recall, ndcg = (_rounded(prequential.estimate(method.values(name), seed)) for name in ("recall", "ndcg"))
    median, slowest = np.percentile(took, [50, 99]).tolist()
    return Row(
        stream=first.stream,
        method=method.name,
        queries=len(method.rows),
        complete=complete,
        recall_at_20=recall,
        ndcg_at_20=ndcg,
        fit_seconds=round(sum(part.fit_seconds for part in method.parts), 2),
        query_ms=(round(median, 2), round(slowest, 2)),
        setting=first.setting,
        tried=max(tried.get(method.name, 0), tried.get(method.name.removesuffix("_refit"), 0)),
        refused=first.refused,
        seed=first.seed,
        pairs=first.pairs,
        machine=first.machine,
        versions=first.versions,
    )


def _ratios(stream: str, methods: Sequence[_Method], seed: int) -> Iterator[Ratio]:
    rivals = [method for method in methods if method.name not in OWN]
    for measure in ("recall", "ndcg"):
        best = max(rivals, key=lambda method: float(method.values(measure).mean()), default=None)
        if best is None or not best.values(measure).any():
            continue
        for method in methods:
            if method.name in COMPARED:
                ratio = paired_ratio(method.values(measure), best.values(measure), seed)
                yield Ratio(
                    stream=stream,
                    method=method.name,
                    other=best.name,
                    measure=measure,
                    ratio=_rounded(ratio),
                )


def paired_ratio(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], seed: int, draws: int = DRAWS
) -> Estimate:
    """Returns the ratio of two means over the same tests, with the bootstrap interval of 95 % that draws tests.

    >>> paired_ratio(np.array([1.0, 0.5]), np.array([0.5, 0.25]), 0)
    Estimate(mean=2.0, low=2.0, high=2.0)
    """
    if ours.shape != theirs.shape or not theirs.any():
        raise ValueError(f"ours has {len(ours)} tests, theirs {len(theirs)} with a sum of {theirs.sum():g}")
    draw = np.random.default_rng(seed)
    ratios = []
    for _ in range(draws):
        at = draw.integers(0, len(ours), len(ours))
        if total := theirs[at].sum():
            ratios.append(ours[at].sum() / total)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Estimate(float(ours.sum() / theirs.sum()), float(low), float(high))


def _rounded(one: Estimate) -> Estimate:
    return Estimate(*(round(value, 4) for value in one))


# -- markdown ------------------------------------------------------------------------------------------------


def markdown(made: Sequence[Row | Ratio]) -> str:
    """Returns the tables for people."""
    rows = {(one.stream, one.method): one for one in made if isinstance(one, Row)}
    ratios = [one for one in made if isinstance(one, Ratio)]
    streams = [name for name in NAMES if any(stream == name for stream, _ in rows)]
    methods = [name for name in LABELS if any(method == name for _, method in rows)]
    heads = [f"{TITLES[name]} ({_size(rows, name)})" for name in streams]
    lines = ["recall@20 (95 %) / NDCG@20", "", *_head(["method", *heads])]
    for method in methods:
        cells = [_quality(rows.get((stream, method))) for stream in streams]
        lines.append(_line([LABELS[method], *cells]))
    lines += ["", "Over the best method that is not kithstream's, paired (95 %)", ""]
    lines += _head(["", *(TITLES[name] for name in streams)])
    for measure in ("recall", "ndcg"):
        for method in COMPARED:
            by_stream = {one.stream: one for one in ratios if (one.method, one.measure) == (method, measure)}
            if by_stream:
                cells = [_ratio(by_stream.get(stream)) for stream in streams]
                lines.append(_line([f"{LABELS[method]}, {measure}@20", *cells]))
    lines += [
        "",
        "Seconds of fitting, or of the pass; milliseconds of a question, median and 99th percentile",
        "",
    ]
    lines += _head(["method", *(TITLES[name] for name in streams)])
    for method in methods:
        cells = [_times(rows.get((stream, method))) for stream in streams]
        lines.append(_line([LABELS[method], *cells]))
    lines += ["", "Settings", ""]
    for one in rows.values():
        if one.setting:
            lines.append(
                f"- {TITLES[one.stream]}, {LABELS[one.method]}: `{one.setting}`, the best of {one.tried} trials"
            )
    lines += ["", *sorted({_where(one) for one in rows.values()})]
    return "\n".join(lines) + "\n"


def _where(row: Row) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in sorted(row.versions.items()))
    return f"{row.machine.partition(', load')[0]}; {versions}; seed {row.seed}"


def _size(rows: Mapping[tuple[str, str], Row], stream: str) -> str:
    own = [row for (name, _), row in rows.items() if name == stream]
    return f"{own[0].pairs:,} pairs, {max(row.queries for row in own):,} tests"


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _quality(row: Row | None) -> str:
    if row is None:
        return "not measured"
    mean, low, high = row.recall_at_20
    told = f"{mean:.3f} ({low:.3f} to {high:.3f}) / {row.ndcg_at_20.mean:.3f}"
    return told if row.complete else f"{told}, of {row.queries} tests only"


def _ratio(one: Ratio | None) -> str:
    if one is None:
        return "not measured"
    return f"{one.ratio.mean:.2f} ({one.ratio.low:.2f} to {one.ratio.high:.2f}) of {one.other}"


def _times(row: Row | None) -> str:
    if row is None:
        return "not measured"
    return f"{row.fit_seconds:.1f} s; {row.query_ms[0]:.2f}, {row.query_ms[1]:.2f} ms"
