"""A folder of cases, whatever its layout."""

import pytest

from isles_jax.data import layouts
from isles_jax.runtime.command import InputError


def test_a_root_that_is_none(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        layouts.load(tmp_path / "nowhere", penumbra=1, core=2)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        layouts.load(tmp_path / "file", penumbra=1, core=2)
