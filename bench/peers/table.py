"""A comparison as a table: one line a peer, and each figure's ratio to kithstream's."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

OURS = "kithstream"
Rounds = Mapping[str, Sequence[Mapping[str, Any]]]  # by peer, what each round found


def medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median of each figure over the rounds that have it."""
    names = dict.fromkeys(name for one in rounds for name, value in one.items() if number(value))
    return {name: statistics.median(one[name] for one in rounds if number(one.get(name))) for name in names}


def ratio(rounds: Rounds, peer: str, figure: str) -> float | None:
    """The median over rounds of a peer's figure over kithstream's of the same round; None where one is not there."""
    pairs = [
        (theirs[figure], ours[figure])
        for theirs, ours in zip(rounds[peer], rounds.get(OURS, ()), strict=False)
        if number(theirs.get(figure)) and number(ours.get(figure)) and ours[figure]
    ]
    return statistics.median(theirs / ours for theirs, ours in pairs) if pairs else None


def number(value: object) -> bool:
    """True of a number that can be compared; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def short(value: object) -> str:
    """A value in three or four digits."""
    if value is None:
        return "-"
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def markdown(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A table as Markdown writes it, its columns padded."""
    cells = [list(head), *([short(cell) for cell in line] for line in lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    rows = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([rows[0], rule, *rows[1:]])


def compared(
    rounds: Rounds, told: Mapping[str, Sequence[object]], columns: Mapping[str, str], by: Sequence[str]
) -> str:
    """The table: `told` says what stands before the figures of a peer, `columns` maps figures to heads, `by` are
    those whose ratio to kithstream's stands behind."""
    head = ["peer", "version", "what it does", *columns.values(), *(f"{columns[name]} / ours" for name in by)]
    lines = []
    for peer, found in rounds.items():
        middle = medians(found)
        figures = [middle.get(name) for name in columns]
        lines.append([peer, *told[peer], *figures, *(ratio(rounds, peer, name) for name in by)])
    return markdown(head, lines)
