"""The infarcts of the phantom in the layout of ISLES-2022: what an embolus leaves when it breaks up.

docs/phantom.md gives the numbers and what they were compared with.
"""

from typing import NamedTuple

import numpy as np

from isles_jax.phantoms.head import Head
from isles_jax.phantoms.tissue import ellipsoid, random_field


class Territory(NamedTuple):
    """What an artery feeds: its middle to the right of the midline and its spread in mm, and how often it is hit."""

    middle: tuple[float, float, float]
    spread: tuple[float, float, float]
    share: float
    hind: bool


# The upper and the lower division of the middle cerebral artery, the anterior and the posterior artery, the perforating
# arteries, the cerebellum and the pons.
TERRITORIES = (
    Territory((42, 14, 22), (12, 18, 15), 0.30, False),
    Territory((44, -26, 8), (12, 17, 14), 0.20, False),
    Territory((9, 34, 28), (5, 20, 16), 0.08, False),
    Territory((18, -58, 6), (10, 12, 12), 0.14, False),
    Territory((20, 0, 8), (7, 12, 8), 0.14, False),
    Territory((26, -46, -36), (12, 10, 8), 0.10, True),
    Territory((4, -28, -28), (3, 4, 10), 0.04, True),
)
# The volumes of pieces in ml: the first one of each kind of patient, drawn evenly on a logarithmic scale, and how many
# others there are at most.
KINDS = {"territory": ((6.0, 100.0), 49), "shower": ((0.5, 5.0), 49), "single": ((0.3, 2.0), 0)}
# The other pieces: the median in ml, and the standard deviation of the logarithm. Four published cases have medians of
# 0.04 to 0.1 ml.
SCATTER_ML, SCATTER_LOG = 0.08, 1.0
LEAST_ML, LARGEST_SCATTER_ML = 0.01, 3.0
# They lie farther from the middle of the territory than the first piece, by this factor.
FARTHER = 1.5


class Infarct(NamedTuple):
    """A piece: its centre and its half-axes in the patient's coordinates, in mm, and whether the hind brain has it."""

    centre: np.ndarray
    radii: np.ndarray
    hind: bool


def draw(kind: str, head: Head, rng: np.random.Generator) -> list[Infarct]:
    """Draws the infarcts of a patient.

    Args:
      kind: a key of `KINDS`: "territory", a large infarct with scatter; "shower", many small ones; "single", one.
      head: on a coarse grid, so that the infarcts do not depend on the grid of the scan.
      rng: of the infarcts.
    """
    (low, high), most = KINDS[kind]
    others = int(rng.uniform(2, most)) if most else 0
    scatter = SCATTER_ML * np.exp(SCATTER_LOG * rng.normal(size=others))
    volumes = [np.exp(rng.uniform(np.log(low), np.log(high))), *np.clip(scatter, LEAST_ML, LARGEST_SCATTER_ML)]
    side = rng.choice([-1.0, 1.0])
    shares = [territory.share for territory in TERRITORIES]
    main, second = (TERRITORIES[k] for k in rng.choice(len(TERRITORIES), 2, replace=False, p=shares))
    # In a third of the showers the emboli come from the heart, and reach both sides.
    spread = kind == "shower" and rng.uniform() < 0.35
    found = []
    for number, volume in enumerate(volumes):
        away = spread and number > 0
        territory = second if away and rng.uniform() < 0.5 else main
        sign = side * (rng.choice([-1.0, 1.0]) if away else 1)
        farther = FARTHER if number > 0 else 1
        centre = _place(territory, sign, farther, head, rng)
        shape = np.exp(0.25 * rng.normal(size=3))
        radius = (3000 * volume / (4 * np.pi)) ** (1 / 3)
        found.append(Infarct(centre, radius * shape / np.prod(shape) ** (1 / 3), territory.hind))
    return found


def _place(territory: Territory, side: float, farther: float, head: Head, rng: np.random.Generator) -> np.ndarray:
    """A point of the brain's tissue in a territory [3], in mm."""
    spread = farther * np.array(territory.spread)
    near = ellipsoid(head.points, np.array(territory.middle) * (side, 1, 1), spread)
    csf, grey, _ = np.moveaxis(head.fractions, -1, 0)
    tissue = (1 - csf) ** 4 * ((head.depth > 2) & ((head.hind > 0) == territory.hind))
    # Emboli end in the small arteries of the cortex.
    weight = tissue * np.exp(-(near**2) / 2) * (0.3 + grey)
    share = np.cumsum(weight.ravel().astype(np.float64))
    chosen = int(np.searchsorted(share, rng.uniform() * share[-1]))
    point: np.ndarray = head.points.reshape(3, -1)[:, min(chosen, share.size - 1)]
    return point


def depth_mm(infarcts: list[Infarct], head: Head, rng: np.random.Generator) -> np.ndarray:
    """The depth below the surface of the nearest infarct, [X, Y, Z] in mm; -20 far from all.

    Args:
      infarcts: from `draw`.
      head: of the same patient, on the grid of the scan.
      rng: of the patient; equal random numbers give equal infarcts on any grid.
    """
    points = head.points
    rough = 0.22 * random_field(points, 10, 25, rng) + 0.15 * random_field(points, 30, 60, rng)
    depth = np.full(points.shape[1:], -20, np.float32)
    for infarct in infarcts:
        box = _box(points, infarct)
        inside = infarct.radii.mean() * (1 + rough[box] - ellipsoid(points[:, *box], infarct.centre, infarct.radii))
        centre = infarct.centre
        # An infarct stays on its side of the midline, except in the pons, and of the tentorium.
        if abs(centre[0]) > 6:
            inside = np.minimum(inside, np.sign(centre[0]) * points[0][box])
        inside = np.minimum(inside, head.hind[box] if infarct.hind else -head.hind[box])
        depth[box] = np.maximum(depth[box], inside)
    return depth


def _box(points: np.ndarray, infarct: Infarct) -> tuple[slice, ...]:
    """The voxels around an infarct, so that the others need not be looked at."""
    origin = points[:, 0, 0, 0]
    steps = np.stack([points[:, 1, 0, 0], points[:, 0, 1, 0], points[:, 0, 0, 1]], axis=1) - origin[:, None]
    middle = np.linalg.solve(steps, infarct.centre - origin)
    # Its roughness moves the surface outward by up to a radius.
    reach = (2 * infarct.radii.max() + 4) / np.linalg.norm(steps, axis=0)
    low = np.clip(np.floor(middle - reach), 0, points.shape[1:]).astype(int)
    high = np.clip(np.ceil(middle + reach) + 1, 0, points.shape[1:]).astype(int)
    return tuple(slice(*ends) for ends in zip(low, high, strict=True))
