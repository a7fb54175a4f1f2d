"""The log, which kills may cut, and the page, which needs no other file."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend import training_report as report
from backend.training_report import Picture, Plot


def step(number: int, **told: Any) -> dict[str, Any]:
    line = {"kind": "step", "step": number, "share": number / 10, "seconds": 36.0 * number, "rate": 1e-3, "norm": 0.5}
    return line | {"loss": 1 / number, "rgb": 0.5 / number} | told


def lines_of_a_run() -> list[dict[str, Any]]:
    scores = [{"kind": "validation", "step": 4, "psnr": 21.0}, {"kind": "validation", "step": 8, "psnr": 20.0}]
    starts = [{"kind": "start", "step": 0}, {"kind": "start", "step": 3}]
    return [*starts, *(step(number) for number in range(1, 11)), {"kind": "skip", "step": 5, "loss": "nan"}, *scores]


# ---- the log


def test_lines_come_back_and_torn_ones_do_not(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert report.read(path) == []
    report.append(path, step(1))
    report.append(path, step(2, norm=float("inf"), loss=float("nan")))
    with path.open("a") as file:
        file.write('{"kind": "step", "st')
    lines = report.read(path)
    assert lines == [step(1), step(2, norm="inf", loss="nan")]


def test_what_will_be_done_again_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for line in lines_of_a_run():
        report.append(path, line)
    with path.open("a") as file:
        file.write('{"kind": "step", "st')
    report.cut(path, 6)
    assert max(line["step"] for line in report.read(path)) == 6
    report.append(path, step(7))
    assert report.read(path)[-1] == step(7), "on a line of its own"


# ---- the page


def curves(svg: str) -> dict[str, list[tuple[float, float]]]:
    """Points of each curve, by its name in the legend."""
    root = ElementTree.fromstring(re.sub(r"^.*?(<svg)", r"\1", svg))
    lines = [
        [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()] for line in root.iter("polyline")
    ]
    names = [text.text for text in root.iter("text") if text.attrib["fill"] != "#555"]
    return dict(zip(names, lines, strict=True))  # type: ignore[arg-type]


def test_the_page_shows_the_run(tmp_path: Path) -> None:
    want, got = np.full((4, 4, 3), 255, np.uint8), np.zeros((4, 4, 3), np.uint8)
    report.write(tmp_path / "r.html", "a <run>", lines_of_a_run(), [Picture("ball & co", want, got)], {"rate": 0.25})
    page = (tmp_path / "r.html").read_text()
    assert "a &lt;run&gt;" in page and "ball &amp; co" in page and "&quot;rate&quot;: 0.25" in page
    for fact in ("21.00 dB", "20.00 dB", "100.0 %", "0.10", "last loss"):
        assert fact in page
    assert page.count("<svg") == 4 and not re.search(r'(src|href)="(?!data:)', page), "nothing from elsewhere"
    data = re.search(r"data:image/png;base64,([^\"]+)", page)
    assert data is not None
    with Image.open(io.BytesIO(base64.b64decode(data[1]))) as image:
        assert np.array_equal(np.asarray(image), np.concatenate([want, got], axis=1))


def test_the_summary_counts(tmp_path: Path) -> None:
    facts = report.summary(lines_of_a_run())
    assert facts["skipped steps"] == "1" and facts["times resumed"] == "1" and facts["best PSNR"] == "21.00 dB"
    assert report.summary([]) == {"skipped steps": "0", "times resumed": "0"}


def test_curves_go_where_their_numbers_are() -> None:
    rising = curves(report.svg(Plot("t", {"up": [(0, 1.0), (5, 2.0), (10, 3.0)], "flat": [(0, 2.0), (10, 2.0)]})))
    (x0, y0), (x1, y1), (x2, y2) = rising["up"]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert x0 < x2 and y0 > y2, "higher is further up"
    assert rising["flat"][0][1] == rising["flat"][1][1] == pytest.approx(y1, abs=0.2)


def test_powers_of_ten_lie_equally_far_apart() -> None:
    points = [(0, 1.0), (1, 10.0), (2, 100.0), (3, 0.0), (4, float("nan"))]
    (_, one), (_, ten), (_, hundred) = curves(report.svg(Plot("t", {"a": points}, log=True)))["a"]
    assert one - ten == pytest.approx(ten - hundred, abs=0.2)


@pytest.mark.parametrize("points", [[], [(3.0, 2.0)], [(0.0, 0.0), (1.0, 0.0)]])
def test_plots_of_next_to_nothing(points: list[tuple[float, float]]) -> None:
    drawn = report.svg(Plot("t", {"a": points}))
    assert (drawn == "") == (not points)


def test_long_curves_are_averaged() -> None:
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    thin = report.thinned(points)
    assert len(thin) <= report.POINTS and {y for _, y in thin} == {0.5}
    assert sum(x for x, _ in thin) / len(thin) == pytest.approx(4999.5, rel=0.01)
    assert report.thinned(points[:5]) == points[:5] and report.thinned([]) == []


def test_terms_that_come_later_have_their_curve() -> None:
    lines = [step(1), step(2) | {"depth": 0.25}]
    (loss,) = [plot for plot in report.plots(lines) if plot.title == "Loss"]
    assert dict(loss.curves)["depth"] == [(2, 0.25)] and set(loss.curves) == {"loss", "rgb", "depth"}
