"""Files with a right checksum and wrong values in them end in one line, before anything is written."""

import copy
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from isles_jax import predict
from isles_jax.data import layouts, profile
from isles_jax.data.grid import Target, read_target
from isles_jax.runtime.command import InputError
from isles_jax.training import weights

NAN = float("nan")
# Where a value of the header stands, a wrong one, and words of the line.
HEADER = [
    *(("label_values", value, "label_values") for value in ([0, 1], [1, 256], [-1, 2], [1, 1], [1], [1, 2, 3], [])),
    ("classes", ["", "core"], "a class with the name ''"),
    ("classes", ["core", "core"], "the class 'core' twice"),
    ("channels", ["Tmax", "Tmax", "DWI"], "the channels Tmax, Tmax, DWI"),
    ("versions", {"jax": 5}, "a int in jax"),
    *(("grid", value, "grid|mapping|argument") for value in (None, [], "x", {"other": 1})),
    *(
        ("grid.spacing_mm", value, "the spacing")
        for value in ("x", [1, 2], [0, 1, 1], [-1, 1, 1], [1e-9, 1, 1], [1e9, 1, 1], [NAN, 1, 1], [True, 1, 1], {})
    ),
    ("grid.crop", "yes", "the crop 'yes'"),
    *(("grid.axes", value, "the axes") for value in ("XYZ", "RAR", "RA", "ras", 5, None, ["R", "A", "S"])),
    *(("config.predict.flips", value, "predict.flips") for value in ("x", 2, None)),
    *(("config.predict.min_volume_ml", value, "min_volume_ml") for value in ("x", -1, NAN, float("inf"), True)),
    *(("expected", value, "in its content") for value in (None, [], "x")),
    *(("expected.norms", value, "norms") for value in (5, None, {}, {"cases": 3})),
    ("expected.norms.cases", "3", "a str in cases"),
    ("expected.norms.axes", [1], "a int in axes"),
    ("expected.norms.turned_to", "XYZ", "the axes 'XYZ'"),
    ("expected.norms.ranges", {}, "no range of percentile.0.Tmax"),
    *(
        ("expected.norms.ranges.lesion_ml", value, "lesion_ml|two finite ends")
        for value in ("x", [1], [1, 2, 3], [None, 2], ["1", "2"], [NAN, 1], 5)
    ),
    ("expected.least_dice", "x", "a str in least_dice"),
    ("expected.errors", {"core": ["x"]}, "a str in core"),
    ("expected.errors", 5, "a int in errors"),
    ("expected.dice", {"core": "x"}, "a str in core"),
    ("expected.coverage", {"core": []}, "a list in core"),
]  # fmt: skip


def put(content, where, value):
    *above, name = where.split(".")
    for key in above:
        content = content[key]
    content[name] = value


@pytest.fixture(scope="module")
def description(phantom_root):
    return json.loads(json.dumps(profile.describe(layouts.load(phantom_root))))


@pytest.fixture(scope="module")
def original(weights_file, description):
    """The header's object and the tensors of a file with everything in it."""
    content = weights_file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][weights.KEY]
    header = json.loads(header) | {"expected": {"norms": profile.norms(description), "least_dice": 0.5}}
    return header, safetensors.numpy.load(content)


def write(path, header, tensors):
    """Writes such a file with its right checksum."""
    header = {key: value for key, value in header.items() if key != "sha256"}
    header["sha256"] = weights._digest(tensors, header)
    path.write_bytes(safetensors.numpy.save(tensors, {weights.KEY: json.dumps(header)}))


def refusal(run, phantom_root, tmp_path):
    """The line with which the prediction of a case ends; nothing was written."""
    with pytest.raises(InputError) as caught:
        predict.main([f"--workdir={run}", f"--input={phantom_root / '01'}", f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()
    message = str(caught.value)
    assert "\n" not in message
    assert str(run) in message
    return message


def test_the_original_is_used(original, phantom_root, tmp_path):
    write(tmp_path / "w.safetensors", *original)
    arguments = [f"--workdir={tmp_path / 'w.safetensors'}", f"--input={phantom_root / '01'}"]
    predict.main([*arguments, f"--output={tmp_path / 'out'}", "--no-page"])
    assert (tmp_path / "out" / "01.nii.gz").exists()


@pytest.mark.parametrize(("where", "value", "words"), HEADER, ids=[f"{where}={value}" for where, value, _ in HEADER])
def test_wrong_values_in_a_file_of_weights(where, value, words, original, phantom_root, tmp_path):
    header = copy.deepcopy(original[0])
    put(header, where, value)
    path = tmp_path / "w.safetensors"
    write(path, header, original[1])
    line = refusal(path, phantom_root, tmp_path)
    assert any(word in line for word in words.split("|")), line


@pytest.mark.parametrize("value", [np.nan, np.inf, np.int8(1)])
def test_weights_that_are_no_finite_numbers(value, original, phantom_root, tmp_path):
    tensors = {name: tensor.copy() for name, tensor in original[1].items()}
    name = sorted(tensors)[-1]
    if isinstance(value, np.int8):
        tensors[name] = tensors[name].astype(np.int8)
    else:
        tensors[name].flat[0] = value
    write(tmp_path / "w.safetensors", original[0], tensors)
    assert name in refusal(tmp_path / "w.safetensors", phantom_root, tmp_path)


@pytest.mark.parametrize(("where", "value"), [
    ("cases.01.spacing_mm", 5), ("cases.01.spacing_mm", ["a", "b", "c"]), ("cases.01.percentiles.DWI", [1.0]),
    ("cases.01.percentiles.DWI", ["a", "b", "c"]), ("cases.01.volume_ml", 5), ("cases.01.volume_ml.core", "x"),
    ("cases.01", 5), ("profiles.01.covered", 5), ("profiles.01.extent_mm", [1]), ("profiles.01.axes", "XYZ"),
    ("grid", {"axes": "XYZ"}), ("channels", []), ("profiles", 5), ("grid", 5),
])  # fmt: skip
def test_wrong_values_in_the_description_of_the_data(where, value, untrained_run, description, phantom_root, tmp_path):
    run = shutil.copytree(untrained_run[0], tmp_path / "run")
    changed = copy.deepcopy(description) | {"grid": {"axes": "RAS"}}
    put(changed, where, value)
    (run / "data.json").write_text(json.dumps(changed))
    refusal(run, phantom_root, tmp_path)


def test_the_grid_of_a_run_that_has_begun(tmp_path):
    assert read_target(tmp_path, {}) == Target()
    assert read_target(tmp_path, {"spacing_mm": [1, 2.5, 3], "crop": True}) == Target([1, 2.5, 3], True)
    for record in (None, 5, [], {"other": 1}, {"axes": "XYZ"}, {"spacing_mm": [0, 1, 1]}):
        with pytest.raises(InputError, match=f"{tmp_path}: found "):
            read_target(tmp_path, record)
