"""Whole runs on a tiny phantom: systems train, resume, predict and score.

ALL_SYSTEMS=1 pytest tests/test_end_to_end.py: all eight, not the simplest and the proposed one alone. The README's
command for Table 1, which has a test, trains all eight in any case.
"""

import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import SYSTEMS, TINY, files_in, leaves, tiny_config

from isles_jax import export, main, predict
from isles_jax.cross_validation import cross_validate
from isles_jax.data.layouts import load
from isles_jax.runtime.command import InputError
from isles_jax.scoring import scores
from isles_jax.training import checkpoint


def state_of(directory):
    """Every number of a fold's newest checkpoint, by name."""
    from isles_jax.training.state import init_state
    from isles_jax.training.task import Task

    meta = checkpoint.read_meta(directory)
    like = init_state(Task.read(meta), 1, 0)
    return leaves(checkpoint.restore(directory, like)[0])


NAMES = SYSTEMS if "ALL_SYSTEMS" in os.environ else ("bl1", "proposed")


# The simplest system is the daily check of a whole run.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "bl1" else []) for name in NAMES]
)
def test_a_system_trains_resumes_predicts_and_scores(name, tmp_path, phantom_root, capsys):
    run = tmp_path / "run"
    settings = tiny_config(name, **{"data.root": str(phantom_root)})
    table = cross_validate(settings, run)
    dataset = load(phantom_root, penumbra=1, core=2)

    # The workdir holds what it promises.
    assert {"config.json", "folds.json", "data.json", "DONE", "cases.csv", "summary.json"} <= files_in(run).keys()
    folds = json.loads((run / "folds.json").read_text())
    assert sorted(name for fold in folds for name in fold) == [case.name for case in dataset.cases]
    for fold, held_out in enumerate(folds):
        assert sorted(p.name for p in (run / f"fold_{fold}" / "predictions").iterdir()) == sorted(
            f"{case}.nii.gz" for case in held_out
        )
        metrics = [json.loads(line) for line in (run / f"fold_{fold}" / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in metrics] == list(range(1, len(metrics) + 1))
        _, adversarial, overlap = SYSTEMS[name]
        assert ("critic/core" in metrics[0], "lovasz" in metrics[0]) == (adversarial, overlap)
    for case in dataset.cases:
        [path] = run.glob(f"fold_*/predictions/{case.name}.nii.gz")
        image = nib.load(path)
        assert image.shape == case.labels.shape
        np.testing.assert_array_equal(image.affine, case.affine)
        assert image.get_data_dtype() == np.uint8
    calibration, voxels = json.loads((run / "calibration.json").read_text()), sum(c.brain.sum() for c in dataset.cases)
    assert (calibration["cases"], sum(calibration["confidence"]["voxels"])) == (len(dataset.cases), voxels)
    rows = scores.read_cases_csv(run / "cases.csv")
    assert {(row["case"], row["class"]) for row in rows} >= {
        (c.name, w) for c in dataset.cases for w in dataset.classes
    }
    assert "data: the built-in phantom" in table
    assert max(map(len, table.split("\n\nreport: ")[0].splitlines())) <= 80
    assert table.splitlines()[-2:] == [
        f"report: {run / 'report.html'}",
        "next: isles-jax train --config.data.root=DIR --workdir=runs/NAME",
    ]

    # As if killed after the first step of fold 0: the same command ends with the same bits.
    before, expected = state_of(run / "fold_0" / "checkpoints"), {k: p.read_bytes() for k, p in files_in(run).items()}
    last = checkpoint.newest(run / "fold_0" / "checkpoints")
    assert checkpoint.steps(run / "fold_0" / "checkpoints") == [last - 1, last]
    shutil.rmtree(run / "fold_0" / "checkpoints" / str(last))
    shutil.rmtree(run / "fold_0" / "predictions")
    for path in ("DONE", "cases.csv", "fold_0/DONE"):
        (run / path).unlink()
    capsys.readouterr()
    assert cross_validate(settings, run) == table
    assert f"steps {last - 1} to {last}" in capsys.readouterr().out
    after = state_of(run / "fold_0" / "checkpoints")
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)
    for key, path in files_in(run).items():
        if path.suffix in (".gz", ".csv") or key == "summary.json" or key.endswith("metrics.jsonl"):
            assert path.read_bytes() == expected[key], key

    # Again: the table, and nothing is trained or written.
    times = {key: path.stat().st_mtime_ns for key, path in files_in(run).items()}
    assert cross_validate(settings, run) == table
    assert {key: path.stat().st_mtime_ns for key, path in files_in(run).items()} == times


@pytest.mark.slow
def test_the_phantom_is_made_where_no_data_are_given_and_two_runs_are_the_same(tmp_path, capsys):
    keys = {"data.phantom.cases": 4, "data.phantom.shape": (32, 32, 6), "fold": 1}
    states = []
    for run in (tmp_path / "a", tmp_path / "b"):
        printed = cross_validate(tiny_config("bl6", **keys), run)
        missing, following = printed.splitlines()
        assert missing == "folds still to be run: 0; the last one makes the table"
        assert following == f"next: isles-jax train --workdir={run}"
        assert "not patients" in capsys.readouterr().out
        states.append(state_of(run / "fold_1" / "checkpoints"))
    for key in states[0]:
        np.testing.assert_array_equal(states[0][key], states[1][key], err_msg=key)
    # The other fold may be run by another call, and another configuration is refused.
    with pytest.raises(InputError, match=r"holds another run: seed is 0 there and 1 here"):
        cross_validate(tiny_config("bl6", seed=1, **keys), tmp_path / "a")
    assert cross_validate(tiny_config("bl6", **(keys | {"fold": 0})), tmp_path / "a").count("\n") > 5


@pytest.mark.slow
def test_the_workdir_alone_resumes_a_run(tmp_path, phantom_root, capsys):
    run = tmp_path / "run"
    flags = [f"--config.{key}={value}" for key, value in TINY.items()]
    flags += [f"--config.data.root={phantom_root}"]
    main.main(["--config=configs/bl1.py", *flags, "--config.fold=0", f"--workdir={run}"])
    assert not (run / "fold_1").exists()
    capsys.readouterr()
    main.main([f"--workdir={run}", "--config.train.parallel=shard_map"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"{run}: the run goes on with its own settings, those of config.json\n")
    assert "fold 0:" not in printed
    assert (run / "fold_1" / "DONE").exists()
    assert (run / "DONE").exists()
    with pytest.raises(InputError, match=r"holds another run: train\.batch_size is \d+ there and 6 here"):
        main.main([f"--workdir={run}", "--config.train.batch_size=6"])
    with pytest.raises(InputError, match=r"holds another run: .*name is 'bl1' there and 'proposed' here"):
        main.main([f"--workdir={run}", "--config=configs/proposed.py"])
    # A finished run needs neither its settings nor its data to print its table.
    capsys.readouterr()
    stored = json.loads((run / "config.json").read_text())
    stored["data"]["root"] = str(tmp_path / "moved")
    (run / "config.json").write_text(json.dumps(stored))
    (run / "DONE").write_bytes(b"")
    main.main([f"--workdir={run}"])
    assert "bl1" in capsys.readouterr().out
    (run / "DONE").unlink()
    with pytest.raises(InputError, match="moved: does not exist"):
        main.main([f"--workdir={run}"])


@pytest.mark.slow
def test_a_run_of_the_u_net_and_another_optimiser(tmp_path, phantom_root, capsys):
    """It trains with every loss and critic, predicts, is exported, and is never compared with the paper."""
    keys = {"data.root": str(phantom_root), "model.network": "unet", "optimizer.name": "sgd"}
    run = tmp_path / "run"
    table = cross_validate(tiny_config("proposed", **keys), run)
    assert "paper" not in table
    assert "paper*" not in (run / "report.html").read_text()
    assert checkpoint.read_meta(run / "fold_0" / "checkpoints")["size"] == [32, 32]
    predict.main([f"--workdir={run}", f"--input={phantom_root}", f"--output={tmp_path / 'out'}", "--no-page"])
    file = tmp_path / "unet.safetensors"
    export.main([f"--workdir={run}", f"--output={file}"])
    predict.main([f"--workdir={file}", f"--input={phantom_root}", f"--output={tmp_path / 'again'}", "--no-page"])
    written = sorted((tmp_path / "out").glob("*.nii.gz"))
    assert len(written) == 6
    for path in written:
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    capsys.readouterr()
    with pytest.raises(InputError, match=r"model\.network is 'unet' there and 'sumnet' here"):
        cross_validate(tiny_config("proposed", **(keys | {"model.network": "sumnet"})), run)


def test_spes_layouts_of_uneven_oblique_cases_run(tmp_path, phantom_root, capsys):
    """Cropped to uneven shapes, turned in space, and with separate label files for penumbra and core."""
    turn = np.array([[0, -1.0, 0.2, 5], [1, 0.1, 0, -7], [0.1, 0, 1, 9], [0, 0, 0, 1]])
    expected = {}
    for number, folder in enumerate(sorted(path for path in phantom_root.iterdir() if path.is_dir())):
        for path in sorted(folder.rglob("*.nii")):
            image = nib.load(path)
            data = np.asarray(image.dataobj)[number:, : 32 - number % 3]
            target = tmp_path / "data" / folder.name / path.parent.name
            target.mkdir(parents=True, exist_ok=True)
            affine = turn @ image.affine
            expected[folder.name] = data.shape, affine
            if ".OT." not in path.name:
                nib.save(nib.Nifti1Image(data, affine), target / path.name)
                continue
            for word, mask in (("penumbralabel", data > 0), ("corelabel", data == 2)):
                nib.save(
                    nib.Nifti1Image(mask.astype(np.uint8), affine), target / path.name.replace(".OT.", f".{word}.")
                )
    (tmp_path / "data" / "notes.dcm").touch()
    settings = tiny_config("bl1", **{"data.root": str(tmp_path / "data")})
    assert "clinical rule" in cross_validate(settings, tmp_path / "run").lower()
    said = re.findall("^note: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert "notes.dcm" in " ".join(said)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["notes"] == said
    assert "notes.dcm" in (tmp_path / "run" / "report.html").read_text()
    written = sorted(tmp_path.glob("run/fold_*/predictions/*.nii.gz"))
    assert len(written) == 6
    for path in written:
        image = nib.load(path)
        shape, affine = expected[Path(path.stem).stem]
        assert image.shape == shape
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "channels", "foreground"),
    [
        ("proposed", ("Tmax", "DWI"), {"lesion": 1}),
        ("bl6", ("FLAIR",), {"core": 2, "penumbra": 1, "old": 3, "bleeding": 7}),
    ],
)
def test_nnunet_folders_of_other_channels_and_classes(tmp_path, phantom_root, system, channels, foreground):
    """Trained, predicted again from imagesTs with the folds averaged, scored."""
    root, run = tmp_path / "Dataset001", tmp_path / "run"
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True)
    values = list(foreground.values())
    dataset = load(phantom_root, penumbra=1, core=2)
    for case in dataset.cases:
        for number in range(len(channels)):
            image = nib.Nifti1Image(case.images[..., number], case.affine)
            nib.save(image, root / "imagesTr" / f"{case.name}_{number:04d}.nii.gz")
            nib.save(image, root / "imagesTs" / f"new{case.name}_{number:04d}.nii.gz")
        labels = np.where(case.labels > 0, values[0], 0).astype(np.uint8)
        for number, value in enumerate(values[1:], start=1):
            labels[3 * number : 3 * number + 3, 10:14, 2:5] = value
        nib.save(nib.Nifti1Image(labels, case.affine), root / "labelsTr" / f"{case.name}.nii.gz")
    description = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0} | foreground, "numTraining": 6, "file_ending": ".nii.gz",
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(description))
    cross_validate(tiny_config(system, **{"data.root": str(root)}), run)
    rows = scores.read_cases_csv(run / "cases.csv")
    whole = {"whole lesion"} if len(foreground) > 1 else set()
    assert {row["class"] for row in rows} == foreground.keys() | whole
    assert not (run / "clinical_rule.csv").exists()
    critics = {
        name for name in json.loads((run / "fold_0" / "metrics.jsonl").read_text().splitlines()[0]) if "critic/" in name
    }
    assert len(critics) == (system == "proposed")

    predict.main([f"--workdir={run}", f"--input={root / 'imagesTs'}", f"--output={tmp_path / 'out'}"])
    written = sorted((tmp_path / "out").glob("*.nii.gz"))
    assert [path.name for path in written] == [f"new{case.name}.nii.gz" for case in dataset.cases]
    for path in written:
        assert set(np.unique(np.asarray(nib.load(path).dataobj))) <= {0, *values}
