"""Line charts with two logarithmic axes, as SVG: no more than ``report`` needs."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final
from xml.sax.saxutils import escape

WIDTH: Final = 560
HEIGHT: Final = 430
LEFT: Final = 64
RIGHT: Final = 120
TOP: Final = 44
BOTTOM: Final = 52
LABEL_HEIGHT: Final = 13
"""Labels at the ends of lines are kept so far apart, in pixels."""


@dataclass(frozen=True, slots=True)
class Line:
    """Points in ascending order, drawn from one to the next, with a label at its last."""

    points: Sequence[tuple[float, float]]
    label: str
    colour: str
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart. Ticks are values with their words; an axis reaches from its first tick to its last."""

    title: str
    x_title: str
    y_title: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[Line]
    notes: Sequence[tuple[float, float, str]] = field(default_factory=tuple)
    """Words at a place, by its values."""


def drawing(panels: Sequence[Panel]) -> str:
    """Draw panels side by side."""
    width = WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" viewBox="0 0 {width} {HEIGHT}">',
        '<g font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for index, panel in enumerate(panels):
        parts += [f'<g transform="translate({WIDTH * index} 0)">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def _panel(panel: Panel) -> Iterable[str]:
    across, down = _scale(panel.x_ticks, LEFT, WIDTH - RIGHT), _scale(panel.y_ticks, HEIGHT - BOTTOM, TOP)
    yield _text(LEFT, TOP - 22, panel.title, weight="bold")
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, panel.x_title, anchor="middle")
    yield _text(LEFT, TOP - 6, panel.y_title, colour="#555")
    for value, words in panel.x_ticks:
        x = across(value)
        yield f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>'
        yield _text(x, HEIGHT - BOTTOM + 17, words, anchor="middle")
    for value, words in panel.y_ticks:
        y = down(value)
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
        yield _text(LEFT - 7, y + 4, words, anchor="end")
    for line in panel.lines:
        places = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line.points)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        yield f'<polyline points="{places}" fill="none" stroke="{line.colour}" stroke-width="1.8"{dash}/>'
    ordered = sorted(panel.lines, key=lambda line: down(line.points[-1][1]))
    heights = _apart([down(line.points[-1][1]) for line in ordered])
    for line, y in zip(ordered, heights, strict=True):
        yield _text(across(line.points[-1][0]) + 6, y + 4, line.label, colour=line.colour)
    for x_value, y_value, words in panel.notes:
        yield _text(across(x_value), down(y_value), words, anchor="middle", colour="#555", style="italic")


def _scale(ticks: Sequence[tuple[float, str]], first: float, last: float) -> Callable[[float], float]:
    """Give what turns values into places on an axis."""
    low, high = math.log(ticks[0][0]), math.log(ticks[-1][0])
    return lambda value: first + (math.log(value) - low) / (high - low) * (last - first)


def _apart(heights: Sequence[float]) -> list[float]:
    """Push what is in ascending order apart, and no further down than the chart reaches."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + LABEL_HEIGHT) if placed else height)
    least = float(HEIGHT - BOTTOM)
    for index in reversed(range(len(placed))):
        placed[index] = least = min(placed[index], least)
        least -= LABEL_HEIGHT
    return placed


def _text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    colour: str = "#222",
    weight: str = "normal",
    style: str = "normal",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-weight="{weight}" '
        f'font-style="{style}">{escape(words)}</text>'
    )
