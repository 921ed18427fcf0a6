"""The documentation as a site, by Sphinx. Its pages are the Markdown files, so they read the same on GitHub.

uv run sphinx-build -W -c docs . site
"""

from isles_jax import __version__

project, author, release = "isles_jax", "The isles_jax authors", __version__
copyright = "The isles_jax authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "experiments/*.md"]
myst_enable_extensions = ["dollarmath"]
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

docs/data
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


def setup(app):
    app.connect("source-read", add_contents)
