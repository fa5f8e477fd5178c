"""Lines over time as an SVG."""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, LEGEND = 960, 420, 60, 30, 230
COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#edae49", "#7b4fa3", "#00798c", "#8d6a4f", "#444444", "#c06c84", "#66a182")


def line_chart(title: str, unit: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """`lines`: (seconds, value) of each, by name. Values begin at 0; a gap of a line is a straight one."""
    points = [point for line in lines.values() for point in line]
    most_x, most_y = (max([point[axis] for point in points], default=0) or 1.0 for axis in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / most_x * (WIDTH - LEFT - LEGEND), HEIGHT - BOTTOM - y / most_y * (HEIGHT - BOTTOM - 40)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        (x, floor), (_, y) = place(share * most_x, 0), place(0, share * most_y)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - LEGEND}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share * most_y:.0f}</text>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 18:.1f}" text-anchor="middle">{share * most_x:.0f} s</text>')
    parts.append(f'<text x="{LEFT - 6}" y="34" text-anchor="end">{escape(unit)}</text>')
    for number, (name, line) in enumerate(lines.items()):
        colour, y = COLOURS[number % len(COLOURS)], 50 + 18 * number
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<rect x="{WIDTH - LEGEND + 12}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - LEGEND + 28}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>\n"])
