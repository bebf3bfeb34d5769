"""Figures as SVG: panels of named choices with the accuracy of each, and curves. It knows SVG and no benchmark.

Dots and not bars, since the axis does not begin at zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, GAP = 230, 230, 18
TOP, BOTTOM, LEFT = 40, 40, 44
MOST_STEPS = 5 + 1e-9
"""Of an axis."""
STYLE = """
svg { --ink: #1b2330; --faint: #667085; --line: #d8dee8; --dot: #1f6feb; --marked: #d1570b; --paper: #ffffff }
@media (prefers-color-scheme: dark) { svg { --ink: #dfe5ee; --faint: #8893a5; --line: #2c3542; --dot: #6ea8ff;
  --marked: #ff9d5c; --paper: #12161d } }
text { font: 11px system-ui, sans-serif; fill: var(--faint) } .title { font-weight: 600; font-size: 12px }
.title, .value { fill: var(--ink) }
"""


@dataclass(frozen=True)
class Panel:
    """``points``: (choice, value from 0 to 1, whether it is the default)."""

    title: str
    points: tuple[tuple[str, float, bool], ...]


def figure(panels: Sequence[Panel], label: str, panel_width: int = WIDTH) -> str:
    """The SVG; all panels share one axis, from the next 5 % below the lowest value up to 100 %."""
    low = max(0.0, int(min(v for p in panels for _, v, _ in p.points) * 20 - 0.2) / 20)
    width = LEFT + len(panels) * panel_width + (len(panels) - 1) * GAP
    parts = "".join(
        _panel(p, LEFT + i * (panel_width + GAP), panel_width, low, axis=i == 0) for i, p in enumerate(panels)
    )
    return _document(width, parts, label)


def marks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to ``high`` for an axis: at most six, 1, 2 or 5 of some power of ten apart."""
    steps = (digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5))
    step = next(step for step in steps if (high - low) / step <= MOST_STEPS)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * number for number in range(first, last + 1)]


def curves(lines: Sequence[tuple[str, Sequence[float], bool]], label: str, across: str) -> str:
    """Values by equal steps as one SVG: (name, values, whether it is marked); the axis goes from 0 to the highest."""
    width, height = 2 * WIDTH, HEIGHT - TOP - BOTTOM
    high = max(max(values) for _, values, _ in lines)
    drawn = []
    for mark in marks(0.0, high):
        y = TOP + height * (1 - mark / high)
        drawn.append(
            f'<line x1="{LEFT}" x2="{LEFT + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{mark:g}</text>'
        )
    for name, values, marked in lines:
        colour, step = "var(--marked)" if marked else "var(--dot)", width / max(1, len(values) - 1)
        points = " ".join(f"{LEFT + i * step:.1f},{TOP + height * (1 - v / high):.1f}" for i, v in enumerate(values))
        drawn.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"><title>{escape(name)}</title>'
            "</polyline>"
        )
    names = {name: marked for name, _, marked in lines}
    for i, (name, marked) in enumerate(names.items()):
        colour = "var(--marked)" if marked else "var(--dot)"
        drawn.append(f'<text x="{LEFT + i * WIDTH}" y="16" style="fill: {colour}">{escape(name)}</text>')
    drawn.append(f'<text x="{LEFT + width / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(across)}</text>')
    return _document(LEFT + width + GAP, "".join(drawn), label)


def _document(width: int, drawn: str, label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" viewBox="0 0 {width} {HEIGHT}" '
        f'role="img" aria-label="{escape(label)}"><style>{STYLE}</style>'
        f'<rect width="{width}" height="{HEIGHT}" fill="var(--paper)"/>{drawn}</svg>\n'
    )


def _panel(panel: Panel, left: int, wide: int, low: float, *, axis: bool) -> str:
    def height(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (1 - low))

    parts = [f'<text class="title" x="{left}" y="16">{escape(panel.title)}</text>']
    for mark in marks(low, 1.0):
        y = height(mark)
        parts.append(f'<line x1="{left}" x2="{left + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        if axis:
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{mark:.0%}</text>')
    step = wide / len(panel.points)
    for i, (name, value, default) in enumerate(panel.points):
        x, y, colour = left + step * (i + 0.5), height(value), "var(--marked)" if default else "var(--dot)"
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{height(low):.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="2"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
            f'<text class="value" x="{x:.1f}" y="{y - 9:.1f}" text-anchor="middle">{100 * value:.1f}</text>'
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(name)}</text>'
        )
    return "".join(parts)
