"""Cases that lack a sequence: what is read, trained, predicted and shown of them."""

import dataclasses
import json

import browser
import numpy as np
import pytest
from helpers import CHANNELS, TURNED, ParsedPage, random_case, task_of, tiny_config

from isles_jax import new_cases
from isles_jax.cross_validation import cross_validate
from isles_jax.data import adc, checks, grid, layouts, profile
from isles_jax.data.case import make_dataset
from isles_jax.data.grid import Target
from isles_jax.data.slices import normalise
from isles_jax.pages import page, patient_page, pictures
from isles_jax.prediction import numbers, warning
from isles_jax.prediction.numbers import Prediction
from isles_jax.runtime.command import InputError
from isles_jax.scoring import run_files
from isles_jax.training import event_images
from isles_jax.training.plan import prepare, training_slices


def without(case, *names):
    """The case as it is read if it has no files of these channels."""
    images = case.images.copy()
    images[..., [CHANNELS.index(name) for name in names]] = 0
    files = tuple(path for path in case.files if not any(f"_{name}." in path.name for name in names))
    return dataclasses.replace(case, images=images, absent=names, files=files)


@pytest.fixture(scope="module")
def dataset(phantom_root):
    """Six cases: the first lacks Tmax, the second DWI, the third both, the fourth TTP."""
    whole = layouts.load(phantom_root)
    lacking = (("Tmax",), ("DWI",), ("Tmax", "DWI"), ("TTP",), (), ())
    cases = tuple(without(case, *names) for case, names in zip(whole.cases, lacking, strict=True))
    return make_dataset(whole.root, cases, whole.channels, whole.classes, whole.label_values, layout=whole.layout)


@pytest.fixture
def reads(dataset, monkeypatch):
    """Training, prediction and the report read `dataset`."""
    for module in ("cross_validation.layouts.load", "pages.page.layouts.load"):
        monkeypatch.setattr(f"isles_jax.{module}", lambda *_, **__: dataset)
    unlabelled = tuple(dataclasses.replace(case, labels=None) for case in dataset.cases)
    images = make_dataset(dataset.root, unlabelled, dataset.channels)
    monkeypatch.setattr(new_cases.layouts, "load_images", lambda *_, **__: images)


def test_a_note_names_the_cases_that_lack_a_channel(dataset):
    assert dataset.notes == (
        "no Tmax in 2 of 6 cases (01, 03); zeros stand for it",
        "no TTP in 1 of 6 cases (04); zeros stand for it",
        "no DWI in 2 of 6 cases (02, 03); zeros stand for it",
    )
    many = tuple(dataclasses.replace(dataset.cases[0], name=name) for name in "abcd")
    assert "no Tmax in 4 of 4 cases (a, b, c …);" in make_dataset(dataset.root, many, CHANNELS).notes[0]


@pytest.mark.parametrize("target", [grid.AS_STORED, Target((3.0, 3.0, 5.0), True, "LPS")])
def test_a_channel_of_zeros_is_0_on_the_network_s_grid(target):
    case = without(random_case((12, 11, 6), affine=TURNED), "TTP")
    there = grid.to_network(case, grid.make_grid(case, target))
    assert there.absent == ("TTP",)
    normalised = normalise(there.images, there.brain)
    assert not normalised[..., 1].any()
    assert normalised[..., 0].std() > 0.1


def test_the_facts_of_a_case_leave_out_what_it_lacks(dataset):
    description = profile.describe(dataset)
    assert json.loads(json.dumps(description)) == description
    for case in dataset.cases:
        there = set(CHANNELS) - set(case.absent)
        assert description["cases"][case.name]["percentiles"].keys() == there
        assert description["profiles"][case.name]["covered"].keys() == there
    background = dataclasses.replace(dataset.cases[0], backgrounds=(0.0, -1.0, 0.0))
    assert profile.profile(background, CHANNELS)["background"] == {"TTP": -1.0, "DWI": 0.0}
    norms = profile.norms(description)
    assert norms["cases"] == 6
    for channel in CHANNELS:
        have = [case for case in dataset.cases if channel not in case.absent]
        medians = [description["cases"][case.name]["percentiles"][channel][1] for case in have]
        assert norms["ranges"][f"percentile.1.{channel}"] == [min(medians), max(medians)]
        assert norms["ranges"][f"covered.{channel}"][0] > 0.9


def test_an_absent_channel_raises_no_warning_and_no_number(dataset, phantom_root):
    expected = {"norms": profile.norms(profile.describe(layouts.load(phantom_root)))}
    for case in dataset.cases:
        assert warning.of_images(profile.profile(case, CHANNELS), CHANNELS, expected) == []
        zeros = dataclasses.replace(case, absent=())
        warned = warning.of_images(profile.profile(zeros, CHANNELS), CHANNELS, expected)
        assert len(warned) == len(case.absent)
        row = numbers.row_of(numbers.of_case(case, CHANNELS, case.labels, (), None, defuse3=False))
        assert ("tmax_above_6_s_ml" in row) == ("Tmax" not in case.absent)
        assert row.get("absent", "") == ", ".join(case.absent)
        assert [text.split(",")[0] for text in warning.of_absent(case)] == list(case.absent)


def test_the_unit_of_an_absent_adc_is_not_looked_for():
    case = random_case((12, 11, 6))
    case = dataclasses.replace(case, images=case.images * 0, absent=("ADC",))
    assert adc.in_one_unit(case, ("ADC", "DWI", "T1")).notes == ()
    assert "the median of ADC is 0" in adc.in_one_unit(dataclasses.replace(case, absent=()), ("ADC", "b", "c")).notes[0]


def test_labels_are_checked_in_the_cases_with_both_channels(dataset):
    swapped = [dataclasses.replace(case, labels=np.array([0, 2, 1], np.uint8)[case.labels]) for case in dataset.cases]
    checks.verify_labels(dataset)
    complete = {"Tmax", "DWI"}
    mixed = (swapped if complete & set(case.absent) else dataset.cases for case in dataset.cases)
    kept = tuple(cases[number] for number, cases in enumerate(mixed))
    checks.verify_labels(dataclasses.replace(dataset, cases=kept))
    checks.verify_labels(dataclasses.replace(dataset, cases=tuple(swapped[:3])))
    with pytest.raises(InputError, match="the images contradict the labels"):
        checks.verify_labels(dataclasses.replace(dataset, cases=tuple(swapped)))


def test_a_channel_that_no_training_case_has_is_refused(dataset, small_config):
    plan = prepare(small_config(adversarial=False, **{"data.missing": "zero"}), dataset)
    names = [case.name for case in dataset.cases]
    assert len(training_slices(plan, names[4:]))
    with pytest.raises(InputError, match=r"found no Tmax in any of 2 training cases, expected it in some"):
        training_slices(plan, [names[1], *names[3:]])


def test_pictures_show_the_channels_that_a_case_has(dataset):
    for case in dataset.cases:
        made = pictures.picture(case, {"x": case.labels})
        assert made.absent == case.absent
        held = pictures.viewer_case(made, CHANNELS)
        assert list(held["images"]) == [name for name in CHANNELS if name not in case.absent]
        assert len(held["ranges"]) == 3


def test_tensorboard_shows_the_channels_that_a_case_has(dataset, small_config):
    plan = prepare(small_config(adversarial=False, **{"data.missing": "zero"}), dataset)
    names = [case.name for case in dataset.cases]
    chosen = event_images.choose(plan.slices, dataset.cases, names[:4])

    def forward(variables, batch):
        return np.zeros((*batch.shape[:3], 3))

    drawn = event_images.draw(forward, {}, plan.slices, dataset.cases, chosen)
    widths = [picture.shape[1] // (event_images.ZOOM * 32) for picture in drawn.values()]
    assert widths == [2 + 2, 2 + 2, 1 + 2, 2 + 2]


@pytest.fixture(scope="module")
def prediction(dataset):
    """Of a case without Tmax."""
    case = dataset.cases[0]
    of_classes = numbers.of_classes(case, dataset.classes, case.labels, (case.labels,), {})
    row = tuple(numbers.of_case(case, CHANNELS, case.labels, of_classes, None, defuse3=False))
    task = task_of(None, dataset.classes, CHANNELS)
    notes = tuple(warning.of_absent(case))
    return Prediction(case, task, case.labels, (case.labels,), of_classes, row, (), notes, {"run": "x"})


def test_the_page_of_a_case_says_what_it_lacks(prediction):
    text = patient_page.page(prediction)
    shown = ParsedPage(text)
    assert "Not checked: Tmax, which this case lacks: the networks saw zeros in its place" in shown.text
    assert "absent sequencesTmax" in shown.text
    assert "DWI and TTP: " in shown.text
    assert "Tmax 6 s" not in shown.text
    assert "Colour scale of Tmax" not in text


@pytest.mark.skipif(not browser.installed(), reason="needs chromium and chromedriver")
def test_the_viewer_says_what_a_case_lacks(prediction, tmp_path):
    path = tmp_path / "case.html"
    path.write_text(patient_page.page(prediction))
    with browser.open_browser(tmp_path / "profile") as view:
        view.look(1280, 900, "light")
        view.open(path.as_uri())
        view.wait("return document.getElementById('viewer').dataset.ready")
        captions = view.run("return [...document.querySelectorAll('#viewer figcaption')].map(e => e.textContent)")
        assert captions[0] == "Tmax is absent"
        assert [text.split("window")[0] for text in captions[1:]] == ["TTP, s", "DWI, as stored"]
        drawn = "return [...document.querySelectorAll('#viewer canvas.slice')].map(e => e.toDataURL())"
        first = view.run(drawn)
        assert len(set(first)) == 2
        view.click('[data-part="next-slice"]')
        assert not set(first) & set(view.run(drawn))
        left, top, width, height = view.run(
            "const e = document.querySelector('#viewer canvas.slice'); e.scrollIntoView({block: 'center'});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]"
        )
        view.point(left + width / 2, top + height / 2)
        values = view.run("return document.querySelector('[data-part=values]').textContent")
        assert values.startswith("Tmax is absent · TTP ")
        assert view.log("browser") == []


@pytest.mark.slow
@pytest.mark.usefixtures("reads")
def test_a_run_with_missing_sequences_from_training_to_prediction(dataset, tmp_path, capsys):
    keys = {"data.root": str(dataset.root), "data.missing": "zero", "model.network": "unet", "folds": 2}
    cross_validate(tiny_config("bl2", **keys), tmp_path / "run")
    assert "note: no TTP in 1 of 6 cases (04); zeros stand for it" in capsys.readouterr().out
    # The rule needs Tmax and DWI, and is compared on all cases or not at all.
    assert not (tmp_path / "run" / "clinical_rule.csv").exists()
    text = (tmp_path / "run" / "report.html").read_text()
    ParsedPage(text).assert_names_no_address()
    page.write_report(tmp_path / "again.html", [run_files.read_run(tmp_path / "run")])
    new_cases.predict_folder(tmp_path / "run", dataset.root, tmp_path / "out", new_cases.Options(defuse3=True))
    printed = capsys.readouterr().out
    assert "note: no Tmax in 2 of 6 cases (01, 03); zeros stand for it" in printed
    for case in dataset.cases:
        content = json.loads((tmp_path / "out" / f"{case.name}.json").read_text())
        few, *absent = content["not_checked"]
        assert few == "the run has 6 scored cases; intervals of volumes need 9"
        assert [text.split(",")[0] for text in absent] == list(case.absent)
        assert ("tmax_above_6_s_ml" in content["summary"]) == ("Tmax" not in case.absent)
        assert not any(name in text for name in case.absent for text in content["warnings"])
