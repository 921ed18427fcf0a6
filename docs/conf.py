"""The documentation as a site, by Sphinx. Its pages are the Markdown files, so they read the same on GitHub.

uv run sphinx-build -W -c docs . site
"""

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

from isles_jax import __version__

project, author, release = "isles_jax", "The isles_jax authors", __version__
copyright = "The isles_jax authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "experiments/*.md"]
myst_enable_extensions = ["dollarmath"]
# Browsers draw MathML themselves. Sphinx's own choice loads a program from another server when a page is read.
html_math_renderer = "mathml"
html_static_path, html_css_files = ["style"], ["formulas.css"]
# Links to a heading of a page, as GitHub makes them.
myst_heading_anchors = 4
html_theme, html_title = "furo", f"isles_jax {release}"
# Holds index.html, which leads to the README.
html_extra_path = ["start"]
# The docstrings give shapes and types.
autodoc_member_order, autodoc_typehints, default_role = "bysource", "none", "code"
napoleon_numpy_docstring, napoleon_use_ivar = False, True
CONTENTS = """
```{toctree}
:hidden:
:caption: Use it

docs/dicom
docs/data
docs/run
docs/patient
docs/container
docs/gpu
docs/tpu
docs/table1
```

```{toctree}
:hidden:
:caption: Look it up

docs/config
docs/losses
docs/api
docs/method
docs/phantom
docs/scores
docs/limits
```

```{toctree}
:hidden:
:caption: Judge and change it

experiments/RESULTS
experiments/speed
CONTRIBUTING
CHANGELOG
```
"""


def add_contents(app, name, source):
    """Adds the list of pages to the README, in which GitHub would show it as code."""
    if name == root_doc:
        source[0] += CONTENTS


def write_formula(writer, node):
    """Writes a formula as MathML. Raises MathError for LaTeX that docutils does not know, which ends the build."""
    is_block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=is_block)
    # As in TeX, a thin space stands between "log" and what it is applied to.
    formula = formula.replace("<mo>&ApplyFunction;", '<mo rspace="0.1667em">&ApplyFunction;')
    writer.body.append(f'<div class="math">{formula}</div>' if is_block else formula)
    raise nodes.SkipNode


def setup(app):
    app.connect("source-read", add_contents)
    app.add_html_math_renderer("mathml", inline_renderers=(write_formula, None), block_renderers=(write_formula, None))
