"""Pictures of measured curves, as SVG: lines over one axis, or bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, EDGE = 640, 240, 48
BAR, NAMES = 22, 250
COLOURS = ("#2563eb", "#d97706", "#059669")

Points = Sequence[tuple[float, float]]


def lines(curves: Mapping[str, Points], along: str) -> str:
    """Lines over one axis, both axes from zero."""
    most_x = max(x for points in curves.values() for x, _ in points) or 1
    most_y = (max(y for points in curves.values() for _, y in points) or 1) * 1.1

    def place(x: float, y: float) -> tuple[float, float]:
        right, up = (WIDTH - 2 * EDGE) * x / most_x, (HEIGHT - 2 * EDGE) * y / most_y
        return EDGE + right, HEIGHT - EDGE - up

    def path(points: Points) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))

    parts = [
        *_open(HEIGHT),
        f'<polyline points="{path([(0, most_y), (0, 0), (most_x, 0)])}" fill="none" stroke="#475569"/>',
        _text(WIDTH - EDGE, HEIGHT - EDGE + 32, "end", along),
    ]
    for share in (0.25, 0.5, 0.75, 1.0):
        x, y = place(most_x * share, 0)
        parts.append(_text(x, y + 16, "middle", _number(most_x * share)))
        x, y = place(0, most_y * share)
        parts.append(_text(x - 6, y + 4, "end", _number(most_y * share)))
    for number, (label, points) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{path(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(EDGE + 8, EDGE - 16 + 16 * number, "start", label, colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def bars(values: Mapping[str, float], unit: str, *, ours: Sequence[str] = (), goal: float | None = None) -> str:
    """A bar for each value, longest scale for all; those of `ours` in another colour, the goal as a line."""
    most = max([*values.values(), goal or 0]) or 1
    height = BAR * len(values) + 40
    scale = (WIDTH - NAMES - 80) / most
    parts = _open(height)
    for number, (name, value) in enumerate(values.items()):
        y = 10 + BAR * number
        colour = COLOURS[0] if name in ours else "#94a3b8"
        parts.append(_text(NAMES - 8, y + 14, "end", name))
        parts.append(f'<rect x="{NAMES}" y="{y}" width="{value * scale:.1f}" height="{BAR - 6}" fill="{colour}"/>')
        parts.append(_text(NAMES + value * scale + 6, y + 14, "start", _number(value)))
    if goal is not None:
        x = NAMES + goal * scale
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 26}" stroke="{COLOURS[1]}"/>')
    parts.append(_text(WIDTH - 8, height - 10, "end", unit))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _open(height: float) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]


def _text(x: float, y: float, anchor: str, text: str, colour: str = "#0f172a") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.3g}"
