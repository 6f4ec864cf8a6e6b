"""Charts as SVG: bars and lines with their intervals. No script, no style, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from xml.etree.ElementTree import Element, SubElement, tostring

from kithstream.models.evaluate import Interval

# Okabe and Ito's colours: told apart by most who see colours differently.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
INK, GRID = "#222222", "#dddddd"
FONT: Final = "system-ui, sans-serif"
WIDTH: Final = 720.0
TOP, BOTTOM, RIGHT = 56.0, 40.0, 150.0  # margins; the legend stands at the right
ROW: Final = 18.0  # height of a bar with its space

Series = Mapping[str, Sequence[Interval | None]]


def bars(title: str, groups: Sequence[str], series: Series, high: float = 1.0, digits: str = ".3f") -> str:
    """Return horizontal bars from 0 to `high`, one of each series in each group; None leaves one out."""
    left = 30.0 + 7.0 * max(map(len, groups))
    height = TOP + BOTTOM + len(groups) * (len(series) * ROW + 8)
    root = _root(title, height)
    scale = (WIDTH - left - RIGHT) / high
    for tick in range(6):
        x = left + tick / 5 * high * scale
        _line(root, x, TOP - 6, x, height - BOTTOM, GRID)
        _text(root, x, height - BOTTOM + 16, f"{tick / 5 * high:g}", "middle")
    y = TOP
    for place, group in enumerate(groups):
        _text(root, left - 8, y + len(series) * ROW / 2 + 4, group, "end")
        for colour, values in zip(_colours(series), series.values(), strict=True):
            value = values[place]
            if value is not None:
                shape = {"x": left, "y": y, "width": max(0.0, value.mean * scale), "height": ROW - 4}
                _put(root, "rect", shape, fill=colour)
                middle = y + (ROW - 4) / 2
                _line(root, left + value.low * scale, middle, left + value.high * scale, middle, INK)
                _text(root, left + value.high * scale + 6, middle + 4, format(value.mean, digits))
            y += ROW
        y += 8
    _legend(root, series)
    return tostring(root, "unicode")


def lines(
    title: str,
    ticks: Sequence[str],
    series: Series,
    below: str = "",
    height: float = 380.0,
    high: float | None = None,
) -> str:
    """Return one line a series over evenly spaced ticks, with intervals; from 0 to `high`.

    Without it, to a little above the highest of values that are shares.
    """
    left = 56.0
    told = [value for values in series.values() for value in values if value is not None]
    most = max((value.high for value in told), default=1.0)
    if high is None:
        high = next(step for step in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if step >= min(most, 1.0))
    root = _root(title, height)
    wide, tall = (WIDTH - left - RIGHT) / max(1, len(ticks) - 1), height - TOP - BOTTOM - 16
    for tick in range(5):
        y = TOP + tall * (1 - tick / 4)
        _line(root, left, y, WIDTH - RIGHT, y, GRID)
        _text(root, left - 8, y + 4, f"{tick / 4 * high:g}", "end")
    for place, name in enumerate(ticks):
        _text(root, left + place * wide, TOP + tall + 18, name, "middle")
    _text(root, left + wide * (len(ticks) - 1) / 2, height - 10, below, "middle")
    for number, (colour, values) in enumerate(zip(_colours(series), series.values(), strict=True)):
        shift = 3.0 * (number - (len(series) - 1) / 2)  # so that intervals stand beside each other
        points = []
        for place, value in enumerate(values):
            if value is None:
                continue
            x = left + place * wide + shift
            mean, low, top = (TOP + tall * (1 - number / high) for number in value)
            points.append(f"{x:.1f},{mean:.1f}")
            _line(root, x, low, x, top, colour)
            _put(root, "circle", {"cx": x, "cy": mean, "r": 3.0}, fill=colour)
        _put(root, "polyline", {}, points=" ".join(points), fill="none", stroke=colour)
    _legend(root, series)
    return tostring(root, "unicode")


def _colours(series: Series) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(len(series))]


def _root(title: str, height: float) -> Element:
    root = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH:g} {height:g}",
            "width": f"{WIDTH:g}",
            "height": f"{height:g}",
            "font-family": FONT,
            "font-size": "12",
            "role": "img",
        },
    )
    SubElement(root, "title").text = title
    _put(root, "rect", {"width": WIDTH, "height": height}, fill="#ffffff")
    _text(root, 16, 24, title, size="15")
    return root


def _legend(root: Element, series: Series) -> None:
    if len(series) < 2:
        return
    for place, (name, colour) in enumerate(zip(series, _colours(series), strict=True)):
        y = TOP + place * ROW
        _put(root, "rect", {"x": WIDTH - RIGHT + 16, "y": y, "width": 10.0, "height": 10.0}, fill=colour)
        _text(root, WIDTH - RIGHT + 32, y + 9, name)


def _put(root: Element, name: str, places: Mapping[str, float], **plain: str) -> None:
    SubElement(root, name, {key: f"{value:.1f}" for key, value in places.items()} | plain)


def _line(root: Element, x1: float, y1: float, x2: float, y2: float, stroke: str) -> None:
    _put(root, "line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2}, stroke=stroke)


def _text(
    root: Element, x: float, y: float, text: str, anchor: str = "start", *, size: str | None = None
) -> None:
    attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "fill": INK}
    if size is not None:
        attributes["font-size"] = size
    SubElement(root, "text", attributes).text = text
