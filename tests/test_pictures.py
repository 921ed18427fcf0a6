import base64
import dataclasses
import re
import struct
import zlib

import nibabel as nib
import numpy as np
import pytest
from helpers import random_case

from isles_jax.data.case import radiological
from isles_jax.pages import case_sections, pictures, stills, tmax
from isles_jax.scoring import clinical, comparison


def decode(content):
    """A PNG's pixels, gray [H, W] or with a palette [H, W, 3], by the format's own rules."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        assert struct.unpack(">I", content[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + size
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour) == (8, 3 if b"PLTE" in chunks else 0)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    if colour == 3:
        return np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(256, 3)[rows[:, 1:]]
    return rows[:, 1:]


def test_png_holds_the_pixels():
    gray = np.random.default_rng(0).integers(0, 256, (5, 9)).astype(np.uint8)
    assert np.array_equal(decode(pictures.png(gray)), gray)
    assert np.array_equal(decode(base64.b64decode(pictures.data_uri(gray).split(",")[1])), gray)
    palette = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8)
    assert np.array_equal(decode(pictures.png(gray, palette)), palette[gray])


def fill(path, shape):
    """The pixels inside closed paths of h and v lines, by the even-odd rule along each row."""
    crossings = np.zeros((shape[0], shape[1] + 1), int)
    for loop in filter(None, path.split("z")):
        start, *moves = re.findall(r"M\d+ \d+|[hv]-?\d+", loop)
        x, y = map(int, start[1:].split())
        first = (x, y)
        for move in moves:
            length = int(move[1:])
            if move[0] == "h":
                x += length
            else:
                for row in range(min(y, y + length), max(y, y + length)):
                    crossings[row, x] += 1
                y += length
        assert (x, y) == first
    return crossings.cumsum(axis=1)[:, :-1] % 2 == 1


@pytest.mark.parametrize("seed", range(20))
def test_outline_encloses_exactly_the_mask(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 12, 2)) < rng.uniform(0.1, 0.95)
    assert np.array_equal(fill(pictures.outline(mask), mask.shape), mask)


def test_outline_of_a_square_is_one_loop():
    mask = np.zeros((5, 6), bool)
    mask[1:4, 2:5] = True
    path = pictures.outline(mask)
    assert path.count("M") == path.count("z") == 1
    assert len(re.findall("[hv]", path)) <= 5
    assert pictures.outline(np.zeros((3, 3), bool)) == ""


def test_picture_shows_the_case(report_dataset, finished_runs):
    made = pictures.make(report_dataset, {"bl1": finished_runs[0]}, [])
    assert [picture.name for picture in made] == [case.name for case in report_dataset.cases]
    picture, case = made[0], report_dataset.cases[0]
    assert (picture.truth == 1).sum() == (case.labels == 1).sum()
    assert (picture.results["bl1"] == 2).sum() == (case.labels == 2).sum()
    assert picture.gray.shape[1:] == picture.truth.shape == (len(picture.slices), *picture.truth.shape[1:])
    position = pictures.representative_slice(picture)
    share = [(case.labels[..., z] == 1).sum() / (case.labels == 1).sum() + (case.labels[..., z] == 2).sum()
             / max(1, (case.labels == 2).sum()) for z in range(case.labels.shape[2])]  # fmt: skip
    assert picture.slices[position] == int(np.argmax(share))


def test_the_clinical_rule_is_a_result_by_the_threshold_of_each_fold(report_dataset, finished_runs):
    run = finished_runs[0]
    thresholds = [clinical.threshold_of_fold(report_dataset, names) for names in run.folds]
    made = pictures.make(report_dataset, {"bl1": run}, [], thresholds)
    for picture, case in zip(made, report_dataset.cases, strict=True):
        fold = next(number for number, names in enumerate(run.folds) if case.name in names)
        assert list(picture.results) == ["bl1", "clinical rule"]
        others = [other for other in report_dataset.cases if other.name not in run.folds[fold]]
        ruled = clinical.clinical_rule(case, clinical.fit_core_threshold(others))
        for value in (1, 2):
            assert (picture.results["clinical rule"] == value).sum() == (ruled == value).sum()


@pytest.mark.parametrize(
    ("affine", "places"),
    [
        (np.diag([2.0, 2, 5, 1]), ["S 0.0 mm", "S 5.0 mm", "S 10.0 mm"]),
        (np.array([[2.0, 0, 0, -3], [0, 2, 0, 9], [0, 0, -4, 6], [0, 0, 0, 1]]), ["S 6.0 mm", "S 2.0 mm", "I 2.0 mm"]),
        # Sagittal slices, and a head that is turned: the middle of the slice counts.
        (np.array([[0.0, 0, 3, -4], [2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]]), ["L 4.0 mm", "L 1.0 mm", "R 2.0 mm"]),
        (
            np.array([[1, 0, 0, 0], [0, 0.8, -1.2, 0], [0, 0.6, 1.6, 0], [0, 0, 0, 1.0]]),
            ["S 1.2 mm", "S 2.8 mm", "S 4.4 mm"],
        ),
    ],
)
def test_the_place_of_a_slice_is_in_the_scanners_coordinates(affine, places):
    case = random_case((4, 5, 3), affine=affine)
    whole = dataclasses.replace(case, images=np.ones_like(case.images))
    assert pictures.picture(whole, {"a": np.zeros((4, 5, 3), np.uint8)}).places == places
    header = whole.header.copy()
    header["sform_code"] = header["qform_code"] = 0
    unknown = dataclasses.replace(whole, header=header)
    length = np.linalg.norm(affine[:3, 2])
    expected = [f"{number * length:.1f} mm from slice 1" for number in range(3)]
    assert pictures.picture(unknown, {"a": np.zeros((4, 5, 3), np.uint8)}).places == expected


def test_the_slice_shown_first_is_that_of_the_first_result_with_a_lesion(report_dataset):
    case = dataclasses.replace(report_dataset.cases[0], labels=None)
    small, large, empty = (np.zeros(case.brain.shape, np.uint8) for _ in range(3))
    small[15, 15, 2] = 1
    large[10:20, 10:20, 5] = 1
    for results, index in (((small, large), 2), ((empty, large, small), 5), ((large, small), 5)):
        picture = pictures.picture(case, {str(number): labels for number, labels in enumerate(results)})
        assert picture.slices[pictures.representative_slice(picture)] == index
    picture = pictures.picture(case, {"a": empty})
    assert pictures.representative_slice(picture) == len(picture.slices) // 2


def test_values_of_a_picture_are_those_of_the_scan(report_dataset, finished_runs):
    picture, case = pictures.make(report_dataset, {"bl1": finished_runs[0]}, [])[0], report_dataset.cases[0]
    for channel, (low, high) in enumerate(picture.ranges):
        inside = case.images[..., channel][case.brain]
        assert (low, high) == pytest.approx(tuple(np.percentile(inside, (0.5, 99.5))), rel=1e-4)
        shown = picture.values(channel)[picture.gray[channel] > 0]
        # The picture flips axes and crops to the brain, so the voxels are the same but for their order.
        expected, half_step = np.sort(np.clip(inside, low, high)), (high - low) / (pictures.LEVELS - 2) / 2
        assert np.abs(np.sort(shown) - expected).max() <= half_step * 1.001
    assert picture.gray.max() == (pictures.LEVELS - 1) * pictures.STEP


def test_tmax_is_coloured_by_its_seconds(report_dataset, finished_runs):
    picture = pictures.make(report_dataset, {"bl1": finished_runs[0]}, [])[0]
    channel = report_dataset.channels.index(tmax.CHANNEL)
    gray = picture.gray[channel][0]
    coloured = decode(pictures.png(gray, pictures.tmax_palette(picture, channel)))
    inside = gray > 0
    assert np.array_equal(coloured[inside], tmax.colours(picture.values(channel)[0][inside]))
    assert not coloured[~inside].any()
    scale = tmax.colours(np.linspace(*tmax.WINDOW_S, 100)).astype(float)
    # Luminance never falls along the scale.
    assert (np.diff(scale @ [0.2126, 0.7152, 0.0722]) > -0.5).all()
    assert np.array_equal(tmax.colours(np.array([-5.0, 99.0])), tmax.COLOURS[[0, -1]])


def test_still_pictures_name_the_sides_and_halo_every_contour(report_dataset, finished_runs):
    study = comparison.make_study(finished_runs[:1])
    cases = pictures.make(report_dataset, study.runs, [])
    text = case_sections.best_median_worst(study, cases, {"best": cases[0].name})
    figures = re.findall(r"<figure>.*?</figure>", text)
    assert len(figures) == 5
    for figure in figures:
        assert re.findall("<text [^>]*>([RLAP])</text>", figure) == ["R", "L", "A", "P"]
        assert figure.count('class="halo"') == len(re.findall(r'<path class="(?!halo)', figure))
    assert 'class="risk"' in figures[0]
    assert re.findall(r'<path class="(k\d reference)"', figures[3]) == ["k1 reference", "k2 reference"]


@pytest.mark.parametrize(("side_mm", "bar_mm"), [(2.0, 20), (0.5, 5), (12.0, 100)])
def test_still_pictures_have_a_bar_of_the_length_that_it_names(report_dataset, finished_runs, side_mm, bar_mm):
    study = comparison.make_study(finished_runs[:1])
    drawn = pictures.make(report_dataset, study.runs, [])[0]
    gray = np.zeros((1, 1, 60, 50), np.uint8)
    one = dataclasses.replace(drawn, gray=gray, pixel_mm=(side_mm, side_mm), sides="")
    text = stills.scan(one, "data:", "", "x")
    # The unit of the drawing is a millimetre.
    width, height = map(float, re.search('viewBox="0 0 ([0-9.]+) ([0-9.]+)"', text).groups())
    assert (width, height) == (50 * side_mm, 60 * side_mm)
    left, top, length, thick = map(
        float, re.search('<rect class="length" x="([^"]*)" y="([^"]*)" width="([^"]*)" height="([^"]*)"', text).groups()
    )
    assert length == bar_mm
    assert f">{bar_mm} mm</text>" in text
    assert left > 0
    assert top + thick < height
    assert left + length < width
    # Without directions in the header there are no letters.
    assert not re.search("<text [^>]*>[RLAP]</text>", text)


def test_display_is_radiological_however_the_volume_is_stored(report_dataset, finished_runs, tmp_path):
    """Storing a volume the other way round must not change what is seen."""
    case = report_dataset.cases[0]
    codes = nib.aff2axcodes(case.affine)
    seen = []
    for flip_x in (False, True):
        for flip_y in (False, True):
            index = (slice(None, None, -1 if flip_x else 1), slice(None, None, -1 if flip_y else 1))
            affine = case.affine @ np.diag([-1 if flip_x else 1, -1 if flip_y else 1, 1, 1])
            steps, sides = radiological(random_case((4, 5, 3), affine=affine))
            assert sides == "RLAP"
            seen.append(case.labels[index][:: steps[0], :: steps[1]])
            assert nib.aff2axcodes(affine)[0] != codes[0] or not flip_x
    for other in seen[1:]:
        assert np.array_equal(other, seen[0])
    # The first column is the patient's right, the first row the front.
    assert radiological(random_case((4, 5, 3), affine=np.diag([2.0, 2, 2, 1])))[0] == (-1, -1)
    assert radiological(random_case((4, 5, 3), affine=np.diag([-2.0, -2, 2, 1])))[0] == (1, 1)
    assert radiological(random_case((4, 5, 3), affine=np.eye(4)[[2, 1, 0, 3]])) == ((1, 1), "")


def test_large_sets_show_the_lesion_and_as_many_cases_as_fit(report_dataset, finished_runs, monkeypatch):
    monkeypatch.setattr(pictures, "ALL_SLICES_VOXELS", 1)
    monkeypatch.setattr(pictures, "PAGE_SIZE", 25_000)
    wanted = report_dataset.cases[4].name
    made = pictures.make(report_dataset, {"bl1": finished_runs[0]}, [wanted])
    assert wanted in [picture.name for picture in made]
    assert len(made) < len(report_dataset.cases)
    for picture in made:
        case = next(case for case in report_dataset.cases if case.name == picture.name)
        assert picture.truth.astype(bool).sum() == (case.labels > 0).sum()
    text = case_sections.every_slice(comparison.make_study(finished_runs[:1]), made)
    assert f"{len(made)} of 6 cases" in text
