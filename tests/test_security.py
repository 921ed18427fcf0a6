"""What SECURITY.md says that the package never does: no module of it imports or calls what would do so."""

import ast

import pytest
from helpers import ROOT

# Readers that execute what they read, other programs, and connections of the package's own.
MODULES = {
    "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "yaml", "multiprocessing", "pty", "subprocess",
    "ftplib", "http", "httpx", "requests", "smtplib", "socket", "socketserver", "telnetlib", "urllib", "webbrowser",
    "xmlrpc",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    ("np", "load"), ("np", "fromfile"), ("numpy", "load"), ("os", "popen"), ("os", "system"), ("torch", "load"),
}  # fmt: skip


def forbidden(source):
    """What the source imports or calls of the above; also os.exec... and os.spawn..., and every allow_pickle."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Name) and node.id in CALLS:
            found.append(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            pair = node.value.id, node.attr
            if pair in ATTRIBUTES or (pair[0] == "os" and pair[1].startswith(("exec", "spawn", "posix_spawn"))):
                found.append(".".join(pair))
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append(node.arg)
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from urllib.request import urlopen", "import http.client as client", "eval('1')",
        "import numpy as np; np.load('x.npy')", "import os; os.system('ls')", "import os; os.execv('x', [])",
        "f(allow_pickle=True)", "def f():\n    import subprocess",
    ],
)  # fmt: skip
def test_what_is_forbidden_is_found(source):
    assert forbidden(source)


def test_the_package_reads_no_pickles_starts_no_programs_and_opens_no_connections():
    paths = [*(ROOT / "isles_jax").rglob("*.py"), *(ROOT / "configs").rglob("*.py")]
    assert len(paths) > 50
    assert {str(path.relative_to(ROOT)): found for path in paths if (found := forbidden(path.read_text()))} == {}


def test_the_page_scripts_read_nothing_and_write_no_markup():
    scripts = [*(ROOT / "isles_jax").rglob("*.js")]
    assert scripts
    for path in scripts:
        for word in ("fetch(", "XMLHttpRequest", "WebSocket", "import(", "innerHTML", "insertAdjacentHTML", "eval("):
            assert word not in path.read_text(), f"{path.name}: {word}"
