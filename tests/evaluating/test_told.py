from __future__ import annotations

import base64
import hashlib
import re
from xml.etree import ElementTree

from tests.evaluating.test_report import NEAREST, SERVED, WHOLE, report, row

from kithstream.models.evaluate import Interval
from kithstream.streams.evaluating import chart
from kithstream.streams.evaluating.report import Nearest, Served
from kithstream.streams.evaluating.told import page, table

SVG = "{http://www.w3.org/2000/svg}"


def test_the_table_has_served_and_nearest_metrics_in_one_line() -> None:
    lines = list(table(WHOLE))
    header = next(line for line in lines if line.startswith("method"))
    (told,) = [line for line in lines if line.startswith("kithstream ") and "asked" not in line]
    cells = dict(zip(re.split(r"\s{2,}", header), re.split(r"\s{2,}", told), strict=True))
    assert cells["random AUC"] == "0.800"
    assert cells["mismatch@1"] == "0.250"
    assert cells["PRPC"] == "0.300"
    assert cells["served AUC"] == "0.890"


def test_what_is_withheld_is_told_with_its_reason() -> None:
    text = "\n".join(table(report(row(Nearest(**NEAREST), "the stream holds no impression"))))
    assert "no served AUC: the stream holds no impression" in text
    assert "0.890" not in text
    assert "the stream holds no impression" in page(report(row(None, "the stream holds no impression")))


def test_the_page_loads_nothing_and_allows_its_own_style_alone() -> None:
    text = page(report(row(Served(**NEAREST, **SERVED)), stream="<script>alert(1)</script>"))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(style|src|href|on\w+)=", text)
    style = re.search("<style>(.*)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in text
    for drawn in re.findall("<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawn)
    assert text.count("<svg") == 4


def test_a_bar_is_as_long_as_its_mean() -> None:
    series = {"one": [Interval(0.5, 0.4, 0.6), None], "two": [Interval(0.25, 0.2, 0.3), Interval(1, 1, 1)]}
    root = ElementTree.fromstring(chart.bars("<recall>", ["a", "b"], series))
    shapes = [shape for shape in root.iter(f"{SVG}rect") if shape.get("height") == "14.0"]
    half, quarter, full = (float(shape.attrib["width"]) for shape in shapes)
    assert abs(half / full - 0.5) < 0.001  # one decimal of a pixel
    assert abs(quarter / full - 0.25) < 0.001
    assert root.findtext(f"{SVG}title") == "<recall>"


def test_a_line_has_a_point_for_each_value_that_is_there() -> None:
    values = [Interval(0.3, 0.2, 0.4), None, Interval(0.1, 0.05, 0.15)]
    root = ElementTree.fromstring(chart.lines("recall", ["0 s", "10 s", "1 min"], {"one": values}))
    (line,) = root.iter(f"{SVG}polyline")
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in line.attrib["points"].split())
    assert x0 < x1
    assert y0 < y1  # less is further down
    assert len(list(root.iter(f"{SVG}circle"))) == 2


def test_values_beyond_one_have_an_axis_of_their_own() -> None:
    values = [Interval(40.0, 30.0, 50.0), Interval(80.0, 80.0, 80.0)]
    lines = ElementTree.fromstring(chart.lines("ms", ["100", "1,000"], {"p50": values}, high=100.0))
    assert {"0", "25", "50", "75", "100"} <= {text.text for text in lines.iter(f"{SVG}text")}
    half, most = (float(circle.attrib["cy"]) for circle in lines.iter(f"{SVG}circle"))
    zero = chart.TOP + (380 - chart.TOP - chart.BOTTOM - 16)
    assert abs((zero - most) / (zero - half) - 2) < 0.01
    assert abs((zero - most) / (zero - chart.TOP) - 0.8) < 0.01
    bars = ElementTree.fromstring(chart.bars("us", ["decode"], {"us": values[:1]}, 50.0, ".3g"))
    assert "40" in [text.text for text in bars.iter(f"{SVG}text")]
