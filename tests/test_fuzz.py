"""Random damage to every kind of file that is read: it ends in the original data, or in one line that names the file.

FUZZ=20000 in the environment makes as many mutations over all kinds; the seed is fixed.
"""

import copy
import gzip
import json
import os
import shutil

import numpy as np
import pytest
from helpers import leaves, nnunet_folder, result_of, save_volume, volumes

from isles_jax.data import layouts, nifti
from isles_jax.scoring import run_files, statistics, table
from isles_jax.training import checkpoint, weights

# Each test makes one share of the mutations.
SHARES = 8
COUNT = int(os.environ.get("FUZZ", 300 * SHARES)) // SHARES
MEMORY_LIMIT = 2 << 30
# What a damaged or hostile JSON file may hold in place of a value.
ODD = (None, True, -1, 1e39, 10**30, "", "²", "=1", "a\nb", "x" * 300, [], {}, [["a"]], {"a": {"b": []}}, float("nan"))


def mutate_bytes(content, rng):
    """Flips bits, or overwrites, removes, doubles or inserts a piece, or cuts the end."""
    changed = bytearray(content)
    start, length = int(rng.integers(len(content))), int(rng.integers(1, 40))
    kind = rng.integers(6)
    if kind == 0:
        for place in rng.integers(0, 8 * len(content), rng.integers(1, 4)):
            changed[place // 8] ^= 1 << (place % 8)
    elif kind == 1:
        changed[start : start + length] = rng.bytes(length)
    elif kind == 2:
        del changed[start : start + length]
    elif kind == 3:
        changed[start:start] = changed[start : start + length]
    elif kind == 4:
        changed[start:start] = rng.bytes(length)
    else:
        del changed[start:]
    return bytes(changed)


def mutate_header(content, rng):
    """Overwrites a few bytes among the first 400, where a volume's header is."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        start, length = int(rng.integers(400)), int(rng.choice([1, 2, 4, 8]))
        changed[start : start + length] = rng.bytes(length)
    return bytes(changed)


def mutate_json(value, rng):
    """Replaces, removes or doubles one value somewhere inside."""
    value = copy.deepcopy(value)
    places = []

    def visit(node):
        if isinstance(node, dict | list):
            for key in node if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                visit(node[key])

    visit(value)
    node, key = places[rng.integers(len(places))]
    kind = rng.integers(3)
    if kind == 0:
        node[key] = ODD[rng.integers(len(ODD))]
    elif kind == 1:
        del node[key]
    elif isinstance(node, list):
        node.append(node[key])
    else:
        node[str(ODD[rng.integers(len(ODD))])] = node[key]
    return value


def mutate_text(content, rng):
    """A damaged JSON or other text file: structure or bytes."""
    if rng.random() < 0.5:
        try:
            return json.dumps(mutate_json(json.loads(content), rng)).encode()
        except ValueError:
            pass
    return mutate_bytes(content, rng)


def fuzz(path, mutate, read, check, seed):
    """Reads `path` with COUNT mutations, restores it, and checks each content that was accepted."""
    content, rng, accepted = path.read_bytes(), np.random.default_rng(seed), 0
    for _ in range(COUNT):
        path.write_bytes(mutate(content, rng))
        found = result_of(read)
        if found is not None:
            accepted += 1
            check(found)
    path.write_bytes(content)
    check(read())
    print(f"{path.name}: {COUNT} mutations, {accepted} read, {COUNT - accepted} refused")
    return accepted


@pytest.fixture(autouse=True)
def bounded_memory():
    """The peak memory of the process does not rise by more than MEMORY_LIMIT, even if it peaked high before."""
    before = _peak()
    yield
    print(f"peak memory {_peak() / 1e6:.0f} MB")
    assert _peak() < before + MEMORY_LIMIT


def _peak():
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def check_case(case):
    assert case.images.dtype == np.float32
    assert np.isfinite(case.images).all()
    assert np.isfinite(case.affine).all()
    assert case.voxel_ml > 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_volumes(tmp_path):
    path = tmp_path / "a.nii"
    save_volume(path, volumes()["Tmax"])
    # Without a checksum, other voxels cannot be told from the original ones.
    for seed, mutate in enumerate((mutate_bytes, mutate_header)):
        fuzz(path, mutate, lambda: nifti.read_images("a", [path], ["DWI"]), check_case, seed)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_compressed_volumes(tmp_path):
    path = tmp_path / "a.nii.gz"
    save_volume(path, volumes()["Tmax"])
    original = nifti.read_images("a", [path], ["DWI"])

    def same(case):
        np.testing.assert_array_equal(case.images, original.images)
        np.testing.assert_array_equal(case.affine, original.affine)
        assert case.header == original.header

    fuzz(path, mutate_bytes, lambda: nifti.read_images("a", [path], ["DWI"]), same, 2)

    def recompress(content, rng):
        return gzip.compress(mutate_header(gzip.decompress(content), rng), 1)

    fuzz(path, recompress, lambda: nifti.read_images("a", [path], ["DWI"]), check_case, 3)


def test_dataset_json(tmp_path):
    root = nnunet_folder(tmp_path / "set")

    def read():
        return layouts.load(root, penumbra=1, core=2)

    fuzz(root / "dataset.json", mutate_text, read, lambda dataset: [check_case(case) for case in dataset.cases], 4)


@pytest.fixture
def run_folder(finished_workdirs, tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    return shutil.copytree(finished_workdirs["proposed"], tmp_path / "run")


FILES = ("config.json", "folds.json", "data.json", "cases.csv", "clinical_rule.csv", "DONE")


def fuzz_files(folder, names, read, check, seed, monkeypatch):
    """Divides the mutations among several files."""
    monkeypatch.setattr("test_fuzz.COUNT", -(-COUNT // len(names)))
    for number, name in enumerate(names):
        fuzz(folder / name, mutate_text, read, check, [seed, number])


def test_files_of_a_finished_run(run_folder, monkeypatch):
    """With the checksums in DONE, nothing but the original is read."""
    (run_folder / "summary.json").write_text("{}")
    run_files.seal(run_folder)
    original = run_files.read_run(run_folder)

    def same(run):
        assert run == original

    fuzz_files(run_folder, (*FILES, "summary.json"), lambda: run_files.read_run(run_folder), same, 5, monkeypatch)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_files_of_a_run_of_an_earlier_version(run_folder, monkeypatch):
    """Without checksums, a table is printed or refused."""
    rows = run_files.read_run(run_folder).rows

    def read():
        run = run_files.read_run(run_folder)
        return run, table.table([run])

    def complete(found):
        assert len(found[0].rows) == len(rows)

    names = (*FILES[:-1], "fold_0/metrics.jsonl", "fold_0/held_out.jsonl")
    fuzz_files(run_folder, names, read, complete, 6, monkeypatch)


def test_manifest_of_a_checkpoint(untrained_run, tmp_path):
    folder = shutil.copytree(untrained_run[0] / "fold_0" / "checkpoints", tmp_path / "checkpoints")
    path = folder / "0" / checkpoint.MANIFEST
    expected = json.loads(path.read_text())

    def read():
        return checkpoint.newest(folder)

    def same(step):
        assert step == 0
        assert json.loads(path.read_text()) == expected

    fuzz(path, mutate_text, read, same, 7)


def test_weights(weights_file, tmp_path):
    path = shutil.copy(weights_file, tmp_path / "x.safetensors")
    original = weights.load(path)

    def same(trained):
        assert leaves(trained.folds).keys() == leaves(original.folds).keys()
        for name, value in leaves(trained.folds).items():
            np.testing.assert_array_equal(value, leaves(original.folds)[name])
        assert trained.task.record() == original.task.record()

    fuzz(path, mutate_bytes, lambda: weights.load(path), same, 8)
    size = 8 + int.from_bytes(path.read_bytes()[:8], "little")

    def in_header(content, rng):
        return mutate_bytes(content[:size], rng) + content[size:]

    fuzz(path, in_header, lambda: weights.load(path), same, 9)
