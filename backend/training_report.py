"""What a training run tells: a log of JSON lines, and one HTML page with curves and pictures that needs no other file.

Lines have a `kind`: "step" (loss and terms of one step), "skip" (a step that was not taken), "validation" (PSNR) and
"start" (a process that began or went on). Each says the `step` after which it was written.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blender_addon.atomic_file import replacing

POINTS = 300  # of a curve: more are averaged
WIDTH, HEIGHT = 640, 220  # pixels of a plot
MARGIN = 56  # pixels, left of and below a plot
COLOURS = ("#1f6fb2", "#c7502d", "#3b8a3e", "#8453a5", "#8a6d1d", "#5b5b5b", "#b23a7a", "#2a8f97")
NOT_TERMS = ("kind", "step", "share", "seconds", "rate", "norm", "loss")
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse}td,th{padding:2px 10px 2px 0;text-align:left;vertical-align:top}"
    "pre{background:#f4f4f4;padding:1em;overflow:auto;font-size:12px}img{image-rendering:pixelated;margin:2px}"
)

Line = Mapping[str, Any]
Point = tuple[float, float]


@dataclass(frozen=True)
class Picture:
    """One validation view: what was wanted and what was made.

    want, got  [H,W,3] uint8
    """

    label: str
    want: np.ndarray
    got: np.ndarray


@dataclass(frozen=True)
class Plot:
    """Curves over steps; `log` puts powers of ten at equal distances, and leaves out what is not above 0."""

    title: str
    curves: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    log: bool = False


# ---- the log


def append(path: Path, line: Line) -> None:
    """Adds one line; numbers that are not finite become text."""
    plain = {key: str(v) if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a kill may have cut the last one short."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def cut(path: Path, step: int) -> None:
    """Leaves out all lines of steps after `step`, which will be done again."""
    kept = [line for line in read(path) if line["step"] <= step]
    with replacing(path) as file:
        file.write("".join(json.dumps(line) + "\n" for line in kept).encode())


# ---- the page


def write(
    path: Path, title: str, lines: Sequence[Line], pictures: Sequence[Picture], config: Mapping[str, Any]
) -> None:
    """Writes the page, whole or not at all."""
    body = [f"<h1>{html.escape(title)}</h1>", _table(summary(lines))]
    body += [svg(plot) for plot in plots(lines) if any(plot.curves.values())]
    body += ["<h2>Held-out views: wanted, made</h2>", *map(_shown, pictures)] if pictures else []
    body += ["<h2>Configuration</h2>", f"<pre>{html.escape(json.dumps(config, indent=1))}</pre>"]
    head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    with replacing(path) as file:
        file.write("\n".join([head, *body]).encode())


def summary(lines: Sequence[Line]) -> dict[str, str]:
    """What a reader wants to know first, by name."""
    steps = [line for line in lines if line["kind"] == "step"]
    scores = [line for line in lines if line["kind"] == "validation"]
    facts = {}
    if steps:
        last = steps[-1]
        facts |= {"steps": f"{last['step']:,}", "of the run": f"{100 * last['share']:.1f} %"}
        facts |= {"hours": f"{last['seconds'] / 3600:.2f}", "last loss": f"{last['loss']:.4g}"}
    if scores:
        best = max(scores, key=lambda line: line["psnr"])
        facts |= {"last PSNR": f"{scores[-1]['psnr']:.2f} dB", "best PSNR": f"{best['psnr']:.2f} dB"}
    skipped = sum(line["kind"] == "skip" for line in lines)
    resumed = sum(line["kind"] == "start" and line["step"] > 0 for line in lines)
    return facts | {"skipped steps": str(skipped), "times resumed": str(resumed)}


def plots(lines: Sequence[Line]) -> list[Plot]:
    """The run's curves."""
    steps = [line for line in lines if line["kind"] == "step"]
    terms = dict.fromkeys(key for line in steps for key in line if key not in NOT_TERMS)
    scores = [(line["step"], line["psnr"]) for line in lines if line["kind"] == "validation"]
    return [
        Plot("PSNR of held-out views, dB", {"moving average of the weights": scores}),
        Plot("Loss", {name: _points(steps, name) for name in ("loss", *terms)}, log=True),
        Plot("Length of the gradient", {"norm": _points(steps, "norm")}, log=True),
        Plot("Learning rate", {"rate": _points(steps, "rate")}),
    ]


def _points(lines: Sequence[Line], name: str) -> list[Point]:
    return [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]


def thinned(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """At most `most` points, each the mean of as many neighbours."""
    run = math.ceil(len(points) / most)
    parts = [points[start : start + run] for start in range(0, len(points), max(run, 1))]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def svg(plot: Plot) -> str:
    """A plot as inline SVG."""
    curves = {name: _drawable(points, log=plot.log) for name, points in plot.curves.items()}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return ""
    every = [point for points in curves.values() for point in points]
    across, up = _Axis.over([0.0, *(x for x, _ in every)], WIDTH), _Axis.over([y for _, y in every], HEIGHT)
    parts = [f'<h2>{html.escape(plot.title)}</h2><svg viewBox="0 0 {WIDTH + 2 * MARGIN + 160} {HEIGHT + 40}">']
    parts += [_grid_line(up, value, log=plot.log) for value in up.ticks]
    parts += [_label(across.place(x) + MARGIN, HEIGHT + 28, f"{x:g}", "middle") for x in across.ticks]
    for number, (name, points) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{across.place(x) + MARGIN:.1f},{HEIGHT + 10 - up.place(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(_label(WIDTH + MARGIN + 12, 20 + 16 * number, name, "start", colour))
    return "".join([*parts, "</svg>"])


def _drawable(points: Sequence[Point], *, log: bool) -> list[Point]:
    points = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]
    return [(x, math.log10(y) if log else y) for x, y in thinned(points)]


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    pixels: int

    @staticmethod
    def over(values: Sequence[float], pixels: int) -> _Axis:
        low, high = min(values), max(values)
        room = (high - low) * 0.03 or 0.5
        return _Axis(low - room, high + room, pixels)

    def place(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low) * self.pixels

    @property
    def ticks(self) -> list[float]:
        """About five round values."""
        rough = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [number * step for number in range(first, last + 1)]


def _grid_line(up: _Axis, value: float, *, log: bool) -> str:
    y = HEIGHT + 10 - up.place(value)
    text = f"{10**value:.2g}" if log else f"{value:g}"
    line = f'<line x1="{MARGIN}" x2="{MARGIN + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
    return line + _label(MARGIN - 6, y + 4, text, "end")


def _label(x: float, y: float, text: str, anchor: str, colour: str = "#555") -> str:
    style = f'font-size="12" fill="{colour}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{html.escape(text)}</text>'


def _table(facts: Mapping[str, str]) -> str:
    rows = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items())
    return f"<table>{''.join(rows)}</table>"


def _shown(picture: Picture) -> str:
    pair = np.concatenate([picture.want, picture.got], axis=1)
    stream = io.BytesIO()
    Image.fromarray(pair).save(stream, format="png")
    data, label = base64.b64encode(stream.getvalue()).decode(), html.escape(picture.label)
    return f'<img alt="{label}" title="{label}" src="data:image/png;base64,{data}">'
