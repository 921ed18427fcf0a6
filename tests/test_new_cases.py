"""New cases from the command to the files: numbers, warnings, maps, and what a killed command leaves."""

import csv
import dataclasses
import datetime
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
from helpers import ROOT, random_case, save_case

from isles_jax import __version__, export, new_cases, predict
from isles_jax.data import layouts, profile
from isles_jax.prediction import expected, inference
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError
from isles_jax.scoring import run_files, scores
from isles_jax.training import weights
from isles_jax.training.networks import make_forward


@pytest.fixture(scope="module")
def scored_run(untrained_run, phantom_root, tmp_path_factory):
    """The finished folds of `untrained_run` with a description of the data and with scores of 12 cases."""
    run = tmp_path_factory.mktemp("scored") / "run"
    run.mkdir()
    for fold in (0, 1):
        (run / f"fold_{fold}").symlink_to(untrained_run[0] / f"fold_{fold}")
    files.write_json(run / "data.json", profile.describe(layouts.load(phantom_root)))
    labels, rows = np.ones((4, 4, 4), np.uint8), []
    labels[:2] = 2
    for number in range(12):
        rows += scores.score_case(f"c{number}", 0, labels, labels, (9, 9, 9), ("penumbra", "core"))
    scores.write_cases_csv(run / "cases.csv", rows)
    return run


def rows_of(output):
    with (output / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_files_of_a_case(scored_run, untrained_run, forward, phantom_root, tmp_path, capsys):
    out = tmp_path / "out"
    predict.main([f"--workdir={scored_run}", f"--input={phantom_root}", f"--output={out}", "--spread", "--defuse3"])
    printed = capsys.readouterr().out
    dataset, rows = layouts.load(phantom_root), rows_of(out)
    assert [row["case"] for row in rows] == [case.name for case in dataset.cases]
    for case, row in zip(dataset.cases, rows, strict=True):
        labels = np.asarray(nib.load(out / f"{case.name}.nii.gz").dataobj)
        for name, value in (("penumbra", 5), ("core", 9)):
            assert float(row[f"{name}_ml"]) == pytest.approx((labels == value).sum() * case.voxel_ml, abs=1e-6)
            alone = [
                inference.predict_case(forward, [v], case, untrained_run[1]).argmax(-1) for v in untrained_run[2][:2]
            ]
            volumes = [float((mask == {"penumbra": 1, "core": 2}[name]).sum() * case.voxel_ml) for mask in alone]
            found = [float(row[f"{name}_{which}_ml"]) for which in ("least", "most")]
            np.testing.assert_allclose(found, sorted(volumes), atol=1e-5)
            assert float(row[f"{name}_cross_validation_dice"]) == 1
            # The twelve held-out volumes were exact.
            assert row[f"{name}_low_ml"] == row[f"{name}_high_ml"] == row[f"{name}_ml"]
        content = json.loads((out / f"{case.name}.json").read_text())
        texts = {n: f"{v:.6f}" if isinstance(v, float) else str(v or "") for n, v in content["summary"].items()}
        assert texts | {"lesions": str(content["summary"]["lesions"])} == row
        assert "; ".join(content["warnings"]) == row["warnings"]
        for text in content["warnings"]:
            assert f"warning: {case.name}: {text}\n" in printed
        assert content["inputs_sha256"] == {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in case.files if "OT" not in file.name
        }
        assert (content["origin"]["folds"], content["origin"]["isles_jax"]) == ("0 (0 steps), 1 (0 steps)", __version__)
        maps = np.stack([inference.predict_case(forward, [v], case, untrained_run[1]) for v in untrained_run[2][:2]])
        spread = nib.load(out / "spread" / f"{case.name}.nii.gz")
        np.testing.assert_allclose(spread.get_fdata(), (np.abs(maps[0] - maps[1]) / 2).max(-1), atol=1e-5)
        np.testing.assert_array_equal(spread.affine, case.affine)


def test_a_file_of_weights_leads_to_the_same_numbers(scored_run, phantom_root, tmp_path):
    """The .safetensors file holds what is needed, and no name of a case."""
    file = tmp_path / "folds.safetensors"
    export.main([f"--workdir={scored_run}", f"--output={file}"])
    known = expected.read(files.location(scored_run))
    del known["held_out"]
    assert weights.load(file).expected == json.loads(json.dumps(known))
    written = []
    for run in (scored_run, file):
        out = tmp_path / f"from {run.name}"
        predict.main([f"--workdir={run}", f"--input={phantom_root / '01'}", f"--output={out}"])
        written.append([(out / name).read_bytes() for name in ("01.nii.gz", "01.json", "summary.csv")])
    assert written[0] == written[1]


def predicted(run, images, out, *flags):
    """(content of 01.json, row of summary.csv, page) of a new case."""
    predict.main([f"--workdir={run}", f"--input={images}", f"--output={out}", *flags])
    return json.loads((out / "01.json").read_text()), rows_of(out)[0], (out / "01.html").read_text()


def test_networks_of_a_phantom_say_so_and_know_nothing_of_a_patients_errors(scored_run, phantom_root, tmp_path, capsys):
    shutil.copytree(phantom_root / "01", tmp_path / "clinic" / "01")
    on_itself = predicted(scored_run, phantom_root / "01", tmp_path / "a")
    on_patient = predicted(scored_run, tmp_path / "clinic" / "01", tmp_path / "b")
    printed = capsys.readouterr().out
    assert printed.count("note: the networks were trained on a digital phantom, not patients\n") == 2
    for (content, row, page), known in ((on_itself, True), (on_patient, False)):
        assert (content["trained_on"], row["trained_on"]) == ("a digital phantom, not patients", "phantom")
        assert "These networks were trained on a digital phantom, not patients" in page
        assert ("so no interval and no score is shown" in page) == (not known)
        columns = [f"core_{name}" for name in ("low_ml", "high_ml", "coverage", "cross_validation_dice")]
        assert [bool(row[column]) for column in columns] == [known] * 4
        assert bool(content["intervals"]) == ("90% interval" in page) == ("Dice in cross-validation" in page) == known
    # Networks of patients say nothing of a phantom. Without a description, the settings say where the data were.
    description = json.loads((scored_run / "data.json").read_text())
    shutil.copytree(scored_run, tmp_path / "run", symlinks=True)
    files.write_json(tmp_path / "run" / "data.json", description | {"phantom": False})
    content, row, page = predicted(tmp_path / "run", tmp_path / "clinic" / "01", tmp_path / "c")
    assert (content["trained_on"], row["trained_on"], bool(content["intervals"])) == ("patients", "patients", True)
    assert "digital phantom" not in page + capsys.readouterr().out
    (tmp_path / "run" / "data.json").unlink()
    assert predicted(tmp_path / "run", tmp_path / "clinic" / "01", tmp_path / "d")[1]["trained_on"] == "phantom"


def test_a_late_arrival_on_both_sides_is_a_warning_and_the_date_is_only_on_the_page(scored_run, phantom_root, tmp_path):
    shutil.copytree(phantom_root / "01", tmp_path / "clinic" / "01")
    [path] = (tmp_path / "clinic" / "01").glob("*Tmax*/*.nii")
    image = nib.load(path)
    values = image.get_fdata()
    nib.save(nib.Nifti1Image(np.where(values > 0, values + 6, 0), image.affine, image.header), path)
    days = {datetime.date.today().isoformat()}
    content, row, page = predicted(scored_run, tmp_path / "clinic", tmp_path / "out")
    days.add(datetime.date.today().isoformat())
    [warned] = [text for text in content["warnings"] if text.startswith("Tmax is above 6 s in ")]
    assert warned in row["warnings"]
    assert warned in page
    assert any(f"Predicted on {day}. Voxels of 6 x 6 x 14 mm." in page for day in days)
    assert not any(day in json.dumps(content) + str(row) for day in days)


def test_a_case_that_training_has_seen_is_named(scored_run, phantom_root, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(scored_run, run, symlinks=True)
    files.write_json(run / "folds.json", [["01", "02"], ["03", "04"], ["05", "06"]])
    # The files count, and not their names or places.
    shutil.copytree(phantom_root / "03", tmp_path / "clinic" / "01")
    known = "this case is among the training data of the run; "
    for flags, words in (
        ((), "the network of fold 0 was trained on it, so the prediction is better than that of a new case"),
        (("--folds=1",), "fold 1, which predicts it, held it out"),
    ):
        content, _, page = predicted(run, tmp_path / "clinic", tmp_path / str(len(flags)), *flags)
        assert content["seen_in_training"].startswith(known + words)
        assert f"Note: {known}{words}" in page
        assert f"note: 01: {known}{words}" in capsys.readouterr().out
    for path in list((tmp_path / "clinic").rglob("*.nii")):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(image.get_fdata() * 1.01, image.affine, image.header), path)
    assert "seen_in_training" not in predicted(run, tmp_path / "clinic", tmp_path / "new")[0]


def test_probabilities_at_the_temperature_of_the_run(scored_run, phantom_root, tmp_path):
    """On request, and only where it gains; the labels stay."""
    run = tmp_path / "run"
    shutil.copytree(scored_run, run, symlinks=True)
    images = phantom_root / "01"
    predicted(run, images, tmp_path / "plain", "--probabilities")

    def calibrated(temperature, out):
        files.write_json(run / "calibration.json", {"cases": 12, "temperature": temperature})
        return predicted(run, images, tmp_path / out, "--probabilities", "--calibrated")

    gain = {"value": 2.0, "nll": [0.3, 0.2], "error": [0.1, 0.05], "pays": True}
    calibrated(gain, "calibrated")
    plain, changed = (
        nib.load(tmp_path / name / "probabilities" / "01.nii.gz").get_fdata() for name in ("plain", "calibrated")
    )
    roots = np.sqrt(plain)
    np.testing.assert_allclose(changed, roots / roots.sum(-1, keepdims=True), atol=1e-3)
    labels = [(tmp_path / name / "01.nii.gz").read_bytes() for name in ("plain", "calibrated")]
    assert labels[0] == labels[1]
    file = tmp_path / "folds.safetensors"
    export.main([f"--workdir={run}", f"--output={file}"])
    predicted(file, images, tmp_path / "exported", "--probabilities", "--calibrated")
    maps = [(tmp_path / name / "probabilities" / "01.nii.gz").read_bytes() for name in ("calibrated", "exported")]
    assert maps[0] == maps[1]
    for temperature, words in (
        (None, "found no temperature in .*run, expected a run that this version has scored"),
        (gain | {"pays": False}, "found a calibration error of 0.1000 without and 0.0500 with .*, expected a gain"),
        (gain | {"value": "2"}, "found a str in value"),
        (gain | {"value": 0.0}, "found the temperature 0.0, expected what was written"),
        (gain | {"error": [0.1]}, "found the temperature 2.0, expected what was written"),
    ):
        with pytest.raises(InputError, match=words):
            calibrated(temperature, "none")
    with pytest.raises(InputError, match="--calibrated: found no --probabilities beside it"):
        predicted(run, images, tmp_path / "none", "--calibrated")
    assert not (tmp_path / "none").exists()


def test_strict_writes_only_the_cases_without_a_warning(scored_run, phantom_root, tmp_path, monkeypatch):
    warned = {"02", "04"}
    monkeypatch.setattr(
        new_cases.warning, "of_prediction", lambda labels, case, *rest: ["too odd"] * (case.name in warned)
    )
    monkeypatch.setattr(new_cases.warning, "of_delay", lambda *_: ([], []))
    base = [f"--workdir={scored_run}", f"--input={phantom_root}"]
    with pytest.raises(InputError, match=r"^02: too odd\n04: too odd$"):
        predict.main([*base, f"--output={tmp_path / 'some'}", "--strict"])
    kept = ["01", "03", "05", "06"]
    assert [row["case"] for row in rows_of(tmp_path / "some")] == kept
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == sorted(
        [
            ".lock",
            ".predicted",
            "summary.csv",
            *(f"{name}.{ending}" for name in kept for ending in ("html", "json", "nii.gz")),
        ]
    )
    warned |= set(kept)
    with pytest.raises(InputError, match=r"^01: too odd\n02"):
        predict.main([*base, f"--output={tmp_path / 'none'}", "--strict"])
    assert sorted(path.name for path in (tmp_path / "none").iterdir()) == [".lock", ".predicted"]
    predict.main([*base, f"--output={tmp_path / 'all'}"])
    assert {row["warnings"] for row in rows_of(tmp_path / "all")} == {"too odd"}


def test_overwriting_leaves_no_file_of_an_earlier_prediction(scored_run, phantom_root, tmp_path, monkeypatch):
    out, warned = tmp_path / "out", set()
    monkeypatch.setattr(
        new_cases.warning, "of_prediction", lambda labels, case, *rest: ["too odd"] * (case.name in warned)
    )
    monkeypatch.setattr(new_cases.warning, "of_delay", lambda *_: ([], []))
    command = [f"--workdir={scored_run}", f"--input={phantom_root}", f"--output={out}"]
    predict.main([*command, "--spread", "--probabilities"])
    names = [row["case"] for row in rows_of(out)]
    (out / "corrected.nii.gz").write_bytes(b"of another case")
    predict.main([*command, "--overwrite", "--no-page"])
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    expected = [f"{name}.{ending}" for name in names for ending in ("json", "nii.gz")]
    assert found == sorted([*expected, ".lock", ".predicted", "summary.csv", "corrected.nii.gz"])
    warned |= set(names)
    with pytest.raises(InputError, match="too odd"):
        predict.main([*command, "--overwrite", "--strict"])
    left = sorted(path.name for path in out.rglob("*.*"))
    assert left == [".lock", ".predicted", "corrected.nii.gz"], "it belongs to another case"


def test_changed_scores_of_a_finished_run_are_refused(finished_workdirs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_workdirs["bl1"], run)
    run_files.seal(files.location(run))
    assert "errors" in expected.read(files.location(run))
    lines = (run / "cases.csv").read_text().splitlines(keepends=True)
    (run / "cases.csv").write_text("".join(lines[:-3]))
    with pytest.raises(InputError, match=r"cases.csv: found other content than when the run ended"):
        expected.read(files.location(run))


def test_flags_that_a_run_cannot_fulfil(untrained_run, phantom_root, tmp_path):
    base = [f"--workdir={untrained_run[0]}", f"--input={phantom_root}", f"--output={tmp_path / 'out'}"]
    with pytest.raises(InputError, match=r"--spread: found one fold in .*, expected two or more"):
        predict.main([*base, "--folds=0", "--spread"])
    trained = weights.load(untrained_run[0])
    file = files.location(tmp_path / "lesion.safetensors")
    weights.save(file, dataclasses.replace(trained, task=dataclasses.replace(trained.task, classes=("stroke", "core"))))
    with pytest.raises(
        InputError, match=r"--defuse3: found the classes stroke, core in .*, expected core and penumbra"
    ):
        predict.main([f"--workdir={file}", *base[1:], "--defuse3"])
    assert not (tmp_path / "out").exists()


def test_names_of_any_kind(scored_run, tmp_path):
    names = ["=cmd|calc", "a b", 'quote\'s "two"', "<script>alert(1)</script>".replace("/", "∕"), "-x", "@y"]
    for name in names:
        save_case(tmp_path / "in" / name, random_case((32, 32, 3)))
    predict.main([f"--workdir={scored_run}", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"])
    assert sorted(row["case"].removeprefix("'") for row in rows_of(tmp_path / "out")) == sorted(names)
    assert not [row for row in rows_of(tmp_path / "out") if row["case"].startswith(("=", "-", "@"))]
    for name in names:
        assert json.loads((tmp_path / "out" / f"{name}.json").read_text())["summary"]["case"] == name
        assert nib.load(tmp_path / "out" / f"{name}.nii.gz").shape == (32, 32, 3)


def test_several_cases_share_one_compilation(scored_run, untrained_run, forward, phantom_root, tmp_path):
    make_forward.cache_clear()
    predict.main([f"--workdir={scored_run}", f"--input={phantom_root}", f"--output={tmp_path / 'out'}"])
    fresh = make_forward(untrained_run[1].predictor())
    assert fresh._cache_size() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow
def test_a_killed_command_leaves_whole_files(scored_run, tmp_path, number):
    for index in range(40):
        save_case(tmp_path / "in" / f"case{index:02d}", random_case((32, 32, 8), index))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "isles_jax.predict", f"--workdir={scored_run}", f"--input={tmp_path / 'in'}"]
    process = subprocess.Popen([*command, f"--output={out}"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while len(list(out.glob("case*.json"))) < 3 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    process.communicate(timeout=600)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    written = [path for path in out.iterdir() if not path.name.startswith(".")]
    assert len([path for path in written if path.suffix == ".json"]) >= 3
    assert not (out / "summary.csv").exists()
    for path in written:
        if path.suffix == ".json":
            assert json.loads(path.read_text())["summary"]["case"] == path.stem
            assert (out / f"{path.stem}.nii.gz").exists()
        elif path.suffix == ".html":
            assert path.read_text().endswith("</html>\n")
        else:
            assert np.asarray(nib.load(path).dataobj).shape == (32, 32, 8)
    if number == signal.SIGTERM:
        assert not [path for path in out.iterdir() if path.name.endswith(files.PART)]
