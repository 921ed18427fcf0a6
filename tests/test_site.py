"""The documentation as a site."""

import re
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_shows_the_functions(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ".", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    functions = (tmp_path / "site" / "docs" / "api.html").read_text()
    for name in ("losses.lovasz_softmax", "losses.boundary_weighted_nll", "metrics.score", "models.SUMNet"):
        assert f'id="isles_jax.{name}"' in functions
    start = (tmp_path / "site" / "index.html").read_text()
    first = (tmp_path / "site" / re.search(r"url=([\w.]+)", start)[1]).read_text()
    # Every page is one click away.
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "experiments").glob("*.md"), *ROOT.glob("C*.md")]
    for page in pages:
        assert f'href="{page.relative_to(ROOT).with_suffix(".html")}"' in first, page
