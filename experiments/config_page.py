"""docs/config.md from the comments of `isles_jax.config.baseline`: every key, what it is by default, what it does.

python -m experiments.config_page
"""

import ast
import inspect
import re
from pathlib import Path

from isles_jax import config

PAGE = Path(__file__).parents[1] / "docs" / "config.md"
HEAD = """# Every setting

Made from the comments in `isles_jax/config.py` by `python -m experiments.config_page`. Any key is overridden on the
command line, as in `--config.train.epochs=100 --config.data.phantom.shape="(32,32,8)"
--config.loss.lovasz_per_image=True`. A key that does not exist, a value of another type or one that makes no sense is
refused in one line. The settings of a run stand in its `config.json`, and its workdir refuses others.

The defaults are those of `configs/proposed.py`; what differs in the other seven is the name, `model.residual`,
`discriminator.enabled` and the losses' weights.
"""


def comments() -> dict[str, str]:
    """The comment above each key that `baseline` sets, as {"a.b.c": text}."""
    source = inspect.getsource(config.baseline)
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body[0].body:
        # A section is set as `config.section = section = ConfigDict()`: it has no comment of its own.
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        above = node.lineno - 2
        while lines[above].lstrip().startswith("#"):
            above -= 1
        text = " ".join(line.strip().removeprefix("# ") for line in lines[above + 1 : node.lineno - 1])
        if text:
            found[ast.unparse(node.targets[0]).removeprefix("config.")] = text
    return found


def page() -> str:
    """The whole of docs/config.md."""
    values = config.flatten(config.baseline(residual=True, adversarial=True, overlap=True))
    sections: dict[str, list[str]] = {}
    for key, text in comments().items():
        # What looks like a key or a value in a comment is set as one.
        text = re.sub(r'("[^"]*")', r"`\1`", text)
        sections.setdefault(key.split(".")[0] if "." in key else "The run", []).append(
            f"| `{key}` | `{values[key]!r}` | {text} |"
        )
    parts = [HEAD]
    for title, rows in sections.items():
        parts += [f"## {title}", "| key | default | |\n|---|---|---|\n" + "\n".join(rows)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
