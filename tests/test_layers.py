"""The structure: each module imports only from those before it, and modules and functions stay short."""

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1] / "isles_jax"
# What a module may import stands to its left. A command comes last, and only the command line of all commands knows it.
ORDER = (
    "losses", "metrics", "conv", "norm", "models",
    "runtime.interrupt", "runtime.memory", "runtime.command", "runtime.overrides", "runtime.progress",
    "runtime.columns", "runtime.files", "runtime.lock", "runtime.processes", "config",
    "data.case", "data.adc", "data.orientation", "data.profile", "data.folder", "data.dcm2niix", "data.resample",
    "data.nifti", "data.checks", "data.folds", "data.grid", "data.slices", "data.table", "data.isles", "data.isles2022",
    "data.nnunet", "data.patterns", "data.templates", "data.proposal", "data.layouts",
    "data.oddities", "data.survey",
    "phantoms.perfusion", "phantoms.tissue", "phantoms.scans", "phantoms.head", "phantoms.emboli",
    "phantoms.diffusion", "phantoms.isles2022", "phantoms.phantom",
    "training.parallel", "training.networks", "training.task", "training.optimizers", "training.augment",
    "training.state", "training.critics", "training.step", "training.failed_save", "training.checkpoint",
    "training.weights", "training.initial", "training.metric_writer", "training.event_images", "training.plan",
    "training.watch", "training.fold",
    "scoring.statistics", "scoring.agreement", "scoring.scores", "scoring.lesions", "scoring.folders",
    "scoring.calibration", "scoring.clinical",
    "scoring.calls", "scoring.run_files", "scoring.comparison", "scoring.notes", "scoring.table",
    "prediction.inference", "prediction.expected", "prediction.warning", "prediction.numbers", "prediction.folder",
    "prediction.stablehlo",
    "pages.charts", "pages.tmax", "pages.pictures", "pages.markup", "pages.terms", "pages.stills", "pages.viewer",
    "pages.score_sections", "pages.case_sections", "pages.case_table", "pages.run_sections", "pages.page",
    "pages.patient_page",
    "new_cases", "cross_validation",
    "main", "predict", "evaluate", "report", "export", "phantom", "convert", "check", "settings", "cli",
)  # fmt: skip
COMMANDS = {"main", "predict", "evaluate", "report", "export", "phantom", "convert", "check", "settings", "cli"}
# Rooms in the order in which data flow; the modules on the public top floor stand between them.
ROOMS = ("runtime", "data", "phantoms", "training", "scoring", "prediction", "pages")
REUSABLE = {"losses", "metrics", "conv", "norm", "models"}
# Commands import the library only once the flags are read, so that --help is quick.
HIDDEN = {"main", "predict", "evaluate", "report", "export", "phantom", "convert", "check"}


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").strip(".")


MODULES = {name: path for path in sorted(ROOT.rglob("*.py")) if (name := module_name(path)) not in ("", *ROOMS)}


def imports(node):
    """The modules of the package that are imported anywhere below a node of the syntax tree."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            names = [alias.name for alias in inner.names]
        elif isinstance(inner, ast.ImportFrom):
            names = [f"{inner.module}.{alias.name}" for alias in inner.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "isles_jax" and parts[1:] != ["__version__"]:
                yield next(m for m in (".".join(parts[1:3]), parts[1], *ROOMS) if m in MODULES or m in ROOMS)


def test_modules_import_only_from_their_left():
    assert MODULES.keys() == set(ORDER), "a module that is missing from the order"
    for module, path in MODULES.items():
        for other in imports(ast.parse(path.read_text())):
            assert other in MODULES, f"{module} imports the room {other}, expected one of its modules"
            assert ORDER.index(other) < ORDER.index(module), f"{module} imports {other}"
            assert other not in COMMANDS, f"{module} imports the command {other}"
    for module in REUSABLE:
        assert not list(imports(ast.parse(MODULES[module].read_text()))), f"{module} can be copied alone"


def test_rooms_import_only_from_rooms_before_them():
    for module, path in MODULES.items():
        room = module.split(".")[0]
        if room in ROOMS:
            others = {other.split(".")[0] for other in imports(ast.parse(path.read_text()))} & set(ROOMS)
            assert all(ROOMS.index(other) <= ROOMS.index(room) for other in others), module


def test_only_commands_import_inside_a_function():
    hidden = {}
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        inside = [function.name for function in functions if any(True for _ in imports(function))]
        if inside:
            hidden[module] = inside
    assert hidden == {**{name: ["main"] for name in HIDDEN}, "cli": ["main", "run"]}


# Longer, because one file can be copied into another project.
LONG = {"losses.py"}
FILES = sorted([*ROOT.rglob("*.py"), *(ROOT.parent / "experiments").rglob("*.py")])
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def lines_of_code(source):
    """The numbers of the lines that are neither blank, nor comment, nor docstring."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {n for token in tokens if token.type not in NO_CODE for n in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return {number for number, line in enumerate(source.splitlines(), start=1) if number in lines and line.strip()}


EXAMPLE = '''"""A module.

More.
"""
X = """a

# b"""  # c
# d
class A:
    """A class."""

    def f(self):
        """A function.

        More.
        """
        # e
        return "f"
'''


def test_lines_of_code_are_neither_blank_nor_comment_nor_docstring():
    code = [line for number, line in enumerate(EXAMPLE.splitlines(), start=1) if number in lines_of_code(EXAMPLE)]
    assert code == ['X = """a', '# b"""  # c', "class A:", "    def f(self):", '        return "f"']


def test_modules_and_functions_stay_short():
    long = set()
    for path in FILES:
        source = path.read_text()
        code = lines_of_code(source)
        if len(code) > 300:
            long.add(path.name)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = len(code & set(range(node.lineno, node.end_lineno + 1)))
                assert length <= 60, f"{path.name}: {node.name} has {length} lines of code"
    assert long == LONG


def test_the_formatter_is_never_switched_off():
    assert [path.name for path in FILES if "fmt: skip" in path.read_text()] == []


def test_test_files_do_not_import_each_other():
    """What they share is in helpers.py and conftest.py."""
    for path in Path(__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not [module for module in modules if module.startswith("test_")], path.name
