"""The page of one new case: what it says, what it shows, and how it looks in a real browser and on paper."""

import dataclasses
import re

import browser
import numpy as np
import pytest
from helpers import ParsedPage, task_of

from isles_jax.data.case import Case
from isles_jax.pages import patient_page, pictures
from isles_jax.prediction import numbers
from isles_jax.prediction.numbers import ClassNumbers, Number, Prediction

WARNINGS = (
    "Found a spacing of 1 x 1 x 9 mm, expected 2 x 2 x 2 mm.",
    "Found networks that disagree, expected Dice 0.9.",
)


@pytest.fixture(scope="module")
def prediction(report_dataset):
    """The truth of a phantom patient as the prediction, and moved by a voxel as that of two networks."""
    case = report_dataset.cases[0]
    moved = tuple(np.where(case.brain, np.roll(case.labels, step, 1), 0).astype(np.uint8) for step in (0, 1))
    penumbra, core = (
        dataclasses.replace(one, agreement=None)
        for one in numbers.of_classes(case, report_dataset.classes, case.labels, moved, {})
    )
    of_classes = (
        dataclasses.replace(penumbra, interval=(10.0, 20.0), coverage=11 / 12),
        dataclasses.replace(core, interval=(3.25, 4.5)),
    )
    row = (
        Number("case", "case", case.name),
        Number("brain_ml", "brain", 1234.56, "ml"),
        Number("penumbra_ml", "volume", 1.0, "ml", "penumbra"),
        Number("mismatch_ml", "mismatch", 0.056789, "ml"),
        Number("mismatch_ratio", "mismatch ratio", None),
        Number("lesions", "lesions", 3),
        Number("side", "side", "left"),
        Number("tmax_above_6_s_ml", "Tmax above 6 s", 7.0, "ml"),
        Number("defuse3_core_below_70_ml", "DEFUSE 3: core below 70 ml", "yes"),
        Number("warnings", "warnings", "; ".join(WARNINGS)),
    )
    task = task_of(None, report_dataset.classes, report_dataset.channels)
    origin = {"run": "proposed", "weights": "0123abcd"}
    return Prediction(case, task, case.labels, moved, of_classes, row, WARNINGS, (), origin)


@pytest.fixture(scope="module")
def without_tmax(prediction):
    """A network for DWI and ADC, one class, one fold, and a case without a predicted lesion."""
    case = prediction.case
    case = Case("b", case.images[..., [2, 1]], None, case.affine, case.header)
    empty = np.zeros_like(prediction.labels)
    of_classes = (ClassNumbers("lesion", 0.0, 0.0, 0.0, None, None, None, None),)
    task = task_of(None, ("lesion",), ("DWI", "ADC"))
    return Prediction(case, task, empty, (empty,), of_classes, (), (), ("the run is not scored",), {"run": "x"})


def cells(text):
    """The rows of the page's tables, as lists of plain texts."""
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    return [[re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def test_page_is_well_formed_and_names_no_address(prediction, without_tmax):
    for one in (prediction, without_tmax):
        ParsedPage(patient_page.page(one)).assert_names_no_address()


def test_warnings_stand_before_every_number_and_research_before_them(prediction, without_tmax):
    text = ParsedPage(patient_page.page(prediction).partition("<main>")[2].partition("</main>")[0]).text
    places = [text.index(part) for part in (patient_page.RESEARCH, "2 warnings", *WARNINGS, "Volume of each class")]
    assert places == sorted(places)
    assert text.count(patient_page.RESEARCH) == 2, "on top, and at the end of the printed sheet"
    silent = ParsedPage(patient_page.page(without_tmax)).text
    assert "raised a warning" in silent
    assert "can be wrong" in silent
    assert "Not checked: the run is not scored." in silent
    assert "Not checked" not in text


def test_volumes_are_those_of_the_labels(prediction):
    rows = cells(patient_page.page(prediction))
    assert rows[0] == ["class", *prediction.task.classes]
    assert rows[2] == ["90% interval, ml", "10.0 to 20.0", "3.25 to 4.50"]
    assert rows[4] == ["coverage of such intervals", "0.917", "–"]
    brain_ml = round(float(prediction.case.brain.sum() * prediction.case.voxel_ml), 6)
    for interval, text in (((0.0, brain_ml), "0 to the whole brain"), (None, "unknown"), ((0.0, 2.0), "0.00 to 2.00")):
        other = dataclasses.replace(prediction.classes[1], interval=interval)
        changed = dataclasses.replace(prediction, classes=(prediction.classes[0], other))
        assert cells(patient_page.page(changed))[2][2] == text
    assert [row[0] for row in rows] == ["class", "volume, ml", rows[2][0], "networks alone, ml", rows[4][0]]
    for value in (1, 2):
        volume, *alone = (
            sum(1 for label in labels.ravel() if label == value) * prediction.case.voxel_ml
            for labels in (prediction.labels, *prediction.fold_labels)
        )
        assert float(rows[1][value]) == pytest.approx(volume, rel=0.006)
        assert [float(part) for part in rows[3][value].split(" to ")] == pytest.approx(
            [min(alone), max(alone)], rel=0.006
        )


def test_every_other_column_of_the_summary_is_shown_once(prediction):
    facts = re.search(r'<dl class="facts">(.*?)</dl>', patient_page.page(prediction))[1]
    pairs = re.findall(r'<dt><abbr title="[^"]+">(.*?)</abbr></dt><dd>(.*?)</dd>', facts)
    assert pairs == [
        ("brain, ml", "1235"), ("mismatch, ml", "0.0568"), ("mismatch ratio", "–"), ("lesions", "3"), ("side", "left"),
        ("Tmax above 6 s, ml", "7.00"), ("DEFUSE 3: core below 70 ml", "yes"),
    ]  # fmt: skip


def test_contours_of_the_average_and_of_each_network_lie_on_dwi_and_tmax(prediction):
    text = patient_page.page(prediction)
    picture = pictures.picture(
        dataclasses.replace(prediction.case, labels=None), {"": prediction.labels, "1": prediction.fold_labels[1]}
    )
    assert len(picture.slices) <= patient_page.MOST_SLICES
    for value in (1, 2):
        whole = (picture.results[""] == value).any(axis=(1, 2)).sum()
        moved = (picture.results["1"] == value).any(axis=(1, 2)).sum()
        assert text.count(f'class="k{value}"') == 2 * whole
        assert text.count(f'class="k{value} thin"') == 2 * (whole + moved)
    names = re.findall(r'class="scan"[^>]*aria-label="([^"]*)"', text)
    assert names == [
        f"{name}, slice {number + 1}" for number in picture.slices for name in ("DWI without lines", "DWI", "Tmax")
    ]


def test_the_first_picture_of_a_slice_has_no_line(prediction):
    scans = re.findall(r'<svg class="scan".*?</svg>', patient_page.page(prediction))
    plain = [scan for scan in scans if "without lines" in scan]
    assert len(plain) == len(scans) / 3
    assert not any("<path" in scan for scan in plain)
    assert all("data:image/png" in scan for scan in plain)


def test_thin_lines_run_beside_a_small_lesion_and_not_through_it():
    result = np.zeros((40, 40), np.uint8)
    result[5:8, 5:8] = 2
    result[15:35, 15:35] = 1
    moved = np.roll(result, (1, 1), (0, 1))
    spared = patient_page.spare_small(result, moved, (2.0, 2.0))
    # Inside the small lesion the labels are those of the result; around it they are the network's.
    assert (moved[5:8, 5:8] == 0).any()
    assert (spared[5:8, 5:8] == 2).all()
    assert (spared[result == 0] == moved[result == 0]).all()
    # The large one, whose middle is 20 mm from its edge, keeps the network's line.
    assert (spared[15:35, 15:35] == moved[15:35, 15:35]).all()
    # A lesion of 40 x 40 voxels of 0.2 mm is small, one of 3 x 3 voxels of 9 mm is not.
    assert (patient_page.spare_small(result, moved, (0.2, 0.2))[result > 0] == result[result > 0]).all()
    assert (patient_page.spare_small(result, moved, (9.0, 9.0)) == moved).all()


def test_date_and_voxels_stand_on_the_page(prediction):
    sides = " x ".join(f"{side:.3g}" for side in prediction.case.spacing_mm)
    assert f">Voxels of {sides} mm.<" in patient_page.page(prediction)
    dated = patient_page.page(dataclasses.replace(prediction, date="2026-11-27"))
    assert f">Predicted on 2026-11-27. Voxels of {sides} mm.<" in dated


def test_hypoperfused_and_tmax_are_told_apart_where_both_stand(prediction):
    words = "Hypoperfused is what the networks segmented"
    assert words not in patient_page.page(prediction)
    both = (*prediction.numbers, Number("hypoperfused_ml", "hypoperfused", 2.0, "ml"))
    assert patient_page.page(dataclasses.replace(prediction, numbers=both)).count(words) == 1


def test_the_reference_of_a_case_is_not_used(prediction):
    wrong = np.ones_like(prediction.labels)
    changed = dataclasses.replace(prediction, case=dataclasses.replace(prediction.case, labels=wrong))
    assert patient_page.page(changed) == patient_page.page(prediction)


def test_one_network_without_tmax_has_no_thin_lines_and_no_colours(without_tmax):
    text = patient_page.page(without_tmax)
    body = text[text.index("<main>") : text.index("<script>")]
    assert cells(body) == [["class", "lesion"], ["volume, ml", "0.00"]]
    assert "thin" not in body
    assert "Tmax" not in body
    assert "DWI and ADC: 0 of 0 slices with a predicted lesion" in body


def test_one_network_is_not_said_to_agree_with_others(prediction):
    between = Number("folds_dice", "Dice between networks, all classes", None)
    together = dataclasses.replace(prediction, numbers=(*prediction.numbers, between))
    single = dataclasses.replace(
        together,
        fold_labels=prediction.fold_labels[:1],
        classes=tuple(dataclasses.replace(one, interval=None, coverage=None) for one in prediction.classes),
    )
    for one, said in ((together, True), (single, False)):
        text = patient_page.page(one)
        assert ("between networks" in text) == said
        assert ("and how sure it is" in text) == said


@pytest.mark.parametrize(
    "evil", ['</script><script>alert(1)</script><b onclick="x">&\'', "=cmd|' /C calc'!A0", "a/b c"]
)
def test_a_name_from_outside_cannot_become_markup(prediction, evil):
    changed = dataclasses.replace(
        prediction,
        case=dataclasses.replace(prediction.case, name=evil),
        task=task_of(None, (evil, "core"), (evil, evil + "2", "DWI")),
        classes=(dataclasses.replace(prediction.classes[0], name=evil), prediction.classes[1]),
        warnings=(evil,),
        numbers=(Number(evil, evil, evil, evil),),
        origin={evil: evil},
    )
    parsed = ParsedPage(patient_page.page(changed))
    parsed.assert_names_no_address()
    assert parsed.tags.count("script") == 2
    assert "b" not in parsed.tags
    assert evil in parsed.text


@pytest.mark.parametrize("seed", range(40))
def test_slices_are_those_with_a_lesion_then_those_of_a_network_alone_then_neighbours(seed):
    draw = np.random.default_rng(seed)
    count = draw.integers(1, 80)
    lesion = draw.random(count) < draw.choice([0.0, 0.05, 0.2, 0.9])
    alone_only = (draw.random(count) < draw.choice([0.0, 0.1, 0.9])) & ~lesion
    chosen = patient_page.choose_slices(lesion, alone_only)
    assert chosen == sorted(set(chosen))
    assert min(count, patient_page.LEAST_SLICES) <= len(chosen) <= patient_page.MOST_SLICES
    first, second = set(np.flatnonzero(lesion)), set(np.flatnonzero(alone_only))
    if len(first) <= patient_page.MOST_SLICES:
        assert first <= set(chosen)
    elif count > patient_page.MOST_SLICES:
        assert set(chosen) <= first
        assert {min(first), max(first)} <= set(chosen)
    if len(first | second) <= patient_page.MOST_SLICES:
        assert second <= set(chosen)
    elif count > patient_page.MOST_SLICES:
        assert set(chosen) <= first | second
    # Others are chosen only next to lesions: nothing nearer is left out.
    if 0 < len(first | second) < patient_page.LEAST_SLICES < patient_page.MOST_SLICES < count:
        distance = [min(abs(position - one) for one in first | second) for position in range(count)]
        left_out = set(range(count)) - set(chosen)
        assert max(distance[one] for one in chosen) <= min(distance[one] for one in left_out)


# --- in a browser -----------------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(not browser.installed(), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    with browser.open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def open_page(view, prediction, folder, width=1280, height=900, theme="light"):
    path = folder / "case.html"
    path.write_text(patient_page.page(prediction))
    view.look(width, height, theme)
    view.open(path.as_uri())
    view.wait("return document.getElementById('viewer').dataset.ready")
    return path


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_page_fits_the_window_and_can_be_read(view, prediction, tmp_path, width, height, theme):
    open_page(view, prediction, tmp_path, width, height, theme)
    assert view.run("return document.documentElement.scrollWidth") <= width
    assert view.run("return [...document.querySelectorAll('.wide')].every(b => b.scrollWidth <= b.clientWidth)")
    contrasts = view.run(browser.CONTRASTS)
    assert len(contrasts) > 40
    assert min(ratio for ratio, _ in contrasts) >= 4.5, min(contrasts)
    # The sentence stays on top wherever the reader is.
    for place in ("0", "document.body.scrollHeight"):
        view.run(f"window.scrollTo(0, {place})")
        seen = view.run("return document.elementFromPoint(innerWidth / 2, 20).textContent")
        assert seen == patient_page.RESEARCH


@needs_browser
def test_controls_have_names_and_work_by_keyboard_and_nothing_is_asked_for(view, prediction, tmp_path):
    view.requests()
    path = open_page(view, prediction, tmp_path)
    names = view.run(
        "return [...document.querySelectorAll('button, select, input')].map("
        "e => (e.ariaLabel || e.closest('label, button')?.textContent || '').trim())"
    )
    assert all(names)
    picture = "return document.querySelectorAll('#viewer canvas.slice')[2].toDataURL()"
    shown = [view.run(picture)]
    view.run("document.querySelector('[data-part=others]').focus()")
    view.press(" ")
    shown.append(view.run(picture))
    view.run("document.querySelector('.views').focus()")
    view.press("ArrowDown")
    shown.append(view.run(picture))
    assert len(set(shown)) == 3
    assert view.run("return document.querySelectorAll('[data-part=case], [data-part=truth]').length") == 0
    assert view.log("browser") == []
    assert [address for address in view.requests() if not address.startswith((path.as_uri(), "data:"))] == []


@needs_browser
@pytest.mark.parametrize("warnings", [0, 2, 12])
def test_it_prints_on_one_a4_page(view, prediction, tmp_path, warnings):
    sentences = tuple(
        f"Found {number} of something, expected something else in this image. " * 2 for number in range(warnings)
    )
    many = tuple(Number(f"measure_{number}_ml", f"measure {number}", number / 7, "ml") for number in range(30))
    name = "a long name " * 8
    changed = dataclasses.replace(
        prediction, warnings=sentences, numbers=many, case=dataclasses.replace(prediction.case, name=name)
    )
    open_page(view, changed, tmp_path)
    pdf = view.print()
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf)) == 1
    width, height = map(float, re.search(rb"/MediaBox ?\[0 0 ([\d.]+) ([\d.]+)\]", pdf).groups())
    # In points of 1/72 inch: 210 x 297 mm.
    assert (width, height) == pytest.approx((210 / 25.4 * 72, 297 / 25.4 * 72), abs=1)
