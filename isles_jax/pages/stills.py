"""Still pictures of slices: a scan as an SVG figure, with the outlines of what was segmented in it."""

from html import escape

import numpy as np

from isles_jax.pages import markup, pictures, tmax
from isles_jax.pages.pictures import Picture


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
    size = 0.08 * width * width_mm
    sides = ""
    if picture.sides:
        left, right = picture.sides[0], picture.sides[1]
        sides = (
            f'<g class="sides" font-size="{size:.3g}"><text x="{size / 3:.3g}" y="{size:.3g}">{left}</text>'
            f'<text class="end" x="{width * width_mm - size / 3:.5g}" y="{size:.3g}">{right}</text></g>'
        )
    return (
        f'<svg class="scan" viewBox="0 0 {width * width_mm:.3f} {height * height_mm:.3f}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><g transform="scale({width_mm:.6g} {height_mm:.6g})">'
        f'<image width="{width}" height="{height}" preserveAspectRatio="none" href="{image}"/>{lines}'
        f"</g>{sides}</svg>"
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
