"""The order of the modules: each imports only from those before it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "isles_jax"
ORDER = (
    "losses", "metrics", "conv", "models", "augment", "interrupt", "config", "processes", "files", "lock", "data",
    "state", "step", "parallel", "checkpoint", "weights", "writer", "predict", "export", "panels", "train", "clinical",
    "evaluate", "statistics", "results", "charts", "pictures", "page", "report", "cross_validation", "main",
)  # fmt: skip
ALONE = {name: set() for name in ("losses", "metrics", "conv", "models", "augment", "interrupt")}
ALONE |= {"config": {"interrupt"}, "processes": {"config", "interrupt"}, "files": {"config"}}


def rooms(path):
    """The modules of the package that a file imports, by the first part of their names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "isles_jax" and len(parts) > 1 and parts[1] != "__version__":
                yield parts[1]


def test_modules_import_only_from_their_left():
    found = {path.relative_to(ROOT).parts[0].removesuffix(".py"): [] for path in ROOT.rglob("*.py")}
    for path in ROOT.rglob("*.py"):
        found[path.relative_to(ROOT).parts[0].removesuffix(".py")] += rooms(path)
    del found["__init__"]
    assert found.keys() == set(ORDER), "a module that is missing from the order"
    for module, imported in found.items():
        for other in set(imported) - {module}:
            assert ORDER.index(other) < ORDER.index(module), f"{module} imports {other}"
    for module, allowed in ALONE.items():
        assert set(found[module]) <= allowed


def test_losses_imports_jax_alone():
    tree = ast.parse((ROOT / "losses.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= {
        "jax",
        "collections",
        "functools",
        "math",
        "typing",
        "operator",
    }
