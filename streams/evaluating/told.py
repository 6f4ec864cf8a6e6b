"""A report for people: a table on a terminal, or one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from kithstream.models.evaluate import Interval
from kithstream.streams.evaluating import chart
from kithstream.streams.evaluating.asking import WHOLE
from kithstream.streams.evaluating.measures import ALL
from kithstream.streams.evaluating.plan import LIST
from kithstream.streams.evaluating.report import Report, Row, Served, checked

NONE: Final = "-"
_MEASURED: Final = (
    "random AUC",
    "per user",
    "mismatch@1",
    "PRPC",
    "coverage",
    "Gini",
    "served AUC",
    "per user",
)

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
small { color: #555; }
"""

# What stands below every table: an AUC alone says little.
_LEGEND: Final = (
    "Random AUC: the followed account against accounts drawn uniformly from all candidates. Served AUC: impressions "
    "that were engaged with against those that were ignored; it says how well a method agrees with whoever chose the "
    "impressions, and nothing of what it would recommend itself. Mismatch@1: first candidates of another language. "
    f"PRPC: correlation of followers with the share of lists at {LIST} that hold an account."
)


def table(report: Report) -> Iterator[str]:
    """Yield the lines for a terminal: all methods, then the parts of the whole."""
    report = checked(report)
    k = _k(report)
    yield f"{report.tests} follows and {report.slates} slates of {report.stream}, seed {report.seed}"
    yield ""
    yield from _lines("method", [(row.method, row) for row in report.rows if row.part == ALL], k)
    yield ""
    yield from _lines(WHOLE, [(row.part, row) for row in report.rows if row.method == WHOLE], k)
    withheld = {row.withheld for row in report.rows if row.part == ALL and row.withheld}
    for reason in sorted(withheld):
        yield ""
        yield f"no served AUC: {reason}"


def page(report: Report) -> str:
    """Return a report as one page of HTML: no script, nothing is loaded."""
    report = checked(report)
    k = _k(report)
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    names = list(dict.fromkeys(row.part for row in report.rows))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"style-src 'sha256-{digest}'\">",
        f"<title>kithstream evaluate: {escape(report.stream)}</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(report.stream)}</h1>",
        f"<p>{escape(_about(report))}</p>",
        f"<p><small>{escape(_LEGEND)}</small></p>",
        *_charts(report, k),
    ]
    for name in names:
        of_part = [row for row in report.rows if row.part == name]
        parts.append(f"<h2>{escape(_titled(report, name))}, {of_part[0].questions} follows</h2>")
        parts.append(_html_table([(row.method, row) for row in of_part], k))
        parts += [
            f"<p><small>{escape(row.method)}: {escape(row.withheld)}</small></p>"
            for row in of_part
            if row.withheld
        ]
    parts.append("<h2>By k</h2>")
    parts.append(_by_k(report))
    parts.append("</body></html>")
    return "\n".join(parts) + "\n"


def _k(report: Report) -> int:
    """The k that is shown first: 20 if it was asked for."""
    return LIST if LIST in report.ks else max(report.ks)


def _about(report: Report) -> str:
    chosen = "; ".join(f"{name}: {setting}" for name, setting in report.chosen.items())
    return (
        f"{report.events:,} events, {report.accounts:,} accounts, {report.candidates:,} of them candidates; "
        f"{report.refused:,} events refused, {report.learned:,} follows learned from. Asked just before each was told: "
        f"{report.tests:,} follows of the last fifth, each beside {report.others} accounts drawn at random, and "
        f"{report.slates:,} slates, engaged with within {report.window_seconds:g} s or ignored ({report.unfinished:,} "
        f"more had no end). Seed {report.seed}; intervals are of 95 %, by bootstrap. Yardsticks' half-lives, chosen on "
        f"the part before: {chosen}. Lineage {report.lineage} at step {report.step:,}."
    )


def _titled(report: Report, part: str) -> str:
    """A part with what bounds it."""
    young, old = (f"{seconds / 86_400:.3g} days" for seconds in report.age_borders)
    bounds = {
        "head": f"over {report.head_followers} followers",
        "torso": f"{report.torso_followers + 1} to {report.head_followers} followers",
        "tail": f"up to {report.torso_followers} followers",
        "newest third": f"asking account known for under {young}",
        "middle third": f"asking account known for {young} to {old}",
        "oldest third": f"asking account known for {old} and more",
    }
    return f"{part} ({bounds[part]})" if part in bounds else part


def _charts(report: Report, k: int) -> list[str]:
    every = [row for row in report.rows if row.part == ALL]
    methods = [row.method for row in every]
    drawn = [
        chart.bars(f"recall@{k}", methods, {f"recall@{k}": [row.recall[k] for row in every]}),
        chart.lines(
            "recall by length of the list",
            [str(k) for k in report.ks],
            {row.method: [row.recall[k] for k in report.ks] for row in every},
            "k",
        ),
    ]
    told = [row for row in every if row.measured is not None]
    if told:
        aucs = {"random": [row.measured.random_auc_per_user for row in told if row.measured]}
        served: list[Interval | None] = [
            row.measured.served_auc_per_user if isinstance(row.measured, Served) else None for row in told
        ]
        if any(served):
            drawn.append(
                chart.bars(
                    "AUC per user, on random and on served negatives",
                    [row.method for row in told],
                    {**aucs, "served": served},
                )
            )
        else:
            drawn.append(chart.bars("AUC per user, on random negatives", [row.method for row in told], aucs))
    own = [row for row in report.rows if row.method == WHOLE]
    drawn.append(
        chart.bars(
            f"recall@{k} of {WHOLE} by part",
            [row.part for row in own],
            {f"recall@{k}": [row.recall[k] for row in own]},
        )
    )
    return drawn


def _cells(row: Row, k: int) -> list[str]:
    recall = row.recall[k]
    cells = [
        str(row.questions),
        f"{recall.mean:.3f}",
        f"{recall.low:.3f} to {recall.high:.3f}",
        f"{row.ndcg[k].mean:.3f}",
    ]
    measured = row.measured
    if measured is None:
        return cells + [NONE] * len(_MEASURED)
    cells += [f"{measured.random_auc:.3f}", f"{measured.random_auc_per_user.mean:.3f}"]
    cells.append(NONE if measured.mismatch_at_1 is None else f"{measured.mismatch_at_1:.3f}")
    cells += [f"{value:.3f}" for value in (measured.prpc, measured.coverage, measured.gini)]
    if not isinstance(measured, Served):
        return [*cells, NONE, NONE]
    return [*cells, f"{measured.served_auc:.3f}", f"{measured.served_auc_per_user.mean:.3f}"]


def _header(first: str, k: int) -> list[str]:
    return [first, "asked", f"recall@{k}", "95 % interval", f"NDCG@{k}", *_MEASURED]


def _lines(first: str, named: Sequence[tuple[str, Row]], k: int) -> Iterator[str]:
    cells = [_header(first, k), *([name, *_cells(row, k)] for name, row in named)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]))]
    for line in cells:
        aligned = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        yield "  ".join(aligned).rstrip()


def _html_table(named: Sequence[tuple[str, Row]], k: int) -> str:
    lines = [_html_row("th", _header("method", k))]
    lines += [_html_row("td", [name, *_cells(row, k)]) for name, row in named]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _by_k(report: Report) -> str:
    lines = [_html_row("th", ["method", *(f"{name}@{k}" for name in ("recall", "NDCG") for k in report.ks)])]
    for row in report.rows:
        if row.part == ALL:
            told = [f"{values[k].mean:.3f}" for values in (row.recall, row.ndcg) for k in report.ks]
            lines.append(_html_row("td", [row.method, *told]))
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
