"""Finished runs without a training, for the tests of everything that reads them; a plugin of conftest.py."""

import dataclasses
import json

import numpy as np
import pytest

from isles_jax import config
from isles_jax.data import folds, layouts, profile
from isles_jax.data.nifti import write_labels
from isles_jax.pages import page
from isles_jax.runtime import files
from isles_jax.scoring import clinical, run_files, scores, statistics

# The design's cells of the runs.
CELLS = {"bl1": (False, False, False), "proposed": (True, True, True)}


def make_run(workdir, dataset, split, cell, seed, root):
    """A finished workdir without a training: the truth, moved a little, is the prediction."""
    made = config.baseline(**dict(zip(("residual", "adversarial", "overlap"), cell, strict=True)))
    made.data.root = str(root)
    files.write_json(workdir / "config.json", config.to_dict(config.resolve(made)))
    files.write_json(workdir / "folds.json", split)
    files.write_json(workdir / "data.json", profile.describe(dataset))
    cases, rows, rule = {case.name: case for case in dataset.cases}, [], []
    for fold, names in enumerate(split):
        (workdir / f"fold_{fold}" / "predictions").mkdir(parents=True)
        lines = [
            {"step": 10 * n, "loss": 1 / n + 0.1 * fold, "critic/core": None if n == 2 else 0.5} for n in range(1, 9)
        ]
        (workdir / f"fold_{fold}" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        dice = [{"step": 8 * n, "dice/core": 0.09 * n, "dice/penumbra": 0.05 * n + 0.1 * fold} for n in range(1, 11)]
        (workdir / f"fold_{fold}" / "held_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in dice))
        for number, name in enumerate(names):
            case = cases[name]
            prediction = np.roll(case.labels, (seed + number) % 3, 1)
            write_labels(
                workdir / f"fold_{fold}" / "predictions" / f"{name}.nii.gz", prediction, case, dataset.label_values
            )
            rows += scores.score_case(name, fold, prediction, case.labels, case.spacing_mm, dataset.classes)
            by_rule = clinical.clinical_rule(case, 1.5)
            rule += scores.score_case(name, fold, by_rule, case.labels, case.spacing_mm, dataset.classes)
    scores.write_cases_csv(workdir / "cases.csv", rows)
    scores.write_cases_csv(workdir / "clinical_rule.csv", rule)
    return workdir


def on_the_papers_data(run, width=64, cases=30, loss=(), **data):
    """A run as it would be on the data of the paper's Table 1, or with other networks, weights of losses or data."""
    rows = [row | {"case": f"{row['case']}-{n}"} for n in range(cases // 6) for row in run.rows]
    made = config.complete(config.to_dict(run.config))
    made.model.width = width
    made.loss.update(dict(loss))
    return dataclasses.replace(run, rows=rows, rule=[], config=made, data=run.data | {"phantom": False} | data)


@pytest.fixture(scope="module")
def few_resamples():
    """Intervals are tested elsewhere; here they need not be precise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 300)
        yield


@pytest.fixture(scope="session")
def report_dataset(phantom_root):
    return layouts.load(phantom_root, penumbra=1, core=2)


@pytest.fixture(scope="session")
def report_folds(report_dataset):
    return folds.make_folds([case.name for case in report_dataset.cases], 3, 0)


@pytest.fixture(scope="session")
def finished_workdirs(tmp_path_factory, phantom_root, report_dataset, report_folds):
    base = tmp_path_factory.mktemp("runs")
    return {
        name: make_run(base / name, report_dataset, report_folds, cell, seed, phantom_root)
        for seed, (name, cell) in enumerate(CELLS.items(), 1)
    }


@pytest.fixture(scope="session")
def finished_runs(finished_workdirs):
    return [run_files.read_run(workdir) for workdir in finished_workdirs.values()]


@pytest.fixture(scope="module")
def report_file(tmp_path_factory, few_resamples, finished_runs):
    path = tmp_path_factory.mktemp("page") / "report.html"
    page.write_report(path, finished_runs)
    return path
