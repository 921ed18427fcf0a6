"""Writes docs/config.md from the comments in `isles_jax.config.baseline`: every key, its default and its meaning.

python docs/scripts/config_page.py
"""

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path

from isles_jax import config

PAGE = Path(__file__).parents[1] / "config.md"
HEAD = """# Every setting

`python docs/scripts/config_page.py` makes this page from the comments in `isles_jax/config.py`.

The command line overrides any key: `--config.train.epochs=100 --config.data.phantom.shape="(32,32,8)"
--config.loss.lovasz_per_image=True`. An unknown key, a value of another type or an impossible value ends the command
with one line. A run writes its settings to `config.json`; afterwards its workdir refuses other settings.

The defaults are those of `configs/proposed.py`. The other seven systems differ in `name`, `model.residual`,
`discriminator.enabled` and the weights of the losses.
"""


def comments() -> dict[str, str]:
    """The comment above each key, as {"a.b.c": text}: the keys of the run, then those of its sections."""
    texts = _comments_in(config.baseline)
    run = {key: text for key, text in texts.items() if "." not in key}
    return run | _comments_in(config.data_section) | texts


def _comments_in(function: Callable[..., object]) -> dict[str, str]:
    source = inspect.getsource(function)
    lines, texts = source.splitlines(), {}
    for node in ast.parse(source).body[0].body:
        # A section is set as `config.section = section = ConfigDict()`: it has no comment of its own.
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        above = node.lineno - 2
        while lines[above].lstrip().startswith("#"):
            above -= 1
        text = " ".join(line.strip().removeprefix("# ") for line in lines[above + 1 : node.lineno - 1])
        if text:
            texts[ast.unparse(node.targets[0]).removeprefix("config.")] = text
    return texts


def page() -> str:
    """The whole of docs/config.md."""
    values = config.flatten(config.baseline(residual=True, adversarial=True, overlap=True))
    sections: dict[str, list[str]] = {}
    for key, text in comments().items():
        # Values in quotes are shown as code.
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
