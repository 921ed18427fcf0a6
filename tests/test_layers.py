"""The structure: each module imports only from those before it, and modules and functions stay short."""

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


# Longer, with the reason in a comment at its head.
LONG = {"losses.py"}


def code_lines(node, source):
    """Lines of a function that are neither blank, nor comment, nor docstring."""
    doc = node.body[0] if ast.get_docstring(node) is not None else None
    inside = set(range(doc.lineno, doc.end_lineno + 1)) if doc else set()
    lines = ((number, source[number - 1].strip()) for number in range(node.lineno, node.end_lineno + 1))
    return sum(bool(line) and not line.startswith("#") and number not in inside for number, line in lines)


def test_modules_and_functions_stay_short():
    found = set()
    for path in [*ROOT.rglob("*.py"), *(ROOT.parent / "experiments").glob("*.py")]:
        source = path.read_text().splitlines()
        if len(source) > 350:
            found.add(path.name)
        functions = [n for n in ast.walk(ast.parse("\n".join(source))) if isinstance(n, ast.FunctionDef)]
        found |= {node.name for node in functions if code_lines(node, source) > 60}
    assert found == LONG
