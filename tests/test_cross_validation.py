"""What stops a run before it starts, or in its course."""

import shutil

import jax
import pytest
from etils import epath
from helpers import tiny_config
from isles_folder import isles_2022

from isles_jax.cross_validation import cross_validate, refuse_changed
from isles_jax.data import layouts, profile
from isles_jax.runtime import files
from isles_jax.runtime.command import InputError


@pytest.mark.slow
def test_changed_data_are_refused(tmp_path, phantom_root):
    shutil.copytree(phantom_root, tmp_path / "data")
    settings = tiny_config("bl1", **{"data.root": str(tmp_path / "data"), "fold": 0})
    cross_validate(settings, tmp_path / "run")
    [path, *_] = sorted((tmp_path / "data").rglob("*MR_DWI*.nii"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (tmp_path / "run" / "fold_0" / "DONE").unlink()
    with pytest.raises(InputError, match="the data changed"):
        cross_validate(settings, tmp_path / "run")


def test_sites_may_become_known_and_may_not_change(tmp_path):
    isles_2022(tmp_path / "data", flair=False)
    path = epath.Path(tmp_path / "data.json")

    def description(site):
        names = [f"sub-strokecase000{number}" for number in (1, 2, 3)]
        rows = "".join(f"{name}\t{site}\n" for name in names) if site else ""
        (tmp_path / "data" / "participants.tsv").write_text(f"participant_id\tsite\n{rows}")
        dataset = layouts.load(tmp_path / "data")
        return dataset, profile.describe(dataset)

    files.write_json(path, description("")[1])
    refuse_changed(*description("bern"), path)
    files.write_json(path, description("bern")[1])
    refuse_changed(*description("bern"), path)
    refuse_changed(*description(""), path)
    with pytest.raises(InputError, match="the data changed since this run began"):
        refuse_changed(*description("graz"), path)


def test_one_image_in_two_patients_is_named(tmp_path):
    root = isles_2022(tmp_path, subjects=(("1", 2), ("2", 1), ("3", 1), ("4", 1)), flair=False)
    names = ["sub-strokecase1_ses-0001", "sub-strokecase1_ses-0002", "sub-strokecase2_ses-0001"]

    def image(name, word):
        return next(root.rglob(f"{name}_{word}.nii.gz"))

    def notes():
        return profile.copies(profile.describe(layouts.load(root)))

    # Masks of two cases may be the same, and so may the scans of a patient.
    shutil.copy(image(names[0], "msk"), image(names[2], "msk"))
    shutil.copy(image(names[0], "dwi"), image(names[1], "dwi"))
    assert notes() == ()
    shutil.copy(image(names[1], "dwi"), image(names[2], "dwi"))
    shutil.copy(image(names[0], "adc"), image(names[2], "adc"))
    both, all_three = sorted(notes(), key=len)
    assert both.startswith(f"the same image in {names[0]} and {names[2]}: ")
    assert all_three.startswith(f"the same image in {' and '.join(names)}: ")
    # Nothing is trained on a case without labels, and nothing is scored.
    image(names[2], "msk").unlink()
    assert notes() == ()


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(tmp_path, phantom_root, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    settings = tiny_config("bl1", **{"data.root": str(phantom_root), "train.batch_size": 12})
    with pytest.raises(InputError, match="found 12, expected a multiple of the 8 devices"):
        cross_validate(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_few_labelled_cases_are_refused_before_anything_is_written(tmp_path, phantom_root):
    shutil.copytree(phantom_root, tmp_path / "data")
    for path in sorted((tmp_path / "data").rglob("*.OT.*.nii"))[1:]:
        path.unlink()
    with pytest.raises(InputError, match="found 1 labelled cases, expected one for each of 2"):
        cross_validate(tiny_config("bl1", **{"data.root": str(tmp_path / "data")}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, phantom_root):
    settings = tiny_config("bl1", **{"data.root": str(phantom_root), "optimizer.learning_rate": 1e30, "fold": 0})
    with pytest.raises(InputError, match=r"not finite in steps \d+ to \d+: .*cross_entropy"):
        cross_validate(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "fold_0" / "DONE").exists()
