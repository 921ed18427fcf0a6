"""The trees and commands of docs/data.md for data of one's own: each is made, checked and read as the page says."""

import re
import shlex

import numpy as np
import pytest
from helpers import OBLIQUE, ROOT, save_volume
from isles_folder import images

from isles_jax import cli
from isles_jax.data import layouts
from isles_jax.runtime.command import InputError

PAGE = (ROOT / "docs" / "data.md").read_text()
# Each tree of files with the commands after it.
TREES = re.findall(r"```\n((?:\S+\.nii\.gz\n)+)```\n+```bash\n(.*?)```", PAGE, re.DOTALL)
NNUNET = re.search(r"```\n(Dataset015_mine/.*?)```\n+```json\n(.*?)```\n+```bash\n(.*?)```", PAGE, re.DOTALL)
CASES = range(1, 5)


def make(root, paths):
    """Writes a volume for each path and each of several cases, with the case's number in the place of 01."""
    for number in CASES:
        for path in paths:
            # Each session is another scan.
            there = images(("dwi", "adc", "flair"), 10 * number + ("ses-2" in path))
            word = next((word for word in ("dwi", "adc", "flair") if word in path.rsplit("/", 1)[-1]), "OT")
            volume = few(there["OT"]) if word == "OT" else there[word]
            save_volume(root / re.sub(r"(p|sub-)01", rf"\g<1>{number:02d}", path), volume, OBLIQUE)


def few(labels):
    """Labels of a small part of the lesion, so that they cover too little for a brain."""
    kept = np.zeros_like(labels)
    kept[tuple(np.argwhere(labels)[:6].T)] = 1
    return kept


def test_the_page_has_three_trees_of_own_data_and_that_of_nnunet():
    assert [tree.split("/")[0] for tree, _ in TREES] == ["mydata", "flat", "bids"]
    assert NNUNET


@pytest.mark.parametrize("number", range(len(TREES)))
def test_a_tree_becomes_a_table_by_the_command_of_the_page(tmp_path, monkeypatch, capsys, number):
    tree, commands = TREES[number]
    paths = tree.split()
    monkeypatch.chdir(tmp_path)
    make(tmp_path, paths)
    check, train = (shlex.split(command) for command in commands.splitlines())
    folder = check[2]
    cli.main(check[1:])
    printed = capsys.readouterr().out
    assert f"isles-jax train --config.data.root={folder}/cases.csv" in printed.replace(f"{tmp_path}/", "")
    assert train == ["isles-jax", "train", f"--config.data.root={folder}/cases.csv"]
    dataset = layouts.load(tmp_path / folder / "cases.csv")
    sessions = len({path.split("/")[2] for path in paths if "ses-" in path and "derivatives" not in path}) or 1
    assert len(dataset.cases) == len(CASES) * sessions
    assert all(case.labels is not None and case.labels.any() for case in dataset.cases)
    assert len({case.patient or case.name for case in dataset.cases}) == len(CASES)
    assert set(dataset.channels) == {"DWI", "ADC"} | ({"FLAIR"} if folder == "mydata" else set())
    # The folder alone leads to the same table.
    (tmp_path / folder / "cases.csv").rename(tmp_path / "kept.csv")
    if folder == "bids":
        return  # its masks are found without a table
    with pytest.raises(InputError, match="fits no known layout"):
        cli.main(["check", folder])
    proposed = shlex.split(capsys.readouterr().out.splitlines()[-1])
    cli.main(proposed[1:])
    same = layouts.load(tmp_path / folder / "cases.csv", dataset.channels)
    for one, other in zip(same.cases, dataset.cases, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_the_tree_of_nnunet_is_read_with_the_description_of_the_page(tmp_path):
    tree, description, command = NNUNET.groups()
    assert command == "isles-jax train --config.data.root=Dataset015_mine\n"
    paths = [line.split()[0] for line in tree.splitlines()]
    for path in paths[1:]:
        there = images(("dwi", "adc"), 1 if "p01" in path else 2)
        volume = there["OT"] if "labels" in path else there["adc" if path.endswith("_0001.nii.gz") else "dwi"]
        save_volume(tmp_path / path, volume, OBLIQUE)
        if "imagesTs" in path:
            save_volume(tmp_path / path.replace("_0000", "_0001"), there["adc"], OBLIQUE)
    (tmp_path / paths[0]).write_text(description)
    dataset = layouts.load(tmp_path / "Dataset015_mine")
    assert [(case.name, case.labels is not None) for case in dataset.cases] == [("p01", True), ("p09", False)]
    assert (dataset.channels, dataset.classes, dataset.label_values) == (("DWI", "ADC"), ("lesion",), (1,))
