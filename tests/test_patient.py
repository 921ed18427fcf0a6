"""The phantom's patients against what the documentation says of them."""

import numpy as np
import pytest

from isles_jax.phantoms import scans
from isles_jax.phantoms.tissue import CORE_FLOW, FIELD_OF_VIEW_MM, grid_mm, make_tissue, random_field


def test_random_field_is_a_sum_of_plane_waves_of_unit_variance():
    points = grid_mm((9, 7, 5))
    turned = np.einsum("ij,jxyz->ixyz", np.array([[0.8, 0.6, 0.0], [-0.6, 0.8, 0.1], [0.0, 0.2, 1.1]]), points) + 3
    fields = np.stack([random_field(turned, 30, 60, np.random.default_rng(seed)) for seed in range(300)])
    np.testing.assert_allclose(fields.mean(axis=0), 0, atol=0.35)
    np.testing.assert_allclose(fields.var(axis=0), 1, atol=0.45)
    assert fields.var() == pytest.approx(1, abs=0.05)
    # The same patient on a finer grid: every third voxel of it is a voxel of the coarse one.
    fine, coarse = grid_mm((27, 21, 15)), grid_mm((9, 7, 5))
    np.testing.assert_allclose(fine[:, 1::3, 1::3, 1::3], coarse, atol=1e-4)
    field = random_field(fine, 20, 50, np.random.default_rng(0))
    same = random_field(coarse, 20, 50, np.random.default_rng(0))
    np.testing.assert_allclose(field[1::3, 1::3, 1::3], same, atol=1e-4)


@pytest.fixture(scope="module")
def tissues():
    points = grid_mm((32, 32, 16))
    return points, [make_tissue(points, 1.0, np.random.default_rng(seed)) for seed in range(8)]


def test_tissue_is_what_the_documentation_says(tissues):
    points, made = tissues
    sides = []
    for tissue in made:
        np.testing.assert_allclose(tissue.fractions.sum(axis=-1), 1, atol=1e-5)
        assert tissue.fractions.min() >= 0
        litres = tissue.brain.sum() * np.prod(np.array(FIELD_OF_VIEW_MM) / tissue.brain.shape) / 1e6
        assert 0.8 < litres < 1.6
        affected = tissue.late > 0
        core = (tissue.flow < CORE_FLOW) & (tissue.old < 0.5)
        assert (tissue.late[core] > scans.PENUMBRA_DELAY).mean() > 0.99, "the core lies in what is late"
        sides.append(np.sign(np.median(points[0][affected])))
        assert (np.sign(points[0][tissue.late > scans.PENUMBRA_DELAY]) == sides[-1]).mean() > 0.97
        assert np.corrcoef(tissue.late[affected], tissue.flow[affected])[0, 1] < -0.5
        lesions = tissue.old > 0.5
        assert (lesions & (tissue.late < scans.PENUMBRA_DELAY)).sum() >= 0.9 * lesions.sum()
    assert set(sides) == {-1.0, 1.0}
    assert sum((tissue.old > 0.5).any() for tissue in made) >= 3
    assert sum((tissue.old > 0.5).any() for tissue in made) < len(made)


def test_diffusion_brightens_the_core_and_old_lesions(tissues):
    points, made = tissues
    for tissue in made:
        image = scans.scan_diffusion(points, tissue, 0.0, np.random.default_rng(0))
        white = (tissue.fractions[..., 2] > 0.9) & tissue.brain
        core, healthy = tissue.flow < 0.25, tissue.flow > 0.5
        ratio = image[white & core & (tissue.old < 0.01)].mean() / image[white & healthy & (tissue.old < 0.01)].mean()
        # exp(ADC * its fall), and up to 10% more T2.
        low, high = np.exp(0.75 * 0.42), np.exp(0.75 * 0.52 + 90 / 80 * (1 - 1 / 1.1))
        assert 0.95 * low < ratio < 1.05 * high
        if (white & (tissue.old > 0.9)).any():
            assert image[white & (tissue.old > 0.9)].mean() > 1.2 * image[white & healthy & (tissue.old < 0.01)].mean()
        assert (image > 0).sum() == tissue.brain.sum()


def test_without_difficulty_the_scan_gives_the_truth_back(tissues):
    points, made = tissues
    for tissue in made[:3]:
        clean = tissue._replace(benign=np.zeros_like(tissue.benign))
        tmax, ttp = scans.scan_perfusion(clean, 0.0, np.random.default_rng(0))
        inside = clean.brain & (clean.fractions[..., 0] < 0.05)
        assert (tmax[~clean.brain] == 0).all()
        assert np.abs(tmax - clean.late - 2.2)[inside].mean() < 0.5
        assert np.corrcoef(tmax[inside], ttp[inside])[0, 1] > 0.95
        labels = scans.read_labels(points, clean, 0.0, np.random.default_rng(0))
        solid = clean.brain & (clean.fractions[..., 0] < 0.5)
        np.testing.assert_array_equal(labels > 0, solid & ((clean.late > 4) | (labels == 2)))
        np.testing.assert_array_equal(labels == 2, solid & (clean.flow < 0.3) & (clean.old < 0.5))


def test_the_readers_contour_is_off_by_about_a_millimetre(tissues):
    points, made = tissues
    for tissue in made[:3]:
        true = scans.read_labels(points, tissue, 0.0, np.random.default_rng(0)) > 0
        for difficulty, least, most in ((1.0, 0.90, 0.995), (3.0, 0.75, 0.97)):
            read = scans.read_labels(points, tissue, difficulty, np.random.default_rng(1)) > 0
            dice = 2 * (true & read).sum() / (true.sum() + read.sum())
            assert least < dice < most
