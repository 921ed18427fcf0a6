import dataclasses
import hashlib
import html
import importlib.util
import json
import re
import shutil

import pytest
import report_runs
from helpers import ParsedPage

from isles_jax.config import complete, to_dict
from isles_jax.pages import page, pictures, run_sections, score_sections
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError
from isles_jax.scoring import comparison, run_files

pytestmark = pytest.mark.usefixtures("few_resamples")


def test_page_is_well_formed_and_names_no_address(report_file):
    parsed = ParsedPage(report_file.read_text())
    parsed.assert_names_no_address()


def test_page_shows_what_it_promises(report_file, finished_runs):
    text = ParsedPage(report_file.read_text()).text
    for words in ("Dice", "clinical rule", "digital phantom", "Differences from proposed",
                  "Best: case", "Worst: case", "Bland-Altman", "Learning curves", "Where the runs differ",
                  "optimizer.learning_rate", "6 cases, 3-fold"):  # fmt: skip
        assert words in text, words
    for run in finished_runs:
        for row in run.rows:
            assert f"{row['dice']:.3f}" in text
    assert report_file.stat().st_size < 3e6


def test_curves_are_grouped_and_held_out_dice_comes_first(finished_runs):
    study = comparison.make_study(finished_runs[:1])
    text = run_sections.learning_curves(study)
    order = [
        "Held-out cases during the training",
        "Dice of penumbra, held-out slices",
        "Nothing is chosen",
        "<h3>Losses",
        "loss over training steps",
        "<h3>Critics",
        "critic/core over training steps",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert "<h3>Learning rate" not in text
    assert "<title>fold 1, step 80: 0.6</title>" in text
    # A run of an earlier version has the other curves, and a metric that no group knows is shown.
    lines = [{"step": 1, "loss": 1.0, "other": 0.5}]
    old = dataclasses.replace(finished_runs[0], held_out=[[], []], curves=[lines, lines])
    text = run_sections.learning_curves(comparison.make_study([old]))
    assert "Held-out" not in text
    assert text.index("loss over training") < text.index("<h3>Others") < text.index("other over training")


def test_contents_lead_to_every_section_in_the_order_result_pictures_rest(report_file):
    text = report_file.read_text()
    parsed = ParsedPage(text)
    linked = [value[1:] for name, value in parsed.attributes if name == "href" and value.startswith("#")]
    headings = re.findall('<h2 id="(s[0-9]+)"[^>]*>(.*?)</h2>', text)
    assert linked == [place for place, _ in headings]
    assert len(linked) == text.count("<h2") == len(set(linked)) > 8
    titles = [title for _, title in headings]
    assert titles[:4] == ["Dice", "Best, median and worst case", "Every slice", "Differences from proposed"]
    assert titles[-1] == "Configuration and versions"
    assert re.search("<details><summary>How to read these numbers</summary><ul class=.notes.>.*?</ul><dl", text)


def test_captions_speak_of_intervals_and_limits_only_where_there_are_cases_enough(finished_runs):
    def text(cases):
        names = [name for fold in finished_runs[0].folds for name in fold][:cases]
        runs = [
            dataclasses.replace(run, rows=[row for row in run.rows if row["case"] in names], rule=[])
            for run in finished_runs
        ]
        study = comparison.make_study(runs)
        return score_sections.dice(study) + score_sections.differences(study) + score_sections.volumes(study)

    assert text(6).count("[95% interval of the mean]") == 2 * 2  # of two tables, above them and for screen readers
    assert "The bar is the mean with its 95% interval." in text(6)
    assert "the dashed lines are the 95% limits of agreement" in text(6)
    assert "95% interval" not in text(5)
    assert "dashed" not in text(5)
    assert "The upright mark is the mean." in text(5)


def test_the_papers_table_stands_beside_its_data_and_networks_alone(finished_runs):
    def shown(*runs):
        text = score_sections.dice(comparison.make_study(runs))
        found = [number for number in ("0.881", "0.835") if f"paper* {number}" in text]
        said = ["paper" in text.replace('class="paper"', ""), "Table 1" in text, "diamond" in text]
        assert said == [bool(found)] * 3
        return found

    bl1, proposed = finished_runs
    on_the_papers_data = report_runs.on_the_papers_data
    assert shown(on_the_papers_data(bl1), on_the_papers_data(proposed)) == ["0.881", "0.835"]
    assert shown(on_the_papers_data(bl1), on_the_papers_data(proposed, width=32)) == ["0.835"]
    assert shown(bl1, proposed) == []
    others = [{"phantom": True}, {"channels": ["DWI", "ADC", "FLAIR"]}, {"width": 32}, {"cases": 24}]
    others += [{"loss": loss} for loss in ({"dice": 1.0}, {"cross_entropy": 0.0}, {"adversarial": 0.0})]
    for other in others:
        assert shown(on_the_papers_data(proposed, **other)) == []


def test_versions_stand_beside_the_settings(finished_runs):
    text = run_sections.configuration(
        comparison.make_study(finished_runs),
        {"bl1": {"jax": "0.10.2", "flax": "0.12.8"}, "proposed": {"jax": "0.11.2", "flax": "0.12.8"}},
    )
    differing, every = text.split("Every key</summary>")
    assert "Trained with flax 0.12.8; this page" in every
    assert "version of jax" in differing
    assert "0.10.2" in differing
    assert "version of flax" not in differing
    assert "This page was made by" in run_sections.configuration(
        comparison.make_study(finished_runs), {"bl1": {}, "proposed": {}}
    )


def test_the_notes_on_the_data_stand_in_the_report(finished_workdirs, tmp_path):
    runs = []
    for number, workdir in enumerate(finished_workdirs.values()):
        folder = shutil.copytree(workdir, tmp_path / workdir.name)
        notes = ["not read: <b>.dcm; DICOM", f"said of run {number}"]
        (folder / "summary.json").write_text(json.dumps({"cases": 6, "notes": notes}))
        runs.append(run_files.read_run(folder))
    section = run_sections.data_notes(comparison.make_study(runs))
    assert re.findall("<li>(.*?)</li>", section) == [
        "not read: &lt;b&gt;.dcm; DICOM", "said of run 0", "said of run 1",
    ]  # fmt: skip
    page.write_report(tmp_path / "report.html", runs)
    # The heading has an address for the table of contents.
    assert section.partition("</h2>")[2] in (tmp_path / "report.html").read_text()
    (folder / "summary.json").write_text('{"cases": 6}')
    assert run_sections.data_notes(comparison.make_study([run_files.read_run(folder)])) == ""
    (folder / "summary.json").write_text('{"notes": [3]}')
    with pytest.raises(InputError, match=r"summary\.json: found a int in notes, expected the file as it was written"):
        run_files.read_run(folder)


def test_what_the_predictions_are_not_is_said_before_any_number(finished_runs, tmp_path):
    note = "fold 1 is predicted from step 4: step 6 is damaged"
    run = dataclasses.replace(finished_runs[1], notes=[note])
    page.write_report(tmp_path / "report.html", [run])
    head, _, rest = (tmp_path / "report.html").read_text().partition("<h2")
    assert f'<p class="banner">{run.name}: {note}.</p>' in head
    assert note in rest


def test_settings_that_differ_from_the_defaults_come_first(finished_runs):
    def listed(**keys):
        config = complete(to_dict(finished_runs[1].config))
        config.update_from_flattened_dict(keys)
        run = dataclasses.replace(finished_runs[1], config=config)
        text = run_sections.configuration(comparison.make_study([run]), {"proposed": {}})
        return re.search('<ul class="notes">(.*?)</ul>', text)[1]

    assert listed() == "<li>proposed: the defaults.</li>"
    changed = listed(**{"train.epochs": 7, "train.init": "/home/somebody/other", "loss.dice": 0.5})
    assert "train.epochs 7 (default 50)" in changed
    assert html.escape("train.init 'other' (default '')") in changed
    assert "loss.dice 0.5 (default 0.0)" in changed
    assert changed.count("(default") == 3


def test_a_name_from_outside_cannot_become_markup(finished_runs, report_dataset, tmp_path):
    evil = '</script><script>alert(1)</script><b onclick="x">&\''
    old = report_dataset.cases[0].name

    def renamed(rows):
        return [{**row, "case": evil if row["case"] == old else row["case"]} for row in rows]

    run = finished_runs[0]
    config = run.config.copy_and_resolve_references()
    config.note = evil
    changed = dataclasses.replace(
        run, name=evil, config=config, rows=renamed(run.rows), rule=renamed(run.rule), calibration=None
    )
    picture = pictures.make(report_dataset, {evil: run}, [])[0]
    shown = pictures.Picture(evil, *[getattr(picture, field.name) for field in dataclasses.fields(picture)[1:]])
    text = page.page(comparison.make_study([changed]), [shown], {"best": evil}, {evil: {evil: evil}}, [evil])
    parsed = ParsedPage(text)
    assert parsed.tags.count("script") == 2
    assert "b" not in parsed.tags
    assert not any(name.startswith("on") for name, _ in parsed.attributes)
    assert evil in parsed.text


def test_page_without_the_images_says_so(finished_runs, tmp_path):
    moved = finished_runs[0].config.copy_and_resolve_references()
    moved.data.root = str(tmp_path / "gone")
    page.write_report(tmp_path / "page.html", [dataclasses.replace(finished_runs[0], config=moved)])
    assert "no pictures of cases" in (tmp_path / "page.html").read_text()


def reported(run, root, tmp_path, capsys):
    """The page of a run whose data lie in `root`, its text and what the command said on stderr."""
    config = run.config.copy_and_resolve_references()
    config.data.root = str(root)
    page.write_report(tmp_path / "page.html", [dataclasses.replace(run, config=config)])
    return ParsedPage((tmp_path / "page.html").read_text()), capsys.readouterr().err


def choices(path):
    """The results that the viewer of a page offers."""
    [select] = re.findall(r'<select data-part="system".*?</select>', path.read_text())
    return re.findall(r"<option[^>]*>([^<]*)</option>", select)


def exchange(root, run):
    """The folders of two patients change places; each keeps its name."""
    (root / "01").rename(root / "x")
    (root / "02").rename(root / "01")
    (root / "x").rename(root / "02")
    return ["01", "02"], "2 of 6 cases have other files than the run read"


def change(root, run):
    [path] = root.glob("03/*MR_DWI*/*.nii")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return ["03"], "1 of 6 cases have other files than the run read"


def remove(root, run):
    shutil.rmtree(root / "04")
    return ["04"], "1 of 6 cases are gone from the data"


def remove_best(root, run):
    [best, *_] = page._best_median_worst(run).values()
    shutil.rmtree(root / best)
    return [best], "1 of 6 cases are gone from the data"


def rename_all(root, run):
    for path in list(root.iterdir()):
        if path.is_dir():
            path.rename(root / f"new{path.name}")
    return [f"0{number}" for number in range(1, 7)], "6 of 6 cases are gone from the data"


@pytest.mark.parametrize("harm", [exchange, change, remove, remove_best, rename_all])
def test_pictures_of_changed_cases_are_left_out(finished_runs, phantom_root, tmp_path, capsys, monkeypatch, harm):
    root = shutil.copytree(phantom_root, tmp_path / "data")
    names, sentence = harm(root, finished_runs[0])
    drawn, make = [], pictures.picture
    monkeypatch.setattr(pictures, "picture", lambda case, *rest: drawn.append(case.name) or make(case, *rest))
    parsed, said = reported(finished_runs[0], root, tmp_path, capsys)
    sentence = f"{sentence}; pictures of these cases are left out: {', '.join(names)}."
    assert sentence in parsed.text
    assert said == f"note: {sentence}\n"
    assert sorted(drawn) == sorted({f"0{number}" for number in range(1, 7)} - set(names))
    # Without a case that its threshold was fitted on, the clinical rule would be another one.
    if drawn:
        assert choices(tmp_path / "page.html") == ["bl1", "no result"]
    for row in finished_runs[0].rows:
        assert f"{row['dice']:.3f}" in parsed.text


def test_the_clinical_rule_is_a_choice_if_all_cases_are_there(finished_runs, phantom_root, tmp_path, capsys):
    page_file = tmp_path / "page.html"
    reported(finished_runs[0], phantom_root, tmp_path, capsys)
    assert choices(page_file) == ["bl1", "clinical rule", "no result"]
    reported(dataclasses.replace(finished_runs[0], rule=[]), phantom_root, tmp_path, capsys)
    assert choices(page_file) == ["bl1", "no result"]


def test_data_that_cannot_be_read_any_more_are_no_end_of_the_report(finished_runs, phantom_root, tmp_path, capsys):
    root = shutil.copytree(phantom_root, tmp_path / "data")
    [path] = root.glob("03/*MR_DWI*/*.nii")
    path.write_bytes(b"damaged")
    for place, words in ((root, path.name), ("gs://bucket/data", "gcsfs"), ("s3://bucket", "s3://bucket")):
        if words == "gcsfs" and importlib.util.find_spec("gcsfs"):
            continue
        parsed, said = reported(finished_runs[0], place, tmp_path, capsys)
        assert "The data of the run can no longer be read, so the page has no pictures" in parsed.text
        assert words in said
        assert str(tmp_path) not in parsed.text


def test_a_missing_prediction_is_an_input_error(report_dataset, report_folds, phantom_root, tmp_path):
    workdir = report_runs.make_run(
        tmp_path / "run", report_dataset, report_folds, report_runs.CELLS["bl1"], 1, phantom_root
    )
    (workdir / "fold_1" / "predictions" / f"{report_folds[1][0]}.nii.gz").unlink()
    with pytest.raises(InputError, match=f"{report_folds[1][0]}.nii.gz"):
        page.write_report(tmp_path / "page.html", [run_files.read_run(workdir)])
    assert not (tmp_path / "page.html").exists()


def test_page_names_the_folder_of_the_data_and_not_its_path(report_file, finished_runs):
    text = report_file.read_text()
    root = finished_runs[0].config.data.root
    assert root.startswith("/")
    assert root not in text
    assert str(finished_runs[0].workdir.parent) not in text
    assert run_files.name_of(root) == root.rpartition("/")[2] == "phantom"


def test_every_table_has_a_caption_and_headers_of_rows_and_columns(report_file):
    tables = re.findall(r"<table>.*?</table>", report_file.read_text())
    assert len(tables) == 8
    for table in tables:
        assert re.match(r"<table><caption><span>[^<]{20,}</span></caption><thead>", table)
        head, body = table.split("</thead>")
        assert "<td" not in head
        for row in re.findall(r"<tr>(.*?)</tr>", body):
            assert row.startswith('<th scope="row">')
            assert len(re.findall(r"<t[hd]", row)) == len(re.findall(r'<th scope="col"', head))


def write_checkpoint(run, fold, step, damaged=False):
    """A checkpoint with meta alone."""
    folder = run.workdir / f"fold_{fold}" / "checkpoints" / str(step)
    content = json.dumps({"versions": {"jax": "0.0.1"}})
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "metadata").write_text(content)
    checksum = hashlib.sha256(b"other" if damaged else content.encode()).hexdigest()
    files.write_json(folder / "manifest.json", {"meta/metadata": checksum})


def test_damaged_last_checkpoints_are_named(report_dataset, report_folds, phantom_root, tmp_path):
    workdir = report_runs.make_run(
        tmp_path / "run", report_dataset, report_folds, report_runs.CELLS["bl1"], 1, phantom_root
    )
    run = run_files.read_run(workdir)
    assert [line["step"] for line in run.curves[0]][-1] == 80
    write_checkpoint(run, 0, 80)
    write_checkpoint(run, 1, 40)
    write_checkpoint(run, 1, 80, damaged=True)
    write_checkpoint(run, 2, 80, damaged=True)
    page.write_report(tmp_path / "page.html", [run])
    text = (tmp_path / "page.html").read_text()
    assert "fold 0:" not in text
    assert "bl1, fold 1: the checkpoint of step 80 is damaged or missing; " in text
    assert "uses the one of step 40." in text
    assert "bl1, fold 2: no checkpoint is whole" in text
    assert "Trained with jax 0.0.1" in text
