import itertools

import numpy as np
import pytest
from medpy.metric import binary
from scipy import ndimage
from scipy.spatial.distance import cdist

from isles_jax import metrics

SPACING = (0.7, 1.3, 5.0)


def blob(rng, shape):
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0, 2))
    return smooth > np.quantile(smooth, rng.uniform(0.4, 0.98))


def box(shape, *sides):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def brute_surface(mask):
    """Voxels with a face neighbour that is outside the mask or the image, one by one."""
    inside = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}
    steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, s)) == 1]
    return [v for v in inside if any(tuple(np.add(v, s).tolist()) not in inside for s in steps)]


def brute_lesions(mask):
    """Lesions as sets of voxels, grown over the 26 neighbours."""
    left, lesions = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}, []
    while left:
        grown, edge = set(), {left.pop()}
        while edge:
            grown |= edge
            near = {(x + i, y + j, z + k) for x, y, z in edge for i, j, k in itertools.product((-1, 0, 1), repeat=3)}
            edge = near & left
            left -= edge
        lesions.append(grown)
    return lesions


def f1(true_positive, false_negative, false_positive):
    whole = 2 * true_positive + false_negative + false_positive
    return 2 * true_positive / whole if whole else 1.0


@pytest.mark.parametrize("seed", range(10))
def test_equals_brute_force_on_random_masks(seed):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        shape, spacing = rng.integers(2, 13, 3), rng.uniform(0.4, 5, 3)
        prediction, truth = blob(rng, shape), blob(rng, shape)
        found = metrics.score(prediction, truth, spacing)
        p, t, both = (set(map(tuple, np.argwhere(m).tolist())) for m in (prediction, truth, prediction & truth))
        surfaces = [np.array(brute_surface(mask)) * spacing for mask in (prediction, truth)]
        apart = cdist(*surfaces)
        pooled = np.concatenate([apart.min(axis=0), apart.min(axis=1)])
        expected = {
            "dice": 2 * len(both) / (len(p) + len(t)),
            "precision": len(both) / len(p),
            "recall": len(both) / len(t),
            "assd_mm": pooled.mean(),
            "hd_mm": pooled.max(),
            "hd95_mm": np.percentile(pooled, 95),
            "surface_dice": np.mean(pooled <= metrics.TOLERANCE_MM),
            "volume_true_ml": len(t) * spacing.prod() / 1000,
            "volume_pred_ml": len(p) * spacing.prod() / 1000,
            "volume_difference_ml": (len(p) - len(t)) * spacing.prod() / 1000,
        }
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-9), name


def test_equals_medpy():
    rng, compared = np.random.default_rng(7), 0
    while compared < 200:
        shape, spacing = rng.integers(2, 25, 3), rng.uniform(0.4, 5, 3)
        prediction, truth = blob(rng, shape), blob(rng, shape)
        if not (prediction.any() and truth.any()):
            continue
        found = metrics.score(prediction, truth, spacing)
        for name, of in {"dice": binary.dc, "precision": binary.precision, "recall": binary.recall}.items():
            assert found[name] == pytest.approx(of(prediction, truth), abs=1e-6), name
        for name, of in {"assd_mm": binary.assd, "hd_mm": binary.hd, "hd95_mm": binary.hd95}.items():
            assert found[name] == pytest.approx(of(prediction, truth, spacing), abs=1e-6), name
        compared += 1


@pytest.mark.parametrize("seed", range(3))
def test_lesion_f1_equals_flood_fill(seed):
    rng = np.random.default_rng(seed)
    for _ in range(15):
        truth = ndimage.gaussian_filter(rng.normal(size=(9, 9, 9)), 0.8) > rng.uniform(0.35, 0.6)
        prediction = np.roll(truth, rng.integers(0, 3), 0) & (rng.random(truth.shape) > 0.2) | (
            rng.random(truth.shape) > 0.99
        )
        found, true = brute_lesions(prediction), brute_lesions(truth)
        hit = sum(any(t & p for p in found) for t in true)
        scores = metrics.score(prediction, truth, SPACING)
        assert scores["lesion_f1"] == pytest.approx(
            f1(hit, len(true) - hit, sum(not any(t & p for t in true) for p in found))
        )
        iou = sorted(
            ((len(p & t) / len(p | t), i, j) for i, p in enumerate(found) for j, t in enumerate(true)), reverse=True
        )
        pairs = []
        for value, i, j in iou:
            if value >= 0.2 and all(i != a and j != b for a, b in pairs):
                pairs.append((i, j))
        assert scores["lesion_f1_iou"] == pytest.approx(f1(len(pairs), len(true) - len(pairs), len(found) - len(pairs)))


def test_shifted_cube_has_the_distances_of_its_shift():
    truth, prediction = box((20, 12, 9), (4, 8), (4, 8), (2, 6)), box((20, 12, 9), (7, 11), (4, 8), (2, 6))
    scores = metrics.score(prediction, truth, SPACING)
    assert scores["dice"] == pytest.approx(0.25)
    assert scores["hd_mm"] == pytest.approx(3 * SPACING[0])
    assert scores["volume_true_ml"] == pytest.approx(64 * 0.7 * 1.3 * 5.0 / 1000)
    assert scores["volume_difference_ml"] == 0


def test_perfect_prediction():
    truth = box((9, 9, 9), (2, 5), (0, 9), (3, 4))
    scores = metrics.score(truth, truth, SPACING)
    for name in ("dice", "precision", "recall", "lesion_f1", "lesion_f1_iou", "surface_dice"):
        assert scores[name] == 1
    for name in ("assd_mm", "hd_mm", "hd95_mm", "volume_difference_ml"):
        assert scores[name] == 0


def test_a_count_is_a_number_like_the_others(monkeypatch):
    """A table writes fractions with six decimals, and takes no other numbers back."""
    count = metrics.Measure("count", "count", lambda masks: int(masks.truth.sum()), "voxels of the reference", "voxels")
    monkeypatch.setattr(metrics, "MEASURES", (*metrics.MEASURES, count))
    truth = box((4, 5, 6), (1, 2), (1, 3), (1, 2))
    scores = metrics.score(truth, truth, SPACING)
    assert scores["count"] == 2
    assert {type(value) for value in scores.values()} == {float}


def test_both_empty():
    empty = np.zeros((4, 5, 6), bool)
    scores = metrics.score(empty, empty, SPACING)
    ones = ("dice", "precision", "recall", "lesion_f1", "lesion_f1_iou", "surface_dice")
    assert scores == {name: 1.0 if name in ones else 0.0 for name in scores}


@pytest.mark.parametrize("which", ["prediction", "truth"])
def test_one_empty_costs_the_diagonal(which):
    empty, some = np.zeros((4, 5, 6), bool), box((4, 5, 6), (1, 2), (1, 3), (1, 2))
    scores = metrics.score(*((empty, some) if which == "prediction" else (some, empty)), SPACING)
    diagonal = np.sqrt((4 * 0.7) ** 2 + (5 * 1.3) ** 2 + (6 * 5.0) ** 2)
    for name in ("assd_mm", "hd_mm", "hd95_mm"):
        assert scores[name] == pytest.approx(diagonal)
    for name in ("dice", "precision", "recall", "lesion_f1", "lesion_f1_iou", "surface_dice"):
        assert scores[name] == 0


def test_exchange_flip_and_padding():
    rng = np.random.default_rng(3)
    prediction, truth = blob(rng, (11, 9, 7)), blob(rng, (11, 9, 7))
    scores = metrics.score(prediction, truth, SPACING)
    exchanged = metrics.score(truth, prediction, SPACING)
    assert exchanged["precision"] == scores["recall"]
    assert exchanged["volume_difference_ml"] == pytest.approx(-scores["volume_difference_ml"])
    for name in ("dice", "assd_mm", "hd_mm", "hd95_mm", "surface_dice", "lesion_f1_iou"):
        assert exchanged[name] == pytest.approx(scores[name])
    assert metrics.score(prediction[::-1, :, ::-1], truth[::-1, :, ::-1], SPACING) == pytest.approx(scores)
    # A mask at the image's border is a mask with background beside it.
    assert metrics.score(np.pad(prediction, 4), np.pad(truth, 4), SPACING) == pytest.approx(scores)


def test_a_larger_voxel_scales_distances_and_volumes():
    rng = np.random.default_rng(4)
    prediction, truth = blob(rng, (8, 9, 7)), blob(rng, (8, 9, 7))
    once = metrics.score(prediction, truth, SPACING)
    twice = metrics.score(prediction, truth, np.multiply(SPACING, 2), tolerance_mm=2 * metrics.TOLERANCE_MM)
    for name, value in once.items():
        factor = 2 if name.endswith("mm") else 8 if name.endswith("ml") else 1
        assert twice[name] == pytest.approx(factor * value), name


def test_tolerance_forgives_the_rounding_of_a_header():
    truth, prediction = box((9, 9, 9), (2, 4), (2, 4), (2, 4)), box((9, 9, 9), (3, 5), (2, 4), (2, 4))
    side = float(np.float32(2.0000002))
    assert side > 2
    assert metrics.score(prediction, truth, (side, 2, 2))["surface_dice"] == 1
    assert metrics.score(prediction, truth, (2.1, 2, 2))["surface_dice"] < 1


def test_lesions_touch_over_corners_and_are_paired_once():
    corner = np.zeros((6, 6, 6), bool)
    corner[1, 1, 1] = corner[2, 2, 2] = True
    assert metrics.score(corner, box((6, 6, 6), (1, 2), (1, 2), (1, 2)), SPACING)["lesion_f1"] == 1
    truth = box((20, 4, 4), (1, 5), (1, 3), (1, 3)) | box((20, 4, 4), (6, 10), (1, 3), (1, 3))
    bridge = box((20, 4, 4), (1, 10), (1, 3), (1, 3))
    scores = metrics.score(bridge, truth, SPACING)
    assert scores["lesion_f1"] == 1
    # One found lesion can be the partner of one true lesion only: 1 hit, 1 missed.
    assert scores["lesion_f1_iou"] == pytest.approx(2 / 3)
    small = metrics.score(box((20, 4, 4), (1, 2), (1, 2), (1, 2)), box((20, 4, 4), (1, 7), (1, 2), (1, 2)), SPACING)
    assert (small["lesion_f1"], small["lesion_f1_iou"]) == (1, 0)


@pytest.mark.parametrize(
    ("prediction", "truth", "spacing"),
    [
        (np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 2), bool), SPACING),
        (np.zeros((2, 2, 3), bool), np.zeros((2, 2, 2), bool), SPACING),
        (np.zeros((2, 2), bool), np.zeros((2, 2), bool), SPACING),
        (np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool), (1, 1)),
        (np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool), (1, 0, 1)),
    ],
)
def test_wrong_arguments(prediction, truth, spacing):
    with pytest.raises(ValueError, match="expected"):
        metrics.score(prediction, truth, spacing)
