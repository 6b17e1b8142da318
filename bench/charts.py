"""Line charts as SVG, drawn from the bench's own points. No dependency is worth twenty lines of geometry."""

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 40, 44


def line_chart(title: str, points: Sequence[tuple[float, float]], *, x: str, y: str) -> str:
    """One curve from zero, its horizontal axis logarithmic when its points span more than a factor of 20."""
    sizes, costs = [point[0] for point in points], [point[1] for point in points]
    logarithmic = max(sizes) > 20 * max(1.0, min(sizes))
    places = [math.log10(size + 1) if logarithmic else float(size) for size in sizes]
    low, high, top = min(places), max(places), _ceiling(max(costs))

    def across(place: float) -> float:
        return _LEFT + (place - low) / ((high - low) or 1) * (_WIDTH - _LEFT - _RIGHT)

    def up(cost: float) -> float:
        return _HEIGHT - _BOTTOM - cost / top * (_HEIGHT - _TOP - _BOTTOM)

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        "<style>text { font: 12px sans-serif; fill: #52606d }</style>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="22" style="font: bold 14px sans-serif">{escape(title)}</text>',
    ]
    for step in range(5):
        cost = top * step / 4
        drawn.append(f'<path d="M{_LEFT} {up(cost):.1f}H{_WIDTH - _RIGHT}" stroke="#e4e7eb"/>')
        drawn.append(f'<text x="{_LEFT - 8}" y="{up(cost) + 4:.1f}" text-anchor="end">{cost:g}</text>')
    path = " ".join(f"{across(place):.1f},{up(cost):.1f}" for place, cost in zip(places, costs, strict=True))
    drawn.append(f'<polyline points="{path}" fill="none" stroke="#2563eb" stroke-width="2"/>')
    for place, size, cost in zip(places, sizes, costs, strict=True):
        drawn.append(f'<circle cx="{across(place):.1f}" cy="{up(cost):.1f}" r="3.5" fill="#2563eb"/>')
        drawn.append(f'<text x="{across(place):.1f}" y="{up(cost) - 8:.1f}" text-anchor="middle">{cost:.3g}</text>')
        drawn.append(
            f'<text x="{across(place):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{size:,.0f}</text>'
        )
    drawn.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">{escape(x)}</text>')
    drawn.append(f'<text x="{_WIDTH - _RIGHT}" y="22" text-anchor="end">{escape(y)}</text>')
    return "\n".join([*drawn, "</svg>", ""])


def _ceiling(value: float) -> float:
    """A round number at or above `value`, with room for a label."""
    scale: float = 10 ** math.floor(math.log10(value or 1))
    return next(step * scale for step in (1.5, 2, 3, 4, 5, 6, 8, 10, 15) if step * scale >= value * 1.15)
