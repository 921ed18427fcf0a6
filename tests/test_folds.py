"""Folds: a partition by patient, seeded, written once and read back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isles_jax.data.folds import make_folds, read_or_write
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
        read_or_write(tmp_path / "folds.json", ["a", "b", "c"], folds, 0)
    assert not list(tmp_path.iterdir())


def test_written_once_and_read_back(tmp_path):
    path = tmp_path / "folds.json"
    names = ["d", "a", "c", "b"]
    made = read_or_write(path, names, 2, 5)
    assert made == make_folds(names, 2, 5)
    assert json.loads(path.read_text()) == made
    assert [p.name for p in tmp_path.iterdir()] == ["folds.json"]
    path.write_text('[["a", "b"], ["c", "d"]]')
    assert read_or_write(path, names, 2, 7) == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "not a readable list of folds"),
        ("7", "not a readable list of folds"),
        ('{"a": 1}', "expected 2 lists of case names"),
        ("[[1, 2], [3]]", "expected 2 lists of case names"),
        ('["ab", "c"]', "expected 2 lists of case names"),
        ('[["a", "b", "c"]]', "holds 1 folds; expected 2"),
        ('[["a"], ["b"]]', "does not hold the case c"),
        ('[["a", "d"], ["b", "c"]]', "holds a case that the data lack, d"),
        ('[["a", "b"], ["b", "c"]]', "holds twice the case b"),
        ('[["a", "b", "c"], []]', "one of its folds is empty"),
    ],
)
def test_folds_that_do_not_fit(content, words, tmp_path):
    path = tmp_path / "folds.json"
    path.write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        read_or_write(path, ["a", "b", "c"], 2, 0)
    assert "\n" not in str(caught.value)
    assert path.read_text() == content
