"""Charts as inline SVG that take their colours from the page's style sheet, so they follow light, dark and print."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from isles_jax.scoring import agreement, statistics
from isles_jax.scoring.lesions import Detection

WIDTH = 420
LEFT = 46
RIGHT = 12
# The left edge where a label stands beside the vertical axis.
AXIS = 62
# Room for the labels beside the lines of a Bland-Altman chart.
MARGIN = 120
ROW = 30
# A line of so few points shows where they are.
FEW_POINTS = 12
# The share of fewer lesions is mostly chance.
FEW_LESIONS = 5
# Room below a chart for the tick labels and the axis label.
BOTTOM = 40
# Room above a chart for its title.
TOP = 26

Coordinate = Callable[[float], float]


def ticks(low: float, high: float) -> list[float]:
    """Two to six round numbers from `low` to `high`."""
    raw = (high - low) / 5
    size = 10.0 ** np.floor(np.log10(raw))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= raw * 0.999)
    first = np.ceil(low / step - 1e-9)
    return [float(np.round(step * n, 12)) + 0.0 for n in np.arange(first, np.floor(high / step + 1e-9) + 1)]


def strip(
    values: Mapping[str, Sequence[tuple[str, float]]],
    means: Mapping[str, tuple[float, statistics.Interval]],
    paper: Mapping[str, float | None],
    title: str,
) -> str:
    """A row of dots for each system, with the mean, its interval and the paper's number.

    Args:
      values: (case, value) pairs of each system, values from 0 to 1.
      means: the mean of each system, and its interval.
      paper: the paper's number for a system, or None.
      title: name of the quantity, at the axis and for screen readers.
    """
    smallest = min(min(value for _, value in pairs) for pairs in values.values())
    low = min(0.9, float(np.floor(10 * smallest)) / 10)
    left = 14 + 6.6 * max(map(len, values))
    top = 8
    height = top + ROW * len(values)
    x = _linear(low, 1.0, left, WIDTH - RIGHT)
    parts = [_grid_x(x, ticks(low, 1.0), top, height), _x_label(title, (left + WIDTH - RIGHT) / 2, height)]
    for index, (label, pairs) in enumerate(values.items()):
        y = top + ROW * (index + 0.5)
        parts.append(f'<text x="{left - 8:.1f}" y="{y + 4:.1f}" class="end">{escape(label)}</text>')
        for number, (case, value) in enumerate(pairs):
            # Shifted up and down, so that equal values do not hide one another.
            shifted = y - 4 + 2 * (number * 7 % 5 - 2)
            parts.append(_dot(x(value), shifted, f"{label}, {case}: {value:.3f}"))
        parts.append(_mean_mark(label, *means[label], x, y))
        published = paper.get(label)
        if published is not None:
            diamond = f"M{x(max(published, low)):.1f} {y + 2:.1f}l5 5-5 5-5-5z"
            parts.append(f'<path class="paper" d="{diamond}"><title>the paper: {published:.3f}</title></path>')
    return _svg("".join(parts), height + BOTTOM, title)


def _mean_mark(label: str, mean: float, interval: statistics.Interval, x: Coordinate, y: float) -> str:
    """A short upright line at the mean, and a level one over its interval if there is one."""
    text, bar = "", ""
    if interval:
        lower, upper = interval
        text = f", 95% interval {lower:.3f} to {upper:.3f}"
        bar = f'<line x1="{x(lower):.1f}" x2="{x(upper):.1f}" y1="{y + 7:.1f}" y2="{y + 7:.1f}"/>'
    return (
        f'<g class="mean"><title>{escape(label)}: mean {mean:.3f}{text}</title>{bar}'
        f'<line x1="{x(mean):.1f}" x2="{x(mean):.1f}" y1="{y + 2:.1f}" y2="{y + 12:.1f}"/></g>'
    )


def curves(title: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """Lines over steps, one for each fold; values that are None or not finite are left out.

    A line of at most `FEW_POINTS` has a dot for each, and pointing at it shows the value.

    Args:
      title: name of the quantity.
      series: {label: (steps, values)}.

    Returns:
      The chart; "" if there is no finite value.
    """
    lines = {}
    for label, (steps, values) in series.items():
        points = [(s, v) for s, v in zip(steps, values, strict=True) if v is not None and np.isfinite(v)]
        # About 200 points draw the same line as thousands.
        lines[label] = points[:: max(1, len(points) // 200)]
    finite = [point for points in lines.values() for point in points]
    if not finite:
        return ""
    height = 168
    x, x_ticks = _scale([step for step, _ in finite], LEFT, WIDTH - RIGHT)
    y, y_ticks = _scale([value for _, value in finite], height, TOP)
    parts = [_grid_x(x, x_ticks, TOP, height), _grid_y(y, y_ticks, LEFT, WIDTH - RIGHT)]
    for number, (label, points) in enumerate(lines.items()):
        if points:
            path = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
            parts.append(f'<path class="curve c{number % 6}" d="M{path}"><title>{escape(label)}</title></path>')
        for step, value in points if len(points) <= FEW_POINTS else ():
            text = f"{label}, step {step}: {value:.3g}"
            parts.append(f'<g class="c{number % 6}">{_dot(x(step), y(value), text)}</g>')
    parts.append(_title(title, LEFT) + _x_label("training step", (LEFT + WIDTH - RIGHT) / 2, height))
    return _svg("".join(parts), height + BOTTOM, f"{title} over training steps")


def reliability(title: str, series: Mapping[str, Sequence[tuple[float, float, int]]]) -> str:
    """How often a predicted probability is right, over the probability; the diagonal is a perfect calibration.

    Args:
      title: plain text above the chart.
      series: {label: [(mean probability, frequency, voxels) of each bin to draw]}, for colours c0, c1, ...
    """
    height = 258
    x = _linear(0.0, 1.0, AXIS, WIDTH - RIGHT)
    y = _linear(0.0, 1.0, height, TOP)
    places = ticks(0.0, 1.0)
    parts = [
        _grid_x(x, places, TOP, height) + _grid_y(y, places, AXIS, WIDTH - RIGHT),
        f'<line class="limit" x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(1):.1f}" y2="{y(1):.1f}"/>',
        _x_label("predicted probability", (AXIS + WIDTH - RIGHT) / 2, height),
        _y_label("frequency", height),
        _title(title, AXIS),
    ]
    for number, (label, bins) in enumerate(series.items()):
        path = "L".join(f"{x(probability):.1f} {y(frequency):.1f}" for probability, frequency, _ in bins)
        parts.append(f'<path class="curve c{number % 6}" d="M{path}"/>' if path else "")
        for probability, frequency, voxels in bins:
            text = f"{label}: {probability:.2f} predicted, {frequency:.2f} seen, {voxels} voxels"
            parts.append(_dot(x(probability), y(frequency), text))
    return _svg("".join(parts), height + BOTTOM, f"Reliability curve of {title}")


def detection(title: str, sizes: Sequence[Detection]) -> str:
    """The share of the references' lesions that are found, a bar with the counts for each size.

    A bar of fewer than `FEW_LESIONS` is hollow, because its height is mostly chance. The last line below the axis
    counts the false predicted lesions of each size.

    Args:
      title: plain text above the chart.
      sizes: from `lesions.by_size`.
    """
    height = 198
    y = _linear(0.0, 1.0, height, TOP + 16)
    width = (WIDTH - RIGHT - AXIS) / len(sizes)
    parts = [_grid_y(y, ticks(0.0, 1.0), AXIS, WIDTH - RIGHT), _title(title, AXIS), _y_label("share found", height)]
    for number, size in enumerate(sizes):
        middle = AXIS + width * (number + 0.5)
        parts.append(f'<text x="{middle:.1f}" y="{height + 15}" class="middle">{escape(size.title)}</text>')
        # In two lines, because a network may predict thousands of lesions of a size.
        false = (str(size.false), f"of {size.predicted}") if size.predicted else ("–",)
        for line, text in enumerate(false):
            parts.append(f'<text x="{middle:.1f}" y="{height + 48 + 14 * line}" class="middle">{text}</text>')
        if not size.reference:
            continue
        share = size.found / size.reference
        kind = "bar few" if size.reference < FEW_LESIONS else "bar"
        counts = f"{size.found} of {size.reference}"
        parts.append(
            f'<rect class="{kind}" x="{middle - 0.36 * width:.1f}" y="{y(share):.1f}" width="{0.72 * width:.1f}" '
            f'height="{y(0.0) - y(share):.1f}"><title>{escape(size.title)} ml: {counts} found</title></rect>'
            f'<text x="{middle:.1f}" y="{y(share) - 5:.1f}" class="middle">{counts}</text>'
        )
    centre = (AXIS + WIDTH - RIGHT) / 2
    parts.append(_x_label("volume of a lesion of the reference, ml", centre, height - 2))
    parts.append(_x_label("false ones among predicted lesions of this volume", centre, height + 45))
    return _svg("".join(parts), height + BOTTOM + 47, f"{title}: lesions of the reference that are found, by volume")


def bland_altman(class_name: str, points: Mapping[str, Sequence[tuple[str, float, float]]]) -> list[str]:
    """For each system the difference of two volumes over their mean, with the mean difference and limits of agreement.

    The charts have the same scales, so that systems can be compared by eye.

    Args:
      class_name: the class whose volumes are compared.
      points: (case, mean in ml, difference in ml) of each system.
    """
    lines = {label: _agreement([change for _, _, change in triples]) for label, triples in points.items()}
    means = [mean for triples in points.values() for _, mean, _ in triples]
    changes = [change for triples in points.values() for _, _, change in triples]
    height = 198
    x, x_ticks = _scale([0.0, *means], AXIS, WIDTH - MARGIN)
    y, y_ticks = _scale([0.0, *changes, *(value for one in lines.values() for value in one.values())], height, TOP)
    axes = (
        _grid_x(x, x_ticks, TOP, height)
        + _grid_y(y, y_ticks, AXIS, WIDTH - MARGIN)
        + _x_label("mean of predicted and reference volume, ml", (AXIS + WIDTH - MARGIN) / 2, height)
        + _y_label("predicted − reference, ml", height)
    )
    drawn = []
    for label, triples in points.items():
        content = axes
        for case, mean, change in triples:
            content += _dot(x(mean), y(change), f"{case}: {change:+.2f} ml at {mean:.2f} ml")
        content += _agreement_lines(lines[label], y) + _title(label, AXIS)
        drawn.append(_svg(content, height + BOTTOM, f"Bland-Altman chart of the volumes of {class_name}, {label}"))
    return drawn


def _agreement(changes: Sequence[float]) -> dict[str, float]:
    """The mean difference and, if there are cases enough, the 95% limits of agreement."""
    mean = {"mean": float(np.mean(changes))}
    limits = agreement.limits(changes)
    return mean if limits is None else mean | {"+1.96 sd": limits[1], "-1.96 sd": limits[0]}


def _agreement_lines(lines: Mapping[str, float], y: Coordinate) -> str:
    parts = []
    taken: list[float] = []
    for label, value in lines.items():
        # Labels of lines that nearly coincide are pushed apart.
        text_y = y(value) + 4
        while any(abs(text_y - other) < 12 for other in taken):
            text_y += 12 if label.startswith("-") else -12
        taken.append(text_y)
        kind = "limit middle" if label == "mean" else "limit"
        number = f"{value:+.1f}" if abs(value) >= 10 else f"{value:+.2f}"
        parts.append(
            f'<line class="{kind}" x1="{AXIS}" x2="{WIDTH - MARGIN}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
            f'<text x="{WIDTH - MARGIN + 4}" y="{text_y:.1f}">{label} {number}</text>'
        )
    return "".join(parts)


def _scale(values: Sequence[float], start: float, end: float) -> tuple[Coordinate, list[float]]:
    """A function from a value to a coordinate between `start` and `end`, and round values for ticks."""
    low, high = float(min(values)), float(max(values))
    if high - low <= 1e-9 * max(1.0, abs(high)):
        low -= 0.5 * max(abs(low), 1e-3)
        high += 0.5 * max(abs(high), 1e-3)
    margin = 0.04 * (high - low)
    high += margin
    # An axis that begins at 0 has no negative part.
    if low != 0:
        low -= margin
    return _linear(low, high, start, end), ticks(low, high)


def _linear(low: float, high: float, start: float, end: float) -> Coordinate:
    """The function that takes `low` to `start` and `high` to `end`."""

    def coordinate(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    return coordinate


def _dot(x: float, y: float, text: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(text)}</title></circle>'


def _grid_x(x: Coordinate, values: Sequence[float], top: float, height: float) -> str:
    return "".join(
        f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{top}" y2="{height}"/>'
        f'<text x="{x(value):.1f}" y="{height + 15}" class="middle">{_number(value)}</text>'
        for value in values
    )


def _grid_y(y: Coordinate, values: Sequence[float], start: float, end: float) -> str:
    return "".join(
        f'<line class="grid" x1="{start}" x2="{end}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        f'<text x="{start - 5}" y="{y(value) + 4:.1f}" class="end">{_number(value)}</text>'
        for value in values
    )


def _number(value: float) -> str:
    """A number at a tick, in at most six characters where it has two digits, so that it fits beside the axis."""
    text = f"{value:g}"
    if len(text) <= 6:
        return text
    return np.format_float_scientific(value, precision=2, trim="-", exp_digits=1).replace("e+", "e")


def _x_label(text: str, centre: float, height: float) -> str:
    return f'<text x="{centre:.1f}" y="{height + 33:g}" class="middle">{escape(text)}</text>'


def _y_label(text: str, height: float) -> str:
    turned = f"translate(11 {(TOP + height) / 2}) rotate(-90)"
    return f'<text transform="{turned}" class="middle">{text}</text>'


def _title(text: str, left: float) -> str:
    return f'<text x="{left}" y="14" class="title">{escape(text)}</text>'


def _svg(content: str, height: float, title: str) -> str:
    label = escape(title, quote=True)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{label}">{content}</svg>'
