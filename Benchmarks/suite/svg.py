"""Plots without a library: bars with a mark at the bar, and panels of lines over a logarithmic
axis. One file per plot."""
import math
from html import escape

INK, OURS, MARK, GRID = "#222", "#2b6cb0", "#c53030", "#ddd"


def save(path, content):
    with open(path, "w", encoding="utf-8") as out:
        out.write(content)


def page(width, height, parts):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">\n'
            f'<rect width="{width}" height="{height}" fill="white"/>\n' + "\n".join(parts)
            + "\n</svg>\n")


def label(x, y, text, anchor="start", weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{escape(str(text))}</text>')


def line(x1, y1, x2, y2, color, width=1.0):
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" '
            f'stroke-width="{width}"/>')


def short(value):
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{unit}" if value % limit == 0 else f"{value / limit:.2f}{unit}"
    return f"{value:g}" if value == int(value) else f"{value:.2f}"


def bars(title, entries):
    """entries: (name, ratio, bar or None)."""
    left, width, step = 460, 900, 24
    most = max(max(ratio, bar or 0) for _, ratio, bar in entries) * 1.1
    scale = (width - left - 80) / most
    parts = [label(12, 22, title, weight="bold")]
    for index, (name, ratio, bar) in enumerate(entries):
        y = 40 + index * step
        parts.append(label(left - 8, y + 13, name, "end"))
        parts.append(f'<rect x="{left}" y="{y}" width="{ratio * scale:.1f}" height="16" '
                     f'fill="{OURS}"/>')
        parts.append(label(left + ratio * scale + 6, y + 13, f"{ratio:.2f}"))
        if bar is not None:
            x = left + bar * scale
            parts.append(line(x, y - 3, x, y + 19, MARK, 2))
    return page(width, 50 + len(entries) * step, parts)


def lines(title, axis, panels):
    """panels: (name, [(x, y)]); x on a logarithmic axis where it spans more than a decade."""
    left, width, height, gap = 80, 640, 150, 56
    parts = [label(12, 22, title, weight="bold")]
    for number, (name, points) in enumerate(panels):
        top = 50 + number * (height + gap)
        xs, ys = [x for x, _ in points], [y for _, y in points]
        wide = max(xs) / max(min(xs), 1) > 10

        def place(x):
            low, high = (math.log(min(xs)), math.log(max(xs))) if wide else (min(xs), max(xs))
            at = (math.log(x) if wide else x) - low
            return left + at / max(high - low, 1e-9) * (width - left - 40)

        most = max(max(ys), 1e-9) * 1.1
        parts.append(label(left, top - 8, name))
        for part in range(5):
            y = top + height - part / 4 * height
            parts.append(line(left, y, width - 40, y, GRID))
            parts.append(label(left - 6, y + 4, short(most * part / 4), "end"))
        path = " ".join(f"{place(x):.1f},{top + height - y / most * height:.1f}"
                        for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{OURS}" stroke-width="2"/>')
        for x, y in points:
            at = top + height - y / most * height
            parts.append(f'<circle cx="{place(x):.1f}" cy="{at:.1f}" r="3" fill="{OURS}"/>')
            parts.append(label(place(x), top + height + 16, short(x), "middle"))
    bottom = 50 + len(panels) * (height + gap)
    parts.append(label(width / 2, bottom - 8, axis, "middle"))
    return page(width, bottom + 8, parts)
