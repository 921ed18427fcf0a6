"""Still pictures of slices: a scan as an SVG figure, with the outlines of what was segmented in it."""

from html import escape

import numpy as np

from isles_jax.pages import markup, pictures, tmax
from isles_jax.pages.pictures import Picture

# The height of the text in a picture, as a share of the picture's width.
TEXT = 0.08
# The lengths of a scale bar.
BARS_MM = (100, 50, 20, 10, 5, 2, 1)


def background(picture: Picture, number: int, position: int, name: str) -> tuple[str, str]:
    """A slice as a data address, and the lines in it, by the places of channel and slice in the picture.

    Tmax is in colour and has the contour of the tissue at risk. Any other channel is gray and has no lines.
    """
    gray = picture.gray[number][position]
    if name != tmax.CHANNEL:
        return pictures.data_uri(gray), ""
    raised = (gray > 0) & (picture.values(number)[position] > tmax.CONTOUR_S)
    return pictures.data_uri(gray, pictures.tmax_palette(picture, number)), line(raised, "risk")


def still(picture: Picture, image: str, lines: str, title: str, note: str = "") -> str:
    """One slice as a figure.

    Args:
      picture: the case.
      image: the slice as a data address.
      lines: from `outlines` and `line`.
      title: plain text below the figure, and its name for screen readers.
      note: plain text below the title.
    """
    below = f"{escape(title)}<br>{escape(note)}" if note else escape(title)
    return f"<figure>{scan(picture, image, lines, title)}<figcaption>{below}</figcaption></figure>"


def scan(picture: Picture, image: str, lines: str, title: str) -> str:
    """The picture in `still`, without the text below it."""
    _, _, height, width = picture.gray.shape
    height_mm, width_mm = picture.pixel_mm
    sides = width * width_mm, height * height_mm
    marks = _directions(picture.sides, *sides) + _bar(*sides)
    return (
        f'<svg class="scan" viewBox="0 0 {sides[0]:.3f} {sides[1]:.3f}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><g transform="scale({width_mm:.6g} {height_mm:.6g})">'
        f'<image width="{width}" height="{height}" preserveAspectRatio="none" href="{image}"/>{lines}'
        f'</g><g class="marks" font-size="{TEXT * sides[0]:.3g}">{marks}</g></svg>'
    )


def _directions(names: str, width_mm: float, height_mm: float) -> str:
    """The patient's sides at the edges of a picture, from "RLAP"; nothing where they are unknown."""
    if not names:
        return ""
    size = TEXT * width_mm
    margin, middle = size / 3, width_mm / 2
    places = (
        (margin, size, "start"),
        (width_mm - margin, size, "end"),
        (middle, size, "middle"),
        (middle, height_mm - margin, "middle"),
    )
    return "".join(
        f'<text class="{css_class}" x="{x:.5g}" y="{y:.5g}">{name}</text>'
        for name, (x, y, css_class) in zip(names, places, strict=True)
    )


def _bar(width_mm: float, height_mm: float) -> str:
    """A bar of a round length in mm, at most a quarter of the width, with its length above it; "" if none fits."""
    length = next((one for one in BARS_MM if one <= width_mm / 4), None)
    if length is None:
        return ""
    margin, thick = TEXT * width_mm / 3, TEXT * width_mm / 5
    top = height_mm - margin - thick
    return (
        f'<rect class="length" x="{margin:.5g}" y="{top:.5g}" width="{length}" height="{thick:.3g}"/>'
        f'<text x="{margin:.5g}" y="{top - thick:.5g}">{length} mm</text>'
    )


def outlines(labels: np.ndarray, css_class: str = "") -> str:
    """The outlines of the classes of a slice, uint8 [H, W]; `css_class` gives their style."""
    return "".join(
        line(labels == value, f"{markup.class_colour(int(value))} {css_class}".strip())
        for value in np.unique(labels[labels > 0])
    )


def line(mask: np.ndarray, css_class: str) -> str:
    """The outline of a mask. A dark halo makes it visible on bright tissue; a thin line has none."""
    path = pictures.outline(mask)
    if not path:
        return ""
    halo = "" if "thin" in css_class.split() else f'<path class="halo" d="{path}"/>'
    return f'{halo}<path class="{css_class}" d="{path}"/>'
