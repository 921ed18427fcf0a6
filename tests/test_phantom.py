"""The phantom: its physics against closed forms and brute force, and the data set against its documentation."""

import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spes_folder import tree

from isles_jax import clinical, data
from isles_jax.config import baseline
from isles_jax.data import folds, layouts, patient, perfusion, phantom
from isles_jax.phantom import main as command
from isles_jax.runtime.command import InputError

FLOWS = np.array([60.0, 25.0, 12.0, 4.0])
MTTS = np.array([4.0, 5.0, 9.0, 14.0])
DELAYS = np.array([0.0, 2.2, 5.0, 11.3])
ARRIVAL, WIDTH = 10.0, 1.5


def curves(interval, duration, cbf=FLOWS, mtt=MTTS, delay=DELAYS):
    times = np.arange(0, duration, interval)
    return times, perfusion.tissue_curves(times, cbf, mtt, delay, ARRIVAL, WIDTH)


# --- physics ---------------------------------------------------------------------------------------------------------


def test_arterial_input():
    times = np.arange(0, 60, 0.001)
    arterial = perfusion.arterial_input(times, ARRIVAL, WIDTH).astype(np.float64)
    assert arterial.max() == pytest.approx(perfusion.ARTERIAL_PEAK, rel=1e-5)
    assert times[arterial.argmax()] == pytest.approx(ARRIVAL + 3 * WIDTH, abs=0.02)
    assert arterial.sum() * 0.001 == pytest.approx(perfusion.ARTERIAL_PEAK * perfusion.AREA * WIDTH, rel=1e-5)
    assert (arterial[times <= ARRIVAL] == 0).all()


@settings(max_examples=30, deadline=None)
@given(
    cbf=st.floats(1, 80),
    mtt=st.floats(3, 25),
    delay=st.floats(0, 15),
    arrival=st.floats(5, 14),
    width=st.floats(1.3, 1.9),
)
def test_tissue_curves_are_the_convolution(cbf, mtt, delay, arrival, width):
    fine = 0.01
    times = np.arange(0, 72, fine)
    arterial = perfusion.arterial_input(times - delay, arrival, width).astype(np.float64)
    brute = cbf / 6000 * fine * np.convolve(arterial, np.exp(-times / mtt))[: len(times)]
    closed = perfusion.tissue_curves(times, np.array(cbf), np.array(mtt), np.array(delay), arrival, width)
    np.testing.assert_allclose(closed, brute, atol=4e-3 * brute.max())


def test_area_is_the_blood_volume():
    times, tissue = curves(0.1, 400)
    arterial = perfusion.arterial_input(times, ARRIVAL, WIDTH)
    np.testing.assert_allclose(100 * tissue.sum(axis=-1) / arterial.sum(), FLOWS * MTTS / 60, rtol=1e-4)


def test_curves_peak_where_they_cross_the_scaled_input():
    _, tissue = curves(0.01, 72)
    peaks = perfusion.peak_time(tissue, 0.01)
    volume = FLOWS * MTTS / 6000
    there = volume * perfusion.arterial_input(peaks - DELAYS, ARRIVAL, WIDTH)
    np.testing.assert_allclose(there, tissue.max(axis=-1), rtol=2e-3)
    assert (np.diff(peaks - DELAYS) > 0).all(), "a longer transit time peaks later"


def test_deconvolution_finds_flow_transit_time_and_delay():
    times, tissue = curves(0.1, 250)
    arterial = perfusion.arterial_input(times, ARRIVAL, WIDTH)
    late = []
    for cutoff in (1e-2, 1e-3, 1e-4):
        residue = tissue @ perfusion.deconvolution(arterial, cutoff, 0.1).T
        late.append(perfusion.tmax(residue, 0.1) - DELAYS)
    # The less is cut off, the nearer Tmax comes to the delay; at the last one flow and transit time are right too.
    assert (np.diff(late, axis=0) < 0).all()
    assert (late[-1] > 0).all()
    assert (late[-1] < 0.55).all()
    flow = 6000 * residue.max(axis=-1)
    np.testing.assert_allclose(flow, FLOWS, rtol=0.07)
    volume = 100 * tissue.sum(axis=-1) / arterial.sum()
    np.testing.assert_allclose(60 * volume / flow, MTTS, rtol=0.07)


def test_the_clinical_deconvolution_adds_two_seconds():
    delay = np.linspace(0, 14, 60)
    for mtt in (3.5, 5.0, 8.0, 12.0):
        _, tissue = curves(perfusion.INTERVAL, 72, np.full(60, 30.0), np.full(60, mtt), delay)
        arterial = perfusion.arterial_input(perfusion.TIMES, ARRIVAL, WIDTH)
        added = perfusion.tmax(tissue @ perfusion.deconvolution(arterial, 0.1).T) - delay
        assert added.min() > 1.4
        assert added.max() < 3.0


def test_deconvolution_is_the_truncated_block_circulant_inverse():
    arterial = perfusion.arterial_input(perfusion.TIMES, ARRIVAL, WIDTH).astype(np.float64)
    count = len(arterial)
    padded = np.concatenate([arterial, np.zeros(count)]) * perfusion.INTERVAL
    circulant = np.stack([np.roll(padded, shift) for shift in range(2 * count)], axis=1)
    for cutoff in (0.05, 0.1, 0.25):
        u, s, v = np.linalg.svd(circulant)
        assert np.abs(s / s[0] - cutoff).min() > 1e-6
        inverse = (v.T * np.where(s >= cutoff * s[0], 1 / s, 0)) @ u.T
        np.testing.assert_allclose(perfusion.deconvolution(arterial, cutoff), inverse[:, :count], atol=1e-6)


def test_times_shift_with_the_delay_and_do_not_see_the_scale():
    _, tissue = curves(perfusion.INTERVAL, 72, np.full(4, 30.0), np.full(4, 5.0), perfusion.INTERVAL * np.arange(4))
    arterial = perfusion.arterial_input(perfusion.TIMES, ARRIVAL, WIDTH)
    operator = perfusion.deconvolution(arterial, 0.1)
    for times in (perfusion.tmax(tissue @ operator.T), perfusion.peak_time(tissue)):
        np.testing.assert_allclose(np.diff(times), perfusion.INTERVAL, atol=0.02)
    np.testing.assert_allclose(perfusion.tmax(7 * tissue @ operator.T), perfusion.tmax(tissue @ operator.T), atol=1e-4)
    np.testing.assert_allclose(perfusion.concentration(perfusion.signal(tissue)), tissue, atol=1e-5)
    # Blood that arrives before the measured artery's has Tmax 0, not a bump at the end of the series.
    early = perfusion.tissue_curves(perfusion.TIMES, 30.0, 4.0, 0.0, ARRIVAL - 4.5, WIDTH)
    assert perfusion.tmax(early @ operator.T) == 0


@given(st.floats(-0.5, 0.5), st.integers(1, 8))
def test_peak_time_is_exact_on_a_parabola(shift, place):
    samples = np.arange(10)
    assert perfusion.peak_time(5 - (samples - place - shift) ** 2) == pytest.approx(1.5 * (place + shift), abs=1e-9)


def test_random_field_is_a_sum_of_plane_waves_of_unit_variance():
    points = patient.grid_mm((9, 7, 5))
    turned = np.einsum("ij,jxyz->ixyz", np.array([[0.8, 0.6, 0.0], [-0.6, 0.8, 0.1], [0.0, 0.2, 1.1]]), points) + 3
    fields = np.stack([patient.random_field(turned, 30, 60, np.random.default_rng(seed)) for seed in range(300)])
    np.testing.assert_allclose(fields.mean(axis=0), 0, atol=0.35)
    np.testing.assert_allclose(fields.var(axis=0), 1, atol=0.45)
    assert fields.var() == pytest.approx(1, abs=0.05)
    # The same patient on a finer grid: every third voxel of it is a voxel of the coarse one.
    fine, coarse = patient.grid_mm((27, 21, 15)), patient.grid_mm((9, 7, 5))
    np.testing.assert_allclose(fine[:, 1::3, 1::3, 1::3], coarse, atol=1e-4)
    field = patient.random_field(fine, 20, 50, np.random.default_rng(0))
    same = patient.random_field(coarse, 20, 50, np.random.default_rng(0))
    np.testing.assert_allclose(field[1::3, 1::3, 1::3], same, atol=1e-4)


# --- a patient -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tissues():
    points = patient.grid_mm((32, 32, 16))
    return points, [patient.make_tissue(points, 1.0, np.random.default_rng(seed)) for seed in range(8)]


def test_tissue_is_what_the_documentation_says(tissues):
    points, made = tissues
    sides = []
    for tissue in made:
        np.testing.assert_allclose(tissue.fractions.sum(axis=-1), 1, atol=1e-5)
        assert tissue.fractions.min() >= 0
        litres = tissue.brain.sum() * np.prod(np.array(patient.FIELD_OF_VIEW_MM) / tissue.brain.shape) / 1e6
        assert 0.8 < litres < 1.6
        affected = tissue.late > 0
        core = (tissue.flow < patient.CORE_FLOW) & (tissue.old < 0.5)
        assert (tissue.late[core] > patient.PENUMBRA_DELAY).mean() > 0.99, "the core lies in what is late"
        sides.append(np.sign(np.median(points[0][affected])))
        assert (np.sign(points[0][tissue.late > patient.PENUMBRA_DELAY]) == sides[-1]).mean() > 0.97
        assert np.corrcoef(tissue.late[affected], tissue.flow[affected])[0, 1] < -0.5
        lesions = tissue.old > 0.5
        assert (lesions & (tissue.late < patient.PENUMBRA_DELAY)).sum() >= 0.9 * lesions.sum()
    assert set(sides) == {-1.0, 1.0}
    assert sum((tissue.old > 0.5).any() for tissue in made) >= 3
    assert sum((tissue.old > 0.5).any() for tissue in made) < len(made)


def test_diffusion_brightens_the_core_and_old_lesions(tissues):
    points, made = tissues
    for tissue in made:
        image = patient.scan_diffusion(points, tissue, 0.0, np.random.default_rng(0))
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
        tmax, ttp = patient.scan_perfusion(clean, 0.0, np.random.default_rng(0))
        inside = clean.brain & (clean.fractions[..., 0] < 0.05)
        assert (tmax[~clean.brain] == 0).all()
        assert np.abs(tmax - clean.late - 2.2)[inside].mean() < 0.5
        assert np.corrcoef(tmax[inside], ttp[inside])[0, 1] > 0.95
        labels = patient.read_labels(points, clean, 0.0, np.random.default_rng(0))
        solid = clean.brain & (clean.fractions[..., 0] < 0.5)
        np.testing.assert_array_equal(labels > 0, solid & ((clean.late > 4) | (labels == 2)))
        np.testing.assert_array_equal(labels == 2, solid & (clean.flow < 0.3) & (clean.old < 0.5))


def test_the_readers_contour_is_off_by_about_a_millimetre(tissues):
    points, made = tissues
    for tissue in made[:3]:
        true = patient.read_labels(points, tissue, 0.0, np.random.default_rng(0)) > 0
        for difficulty, least, most in ((1.0, 0.90, 0.995), (3.0, 0.75, 0.97)):
            read = patient.read_labels(points, tissue, difficulty, np.random.default_rng(1)) > 0
            dice = 2 * (true & read).sum() / (true.sum() + read.sum())
            assert least < dice < most


# --- the data set ----------------------------------------------------------------------------------------------------


def write(root, cases=2, shape=(16, 16, 8), difficulty=1.0, seed=0):
    phantom.write_phantom(root, cases=cases, shape=shape, difficulty=difficulty, seed=seed)
    return root


def test_the_seed_fixes_every_patient(tmp_path):
    first = tree(write(tmp_path / "a"))
    assert tree(write(tmp_path / "b")) == first
    other = tree(write(tmp_path / "c", seed=1))
    more = tree(write(tmp_path / "d", cases=3))
    files = [name for name in first if name.endswith(".nii")]
    assert len(files) == 8
    assert set(other) == set(first)
    assert not any(other[name] == first[name] for name in files)
    assert all(more[name] == first[name] for name in files)
    scans = [first[name] for name in files if "Tmax" in name]
    assert len(set(scans)) == len(scans)
    settings = json.loads((tmp_path / "a" / "phantom.json").read_text())
    assert settings == {"digital perfusion phantom": {"cases": 2, "shape": [16, 16, 8], "difficulty": 1.0, "seed": 0}}


def test_files_lie_in_the_scanner(tmp_path):
    image = nib.load(next(write(tmp_path / "a", cases=1, shape=(16, 24, 8)).rglob("*DWI*.nii")))
    assert image.header.get_zooms() == (12.0, 8.0, 14.0)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (image.get_sform(coded=True)[1], image.get_qform(coded=True)[1]) == (1, 1)
    np.testing.assert_allclose(image.affine @ [7.5, 11.5, 3.5, 1], [0, 0, 0, 1])
    np.testing.assert_allclose(image.affine @ [1, 2, 3, 1], [*patient.grid_mm((16, 24, 8))[:, 1, 2, 3], 1])


def test_nothing_is_left_behind_by_a_failure(tmp_path, monkeypatch):
    root = write(tmp_path / "a")
    before = tree(tmp_path)
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        write(root)
    for wrong in ({"cases": 0}, {"shape": (16, 16)}, {"shape": (2, 16, 8)}, {"difficulty": -1.0}):
        with pytest.raises(InputError, match=r"phantom: .*expected at least one case"):
            write(tmp_path / "b", **wrong)
    real = phantom.make_patient
    calls = []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("no more")
        return real(*arguments)

    monkeypatch.setattr(phantom, "make_patient", failing)
    with pytest.raises(RuntimeError, match="no more"):
        write(tmp_path / "b")
    assert tree(tmp_path) == before


def test_the_command(tmp_path, capsys):
    arguments = [
        f"--output={tmp_path / 'a'}",
        "--cases=2",
        "--shape=(16, 16, 8)",
        "--difficulty=0.5",
        "--seed=3",
        "--figure",
    ]
    command(arguments)
    assert "2 phantom patients" in capsys.readouterr().out
    there = tree(tmp_path / "a")
    picture = (tmp_path / "a" / "phantom.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    del there["phantom.png"]
    assert there == tree(write(tmp_path / "b", difficulty=0.5, seed=3))
    with pytest.raises(InputError, match="expected a new name"):
        command(arguments)
    with pytest.raises(InputError, match="--shape=much: expected three numbers"):
        command([f"--output={tmp_path / 'c'}", "--shape=much"])


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """The phantom of the main job."""
    config = baseline(residual=True, adversarial=True, overlap=True)
    root = tmp_path_factory.mktemp("default") / "phantom"
    settings = config.data.phantom
    write(root, settings.cases, tuple(settings.shape), settings.difficulty, config.seed)
    return layouts.load(root, penumbra=1, core=2)


def dice(found, truth):
    return 2 * (found & truth).sum() / max(found.sum() + truth.sum(), 1)


def rule_scores(dataset):
    """Dice of the clinical rule, [cases, 2], thresholds fitted on the other folds as in a run."""
    scores = []
    for held_out in folds.make_folds([case.name for case in dataset.cases], 3, 0):
        threshold = clinical.fit_core_threshold([case for case in dataset.cases if case.name not in held_out])
        for case in dataset.cases:
            if case.name in held_out:
                found = clinical.clinical_rule(case, threshold)
                scores.append([dice(found == value, case.labels == value) for value in (1, 2)])
    return np.array(scores)


def test_thresholds_fail_where_they_fail_in_life(default, tmp_path):
    scores = rule_scores(default).mean(axis=0)
    assert (scores > 0.4).all(), scores
    assert (scores < 0.75).all(), scores
    clean = layouts.load(write(tmp_path / "clean", 9, (48, 48, 16), 0.0), penumbra=1, core=2)
    assert (rule_scores(clean).mean(axis=0) > scores + 0.1).all()


def test_the_default_lesions_are_of_a_size_to_be_measured(default):
    assert default.phantom
    assert len(default.cases) == 24
    volumes = np.array([[data.check.volume_ml(case, value) for value in (1, 2)] for case in default.cases])
    assert volumes.min(axis=0)[0] > 20
    assert volumes.min(axis=0)[1] > 5
    assert volumes.max(axis=0)[1] < 150
    assert (volumes.std(axis=0) / volumes.mean(axis=0) > 0.25).all(), "patients differ"
    left = [np.flatnonzero((case.labels > 0).any(axis=(1, 2))).mean() < 31.5 for case in default.cases]
    assert 0.2 < np.mean(left) < 0.8
