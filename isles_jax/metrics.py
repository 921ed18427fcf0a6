"""Scores of a predicted mask against its reference. This module needs NumPy and SciPy, nothing else of this package.

The surface of a mask is the mask minus its erosion with the 6-neighbour cross; everything outside the image counts as
background. Every surface voxel has a distance to the nearest surface voxel of the other mask, in mm between voxel
centres. The distances of both directions are pooled; ASSD, the Hausdorff distance and HD95 are their mean, maximum and
95th percentile, as in medpy.

Scores of empty masks are defined, so that no case drops out of a mean. If both masks are empty, Dice, precision,
recall, surface Dice and lesion F1 are 1, and distances are 0 mm. If one is empty, these scores are 0, and distances are
the image's diagonal, measured from outer voxel edge to outer voxel edge.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

__all__ = [
    "MEASURES",
    "PREDICTED",
    "REFERENCE",
    "Lesion",
    "Masks",
    "Measure",
    "each_lesion",
    "lesion_f1_any",
    "lesion_f1_iou",
    "lesions",
    "overlap",
    "score",
    "surface_distances",
]

# The normalised surface Dice counts distances up to this as agreement. It is the side of a voxel in SPES.
TOLERANCE_MM = 2.0
# In the stricter lesion F1, a predicted lesion is a hit if its intersection over union is at least this.
LESION_IOU = 0.2
# The kinds of lesions.
REFERENCE, PREDICTED = "reference", "predicted"
# Headers store the spacing in float32, whose rounding must not push a distance of one voxel above the tolerance.
_ROUNDING_MM = 1e-4


@dataclass(frozen=True)
class Masks:
    """A predicted mask beside its reference.

    Attributes:
      prediction: bool [X, Y, Z]; its outermost layer is False.
      truth: the same of the reference.
      spacing_mm: the voxel's sides, float64 [3].
      voxel_ml: the volume of a voxel.
      tolerance_mm: distances up to this agree.
      diagonal_mm: the image's diagonal, which is the distance if one of the masks is empty.
    """

    prediction: np.ndarray
    truth: np.ndarray
    spacing_mm: np.ndarray
    voxel_ml: float
    tolerance_mm: float
    diagonal_mm: float

    @functools.cached_property
    def shares(self) -> dict[str, float]:
        """See `overlap`."""
        return overlap(self.prediction, self.truth)

    @functools.cached_property
    def distances(self) -> np.ndarray:
        """See `surface_distances`."""
        return surface_distances(self.prediction, self.truth, self.spacing_mm, empty=self.diagonal_mm)

    @functools.cached_property
    def lesions(self) -> np.ndarray:
        """See `_lesion_overlaps`."""
        return _lesion_overlaps(self.prediction, self.truth)

    @functools.cached_property
    def volumes_ml(self) -> tuple[float, float]:
        """The volumes of the prediction and of the reference."""
        return int(self.prediction.sum()) * self.voxel_ml, int(self.truth.sum()) * self.voxel_ml


class Measure(NamedTuple):
    """One score of a mask.

    Attributes:
      name: its key in `score`, and its column in tables of scores.
      title: what people call it.
      value: computes it; a finite number, also for empty masks.
      meaning: what it is, in words for a reader of the tables.
      unit: of the value; "" for a share. A count has one, too, such as "lesions".
      better: "larger", "smaller" or "nearer to 0"; "" if none is.
      in_means: whether the tables of means show it.
      in_cases: whether the tables of single cases show it.
    """

    name: str
    title: str
    value: Callable[[Masks], float]
    meaning: str
    unit: str = ""
    better: str = "larger"
    in_means: bool = True
    in_cases: bool = False

    @property
    def heading(self) -> str:
        """The title with the unit."""
        return f"{self.title} {self.unit}".strip()

    @property
    def explanation(self) -> str:
        """The meaning, with the unit and with the values that are better."""
        unit = f"in {self.unit}" if self.unit else "from 0 to 1"
        return f"{self.meaning}, {unit}{self.better and f'; {self.better} is better'}"


def _within(masks: Masks) -> float:
    return float((masks.distances <= masks.tolerance_mm + _ROUNDING_MM).mean())


# The measures, in the order of their columns: a new one comes last. P is the number of predicted voxels, T of true
# voxels, B of both.
MEASURES = (
    # 2 B / (P + T); B / P; B / T.
    Measure(
        "dice",
        "Dice",
        lambda masks: masks.shares["dice"],
        "twice the volume that prediction and reference share, over the sum of their volumes",
        in_cases=True,
    ),
    Measure(
        "precision",
        "precision",
        lambda masks: masks.shares["precision"],
        "the share of the prediction that lies in the reference",
    ),
    Measure(
        "recall",
        "recall",
        lambda masks: masks.shares["recall"],
        "the share of the reference that is predicted",
    ),
    # Mean, maximum and 95th percentile of the pooled surface distances.
    Measure(
        "assd_mm",
        "ASSD",
        lambda masks: float(masks.distances.mean()),
        "the mean distance from the surface of the one mask to that of the other",
        "mm",
        "smaller",
    ),
    Measure(
        "hd_mm",
        "HD",
        lambda masks: float(masks.distances.max()),
        "the largest distance from the surface of the one mask to that of the other",
        "mm",
        "smaller",
        in_means=False,
    ),
    Measure(
        "hd95_mm",
        "HD95",
        lambda masks: float(np.percentile(masks.distances, 95)),
        "95% of the distances from the surface of the one mask to that of the other are below this",
        "mm",
        "smaller",
        in_cases=True,
    ),
    Measure(
        "volume_true_ml",
        "reference",
        lambda masks: masks.volumes_ml[1],
        "the volume of the reference",
        "ml",
        "",
        in_means=False,
        in_cases=True,
    ),
    Measure(
        "volume_pred_ml",
        "predicted",
        lambda masks: masks.volumes_ml[0],
        "the predicted volume",
        "ml",
        "",
        in_means=False,
        in_cases=True,
    ),
    Measure(
        "lesion_f1",
        "lesion F1",
        lambda masks: lesion_f1_any(masks.lesions),
        "F1 of whole lesions; one is found if prediction and reference share any of its voxels",
        in_cases=True,
    ),
    Measure(
        "lesion_f1_iou",
        "lesion F1, IoU",
        lambda masks: lesion_f1_iou(masks.lesions),
        f"F1 of whole lesions; one is found if its intersection over union with a predicted one is {LESION_IOU}",
        in_means=False,
    ),
    Measure(
        "surface_dice",
        "surface Dice",
        _within,
        f"the share of both surfaces that is at most {TOLERANCE_MM:g} mm away from the other",
    ),
    Measure(
        "volume_difference_ml",
        "volume diff.",
        lambda masks: masks.volumes_ml[0] - masks.volumes_ml[1],
        "the predicted volume minus that of the reference",
        "ml",
        "nearer to 0",
    ),
)


def score(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    tolerance_mm: float = TOLERANCE_MM,
    voxel_ml: float | None = None,
) -> dict[str, float]:
    """All scores of one mask: those of `MEASURES`, by name.

    Args:
      prediction: bool [X, Y, Z].
      truth: bool [X, Y, Z].
      spacing_mm: the voxel's sides.
      tolerance_mm: for the normalised surface Dice.
      voxel_ml: the volume of a voxel in ml; None: the product of its sides. Those differ if the axes are sheared.

    Raises:
      ValueError: shapes differ or are not three-dimensional, a type is not bool, a side is not positive.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if prediction.dtype != bool or truth.dtype != bool:
        raise ValueError(f"masks of type {prediction.dtype} and {truth.dtype}, expected bool")
    if prediction.shape != truth.shape or prediction.ndim != 3:
        raise ValueError(f"masks of shape {prediction.shape} and {truth.shape}, expected one [X, Y, Z]")
    if spacing.shape != (3,) or not (spacing > 0).all():
        raise ValueError(f"spacing {spacing_mm}, expected three positive numbers")
    box = _union_box(prediction, truth)
    masks = Masks(
        np.pad(prediction[box], 1),
        np.pad(truth[box], 1),
        spacing,
        float(spacing.prod()) / 1000.0 if voxel_ml is None else voxel_ml,
        tolerance_mm,
        float(np.linalg.norm(spacing * prediction.shape)),
    )
    return {measure.name: float(measure.value(masks)) for measure in MEASURES}


def overlap(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Dice, precision and recall of two bool masks of the same shape; empty masks score as the module says above."""
    predicted, true = int(prediction.sum()), int(truth.sum())
    if not predicted and not true:
        return {"dice": 1.0, "precision": 1.0, "recall": 1.0}
    both = int((prediction & truth).sum())
    return {
        "dice": 2 * both / (predicted + true),
        "precision": both / predicted if predicted else 0.0,
        "recall": both / true if true else 0.0,
    }


def surface_distances(prediction: np.ndarray, truth: np.ndarray, spacing_mm: np.ndarray, *, empty: float) -> np.ndarray:
    """The distance in mm of each surface voxel to the other mask's surface, both directions in one float64 vector.

    Two empty masks give [0.0], one empty mask gives [empty]. The outermost layer of both masks must be False.
    """
    if not prediction.any() or not truth.any():
        return np.array([empty if prediction.any() or truth.any() else 0.0])
    first, second = (_surface(mask) for mask in (prediction, truth))
    # Trees of surface voxels take a quarter of the time of two distance maps, and are no slower for distant lesions.
    forward, backward = (
        KDTree(np.argwhere(target) * spacing_mm).query(np.argwhere(source & ~target) * spacing_mm)[0]
        for source, target in ((first, second), (second, first))
    )
    return np.concatenate([np.zeros(2 * int((first & second).sum())), forward, backward])


def _surface(mask: np.ndarray) -> np.ndarray:
    """The mask minus its erosion with the 6-neighbour cross; the mask's outermost layer is False."""
    inside = mask.copy()
    for axis in range(3):
        inside &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
    surface: np.ndarray = mask & ~inside
    return surface


def _union_box(prediction: np.ndarray, truth: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds both masks; an empty box if both are empty."""
    boxes = ndimage.find_objects((prediction | truth).astype(np.uint8))
    return boxes[0] if boxes else (slice(0, 0),) * 3


def lesions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The lesions of a bool [X, Y, Z] mask, which are its 26-connected components.

    Returns:
      The number of each voxel's lesion, int [X, Y, Z], 0 outside the mask; and how many lesions there are.
    """
    return ndimage.label(mask, np.ones((3, 3, 3), bool))


class Lesion(NamedTuple):
    """One lesion of a mask, beside the other mask.

    Attributes:
      lesion: its number among those of its kind; 1 is the largest.
      kind: `REFERENCE` or `PREDICTED`.
      ml: its volume.
      found: whether the other mask has any of its voxels. A reference's lesion that is not found is missed, and a
        predicted one is false.
      overlap: the share of its voxels that the other mask has. Unlike the Dice of a pair, it needs no pairing where
        lesions merge or fall apart.
    """

    lesion: int
    kind: str
    ml: float
    found: bool
    overlap: float


def each_lesion(prediction: np.ndarray, truth: np.ndarray, voxel_ml: float) -> list[Lesion]:
    """The lesions of two masks, as `lesion_f1_any` counts them.

    Args:
      prediction: bool [X, Y, Z].
      truth: bool [X, Y, Z].
      voxel_ml: the volume of a voxel in ml.

    Returns:
      Those of the reference, then the predicted ones, each from the largest to the smallest.
    """
    box = _union_box(prediction, truth)
    overlaps = _lesion_overlaps(np.pad(prediction[box], 1), np.pad(truth[box], 1))
    found = []
    for kind, shared in ((REFERENCE, overlaps.T), (PREDICTED, overlaps)):
        voxels, common = shared[1:].sum(axis=1), shared[1:, 1:].sum(axis=1)
        for number, index in enumerate(np.argsort(-voxels, kind="stable").tolist(), 1):
            size, hit = int(voxels[index]), int(common[index])
            found.append(Lesion(number, kind, size * voxel_ml, hit > 0, hit / size))
    return found


def _lesion_overlaps(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Voxels that each predicted lesion (row) shares with each true lesion (column): int [1 + predicted, 1 + true].

    Row 0 and column 0 count the voxels outside the predicted and the true lesions.
    """
    predicted, predicted_count = lesions(prediction)
    true, true_count = lesions(truth)
    union = prediction | truth
    shape = predicted_count + 1, true_count + 1
    pairs = predicted[union] * shape[1] + true[union]
    return np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)


def lesion_f1_any(overlaps: np.ndarray) -> float:
    """F1 over lesions. Any common voxel makes a true lesion a hit; a predicted lesion without one is false."""
    touching = overlaps[1:, 1:] > 0
    hits = int(touching.any(axis=0).sum())
    return _f1(hits, missed=touching.shape[1] - hits, false=int((~touching.any(axis=1)).sum()))


def lesion_f1_iou(overlaps: np.ndarray, *, threshold: float = LESION_IOU) -> float:
    """F1 over lesions. Predicted and true lesions are paired one to one, largest intersection over union first."""
    union = overlaps.sum(axis=1, keepdims=True)[1:] + overlaps.sum(axis=0, keepdims=True)[:, 1:] - overlaps[1:, 1:]
    iou = overlaps[1:, 1:] / union
    rows, columns = np.nonzero(iou >= threshold)
    order = np.argsort(-iou[rows, columns], kind="stable")
    used_rows, used_columns = set(), set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
    hits = len(used_rows)
    return _f1(hits, missed=iou.shape[1] - hits, false=iou.shape[0] - hits)


def _f1(hits: int, *, missed: int, false: int) -> float:
    """2 hits / (2 hits + missed + false); 1 if there are neither true nor predicted lesions."""
    return 2 * hits / (2 * hits + missed + false) if hits or missed or false else 1.0
