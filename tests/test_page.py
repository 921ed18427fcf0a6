import dataclasses
import html.parser
import json
import re

import pytest
import report_runs

from isles_jax.reporting import page, pictures, results, run_sections
from isles_jax.runtime.command import InputError

pytestmark = pytest.mark.usefixtures("few_resamples")


class Page(html.parser.HTMLParser):
    """Tags, attributes and whether every element that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.attributes, self.tags, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "link", "input", "br", "img"):
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, text):
        self.text += text


def test_page_is_well_formed_and_names_no_address(report_file):
    text = report_file.read_text()
    parsed = Page(text)
    for name, value in parsed.attributes:
        if name in ("src", "href", "xlink:href", "action", "poster", "data"):
            assert value.startswith("data:"), value
        assert not name.startswith("on")
    assert not re.search(
        r"(?i)https?:|//[a-z]|@import|url\(", re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]*", "", text)
    )
    assert {"img", "iframe", "object", "embed"}.isdisjoint(parsed.tags)


def test_page_shows_what_it_promises(report_file, finished_runs):
    text = Page(report_file.read_text()).text
    for words in ("Dice", "clinical rule", "0.881", "other data", "digital phantom", "Differences from proposed",
                  "Best: case", "Worst: case", "Bland-Altman", "Learning curves", "Where the runs differ",
                  "optimizer.learning_rate", "6 cases, 3-fold"):  # fmt: skip
        assert words in text, words
    for run in finished_runs:
        for row in run.rows:
            assert f"{row['dice']:.3f}" in text
    assert report_file.stat().st_size < 3e6


def test_versions_stand_beside_the_settings(finished_runs):
    text = run_sections.configuration(
        results.make_study(finished_runs), [{"jax": "0.10.2", "flax": "0.12.8"}, {"jax": "0.11.2", "flax": "0.12.8"}]
    )
    differing, every = text.split("Every key")
    assert "Trained with flax 0.12.8; this page" in every
    assert "version of jax" in differing
    assert "0.10.2" in differing
    assert "version of flax" not in differing
    assert "This page was made by" in run_sections.configuration(results.make_study(finished_runs), [{}, {}])


def test_a_name_from_outside_cannot_become_markup(finished_runs, report_dataset, tmp_path):
    evil = '</script><script>alert(1)</script><b onclick="x">&\''
    old = report_dataset.cases[0].name

    def renamed(rows):
        return [{**row, "case": evil if row["case"] == old else row["case"]} for row in rows]

    run = finished_runs[0]
    changed = results.Run(run.workdir, evil, {**run.config, "note": evil}, run.data, run.folds, renamed(run.rows),
                          renamed(run.rule), run.curves)  # fmt: skip
    picture = pictures.make(report_dataset, {evil: run}, [])[0]
    shown = pictures.Picture(evil, *[getattr(picture, field.name) for field in dataclasses.fields(picture)[1:]])
    text = page.page(results.make_study([changed]), [shown], {"best": evil}, [{evil: evil}])
    parsed = Page(text)
    assert parsed.tags.count("script") == 2
    assert "b" not in parsed.tags
    assert not any(name.startswith("on") for name, _ in parsed.attributes)
    assert evil in parsed.text


def test_page_without_the_images_says_so(finished_runs, tmp_path):
    moved = json.loads(json.dumps(finished_runs[0].config))
    moved["data"]["root"] = str(tmp_path / "gone")
    run = results.Run(
        finished_runs[0].workdir,
        "bl1",
        moved,
        *[getattr(finished_runs[0], n) for n in ("data", "folds", "rows", "rule", "curves")],
    )
    page.write_report(tmp_path / "page.html", [run])
    assert "no pictures of cases" in (tmp_path / "page.html").read_text()


def test_a_missing_prediction_is_an_input_error(report_dataset, report_folds, phantom_root, tmp_path):
    workdir = report_runs.make_run(
        tmp_path / "run", report_dataset, report_folds, report_runs.CELLS["bl1"], 1, phantom_root
    )
    (workdir / "fold_1" / "predictions" / f"{report_folds[1][0]}.nii.gz").unlink()
    with pytest.raises(InputError, match=f"{report_folds[1][0]}.nii.gz"):
        page.write_report(tmp_path / "page.html", [results.read_run(workdir)])
    assert not (tmp_path / "page.html").exists()
