"""How Tmax is shown: in seconds on one colour scale for all cases, with the contour of the tissue at risk."""

import numpy as np

from isles_jax.scoring import clinical

CHANNEL = "Tmax"
# The ends of the colour scale in seconds; the clinical threshold lies in its middle.
WINDOW_S = (0.0, 12.0)
CONTOUR_S = clinical.TMAX_SECONDS
# Red, green and blue at equal steps of the scale. Lightness rises evenly, so the scale also reads in black and white.
COLOURS = np.array(
    [(0, 0, 0), (45, 12, 95), (125, 22, 112), (203, 52, 72), (243, 130, 25), (253, 212, 80), (255, 255, 220)], np.uint8
)


def colours(seconds: np.ndarray) -> np.ndarray:
    """Colours of some values: [N] seconds -> [N, 3] uint8."""
    low, high = WINDOW_S
    steps = np.linspace(low, high, len(COLOURS))
    return np.stack([np.rint(np.interp(seconds, steps, part)) for part in COLOURS.T], axis=-1).astype(np.uint8)


def colour_bar() -> str:
    """The colour scale as inline SVG, with ticks in seconds."""
    low, high = WINDOW_S
    width = 240
    cells = 48
    seconds = low + (np.arange(cells) + 0.5) / cells * (high - low)
    # Each rectangle reaches to the end and the next one covers it, so that no seam shows.
    rectangles = "".join(
        f'<rect x="{12 + left:g}" y="2" width="{width - left:g}" height="10" fill="#{bytes(colour).hex()}"/>'
        for left, colour in zip(np.arange(cells) * width / cells, colours(seconds), strict=True)
    )
    labels = "".join(
        f'<text x="{12 + (tick - low) / (high - low) * width:g}" y="25" class="middle">{tick:g}</text>'
        for tick in np.arange(low, high + 1, 2)
    )
    return (
        f'<svg class="chart bar" viewBox="0 0 {width + 80} 30" role="img" aria-label="Colour scale of {CHANNEL}: '
        f'{low:g} to {high:g} seconds">{rectangles}{labels}<text x="{width + 26}" y="25">{CHANNEL}, s</text></svg>'
    )
