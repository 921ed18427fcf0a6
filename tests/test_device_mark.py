"""The selection of tests for a GPU: it is found where packages of the other tests are missing."""

import os
import subprocess
import sys

from helpers import ROOT


def test_the_selection_for_devices_needs_no_package_of_other_tests(tmp_path):
    (tmp_path / "hypothesis.py").write_text("raise ModuleNotFoundError('hypothesis')\n")
    command = [sys.executable, "-m", "pytest", "-n0", "-m", "device", "--collect-only", "-q", "-p", "no:cacheprovider"]
    # Hypothesis itself is a plugin of pytest, where it is installed.
    command += ["-p", "no:hypothesispytest"]
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    files = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    expected = ("augment", "gradients", "inference", "losses", "losses_overlap", "models", "step", "unet")
    assert files == {f"tests/test_{name}.py" for name in expected}
