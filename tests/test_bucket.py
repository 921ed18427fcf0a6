"""A whole run in a bucket: a folder of this machine that is reached as gs://, as no bucket is at hand."""

import importlib.util
import re
import shutil

import pytest
from helpers import files_in, tiny_config

from experiments import rows, study
from isles_jax import predict
from isles_jax.cross_validation import cross_validate
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError
from isles_jax.scoring import run_files
from isles_jax.scoring.table import dice_table


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_in_a_folder(bucket, tmp_path):
    settings = tiny_config("bl1", **{"data.phantom.cases": 4, "data.phantom.shape": (32, 32, 6)})
    text = cross_validate(settings, "gs://bucket/runs/one")
    local = cross_validate(settings, tmp_path / "local")
    assert local.replace(str(tmp_path / "local"), "gs://bucket/runs/one") == text
    ours, theirs = (
        # The names of Orbax's files and of a call's record are random.
        {name: path for name, path in files_in(run).items() if not re.search(r"checkpoints/|^calls/", name)}
        for run in (bucket / "runs" / "one", tmp_path / "local")
    )
    assert ours.keys() == theirs.keys() - {".lock"}
    assert len([name for name in ours if name.startswith("phantom/")]) == 17
    for name, path in ours.items():
        if path.suffix in (".csv", ".gz", ".nii", ".jsonl") or path.name in ("data.json", "summary.json", "folds.json"):
            assert path.read_bytes() == theirs[name].read_bytes(), name
    # The report has the pictures, which are made of the phantom and the predictions.
    assert (bucket / "runs" / "one" / "report.html").read_text().count("data:image/png") > 4
    assert not any(name.endswith("-part") for name in files_in(bucket))

    # It goes on, and is refused, like any other.
    for name in ("DONE", "fold_1/DONE"):
        (bucket / "runs" / "one" / name).unlink()
    [cut, *_] = sorted((bucket / "runs" / "one" / "fold_1" / "predictions").iterdir())
    before = cut.read_bytes()
    cut.unlink()
    assert cross_validate(settings, "gs://bucket/runs/one") == text
    assert cut.read_bytes() == before
    other = tiny_config("bl1", **{"seed": 1, "data.phantom.cases": 4, "data.phantom.shape": (32, 32, 6)})
    with pytest.raises(InputError, match="holds another run: seed is 0 there and 1 here"):
        cross_validate(other, "gs://bucket/runs/one")
    assert text.startswith(dice_table(run_files.read_run("gs://bucket/runs/one")) + "\n")

    # Table 1 there: what other machines have finished is collected.
    folder = files.location("gs://bucket/table")
    with pytest.raises(InputError, match=r"^gs://bucket/table: a bucket, found no --config.data.root, expected one$"):
        rows.run_rows({"bl1": settings}, folder)
    shutil.copytree(bucket / "runs" / "one", bucket / "table" / "seed_0" / "bl1")
    settings.data.root = str(tmp_path / "local" / "phantom")
    study.finish(rows.run_rows({"bl1": settings}, folder), folder, "table1", "bl1")
    assert (bucket / "table" / "table1.csv").read_text().count("\nbl1,") == 3

    # New patients from a bucket to a bucket.
    where = ["--workdir=gs://bucket/runs/one", "--input=gs://bucket/runs/one/phantom", "--output=gs://bucket/new"]
    predict.main(where)
    written = [f"{n:02d}.{ending}" for n in range(1, 5) for ending in ("html", "json", "nii.gz")]
    assert sorted(path.name for path in (bucket / "new").iterdir()) == [".predicted", *written, "summary.csv"]


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^gs://bucket/run: found no package gcsfs, expected the extra gcs.*$"):
        cross_validate(tiny_config("bl1"), "gs://bucket/run")
