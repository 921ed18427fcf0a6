"""Folds: a partition by patient, seeded, written once and read back."""

import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isles_jax.data.case import Case
from isles_jax.data.folds import group, make_folds, read_or_make
from isles_jax.runtime.command import InputError

NAMES = st.lists(st.text("abc0123", min_size=1, max_size=6), min_size=2, max_size=40, unique=True)


@given(names=NAMES, seed=st.integers(0, 2**31), draw=st.data())
def test_folds_are_an_even_partition_whatever_the_order(names, seed, draw):
    folds = draw.draw(st.integers(2, len(names)))
    made = make_folds(names, folds, seed)
    assert sorted(name for fold in made for name in fold) == sorted(names)
    sizes = [len(fold) for fold in made]
    assert len(sizes) == folds
    assert max(sizes) - min(sizes) <= 1
    assert make_folds(draw.draw(st.permutations(names)), folds, seed) == made


def test_the_seed_decides():
    names = [f"case{i}" for i in range(30)]
    assert len({str(make_folds(names, 3, seed)) for seed in range(10)}) == 10


@pytest.mark.parametrize("folds", [0, 1, 4])
def test_impossible_numbers_of_folds(folds, tmp_path):
    with pytest.raises(InputError, match=f"--config.folds={folds}: expected 2 to 3"):
        read_or_make(tmp_path / "folds.json", ["a", "b", "c"], folds, 0)
    assert not list(tmp_path.iterdir())


def test_made_where_there_are_none_and_else_read(tmp_path):
    path = tmp_path / "folds.json"
    names = ["d", "a", "c", "b"]
    assert read_or_make(path, names, 2, 5) == make_folds(names, 2, 5)
    assert not path.exists()
    path.write_text('[["a", "b"], ["c", "d"]]')
    assert read_or_make(path, names, 2, 7) == [["a", "b"], ["c", "d"]]


# --- patients, sites, and folds of one's own -------------------------------------------------------------------------


def make_case(name, patient="", site=""):
    return Case(
        name, np.zeros((1, 1, 1, 1), np.float32), None, np.eye(4), nib.Nifti1Header(), patient=patient, site=site
    )


@given(scans=st.lists(st.integers(1, 4), min_size=2, max_size=20), seed=st.integers(0, 2**31), draw=st.data())
def test_the_scans_of_a_patient_stay_together(scans, seed, draw):
    cases = [make_case(f"p{p}s{s}", f"p{p}") for p, count in enumerate(scans) for s in range(count)]
    names, groups = [case.name for case in cases], group(cases, "patient")
    folds = draw.draw(st.integers(2, len(scans)))
    made = make_folds(names, folds, seed, groups)
    assert sorted(name for fold in made for name in fold) == sorted(names)
    patients = [{groups[name] for name in fold} for fold in made]
    assert sum(map(len, patients)) == len(scans)
    assert max(map(len, patients)) - min(map(len, patients)) <= 1


def test_a_patient_without_a_name_is_one_of_its_own():
    cases = [make_case(name) for name in "abcdefg"]
    names = [case.name for case in cases]
    assert make_folds(names, 3, 5, group(cases, "patient")) == make_folds(names, 3, 5)


def test_whole_sites_are_held_out():
    cases = [make_case(f"c{n}", f"p{n // 2}", "xyz"[n % 6 // 2]) for n in range(18)]
    groups = group(cases, "site")
    made = make_folds([case.name for case in cases], 3, 0, groups)
    assert sorted(tuple({groups[name] for name in fold}) for fold in made) == [("x",), ("y",), ("z",)]
    with pytest.raises(InputError, match="folds=4: expected 2 to 3, the number of patients or sites"):
        make_folds([case.name for case in cases], 4, 0, groups)


def test_sites_that_are_not_known_or_share_a_patient_are_refused():
    with pytest.raises(InputError, match="found no site of the case b, expected it in the column 'site' of cases"):
        group([make_case("a", site="x"), make_case("b")], "site")
    with pytest.raises(InputError, match="the patient p has scans at x and y; expected one site"):
        group([make_case("a", "p", "x"), make_case("b", "p", "y")], "site")


def test_folds_of_the_users_own_are_checked_and_kept(tmp_path):
    path, given_file = tmp_path / "folds.json", tmp_path / "own.json"
    names, groups = ["a", "b", "c", "d"], {"a": "p", "b": "p", "c": "c", "d": "d"}
    wanted = [["a", "b"], ["c", "d"]]
    for content in (wanted, [{"train": ["c", "d"], "val": ["a", "b"]}, {"train": ["a", "b"], "val": ["c", "d"]}]):
        path.unlink(missing_ok=True)
        given_file.write_text(json.dumps(content))
        assert read_or_make(path, names, 2, 0, groups, given_file) == wanted
    path.write_text(json.dumps(wanted))
    given_file.unlink()
    assert read_or_make(path, names, 2, 0, groups, given_file) == wanted, "the run has its own copy"


UNFIT = [
    ("[", "not a readable list of folds"),
    ("7", "not a readable list of folds"),
    (None, "not a readable list of folds"),
    ('{"a": 1}', "expected 2 lists of case names"),
    ("[[1, 2], [3]]", "expected 2 lists of case names"),
    ('["ab", "c"]', "expected 2 lists of case names"),
    ('[{"val": ["a", "b"]}, {"train": ["c"]}]', "expected 2 lists of case names"),
    ('[["a", "b", "c"]]', "holds 1 folds; expected 2"),
    ('[["a", "b"], []]', "does not hold the case c"),
    ('[["a", "b", "x"], ["c"]]', "holds a case that the data lack, x"),
    ('[["a", "b"], ["b", "c"]]', "holds twice the case b"),
    ('[["a", "b", "c"], []]', "one of its folds is empty"),
    ('[["a"], ["b", "c"]]', "p has cases in two folds; expected all of them in one"),
]


@pytest.mark.parametrize(("content", "words"), UNFIT)
@pytest.mark.parametrize("name", ["folds.json", "own.json"])
def test_folds_that_do_not_fit(name, content, words, tmp_path):
    """In a run, and in a file of the user's own."""
    path, own = tmp_path / name, tmp_path / "own.json"
    if content is not None:
        path.write_text(content)
    elif name == "folds.json":
        path.mkdir()
    with pytest.raises(InputError, match=words) as caught:
        read_or_make(tmp_path / "folds.json", ["a", "b", "c"], 2, 0, {"a": "p", "b": "p", "c": "c"}, own)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == [name] * (path.exists())
    assert content is None or path.read_text() == content
