"""Every explained heading and number has its meaning in one place, for those who point and for those who cannot."""

import dataclasses
import html
import re

import numpy as np
import pytest
from helpers import ROOT, random_case

from isles_jax import metrics
from isles_jax.pages import terms
from isles_jax.prediction import numbers

pytestmark = pytest.mark.usefixtures("few_resamples")


def explained(page):
    """What the page explains on pointing, and what its list of meanings says: {(text, meaning)} of each."""
    pointed = re.findall(r'<(abbr|button) [^>]*title="([^"]*)"[^>]*>(.*?)</\1>', page)
    listed = re.findall(r"<div><dt>(.*?)</dt><dd>(.*?)</dd></div>", re.search(r'<dl class="terms">(.*?)</dl>', page)[1])
    return {(text, meaning) for _, meaning, text in pointed}, listed


def test_what_pointing_explains_in_a_report_stands_in_the_fold_of_notes_once(report_file):
    text = report_file.read_text()
    pointed, listed = explained(text)
    assert set(listed) == pointed
    assert len(listed) == len(pointed) > 10
    assert all(meaning for _, meaning in listed)
    fold = re.search(r"<summary>How to read these numbers</summary>(.*?)</details>", text)[1]
    assert '<dl class="terms">' in fold


def test_every_measure_in_a_table_is_explained_with_its_unit_and_what_is_better(report_file):
    _, listed = explained(report_file.read_text())
    meanings = dict(listed)
    for measure in metrics.MEASURES:
        if not (measure.in_means or measure.in_cases):
            continue
        meaning = html.unescape(meanings["Dice" if measure.name == "dice" else measure.heading])
        assert meaning == measure.explanation
        assert (f"in {measure.unit}" if measure.unit else "from 0 to 1") in meaning
        assert meaning.endswith(f"; {measure.better} is better") == bool(measure.better)


def test_the_page_on_scores_defines_every_column():
    page = (ROOT / "docs" / "scores.md").read_text()
    section = page.split("## The columns of cases.csv")[1].split("\n## ")[0]
    defined = [
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall("`(.*?)`", row)
    ]
    assert sorted(defined) == sorted(measure.name for measure in metrics.MEASURES)


def test_every_number_of_a_new_case_has_a_meaning_on_its_page_and_in_the_documentation():
    case = random_case((6, 5, 4))
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[1:3, 1:3, 1:3] = 1
    labels[3, 3, 2] = 2
    one = dataclasses.replace(case, absent=("TTP",))
    classes = numbers.of_classes(one, ("penumbra", "core"), labels, (labels, labels), {})
    found = numbers.of_case(one, ("Tmax", "TTP", "DWI"), labels, classes, 1.0, defuse3=True)
    found += numbers.of_command({"flips": True, "min_volume_ml": 0.0}, [], on_phantom=False)
    titles = {number.title for number in found if not number.of} - {"case", "warnings"}
    assert len(titles) > 15
    for title in titles:
        assert re.fullmatch(r'<abbr title=".{12,}">.*</abbr>', terms.term(title)), title
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "patient.md").read_text()))
    columns = {number.column.replace(number.of, "CLASS") if number.of else number.column for number in found}
    # One line of the page stands for each of these groups.
    columns -= {column for column in columns if re.match("defuse3_|tmax_above_(6|8|10)_", column)}
    assert columns <= documented
