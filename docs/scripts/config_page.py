"""Writes docs/config.md from the comments in `isles_jax/config.py`: every key, its default and its meaning.

python docs/scripts/config_page.py
"""

import re
from pathlib import Path

from isles_jax import config

PAGE = Path(__file__).parents[1] / "config.md"
HEAD = """# Every setting

`python docs/scripts/config_page.py` makes this page from the comments in `isles_jax/config.py`.

`isles-jax settings` prints these settings in a terminal, with the values of a run. `isles-jax settings lovasz` lists
those whose name or explanation has this word. `isles-jax settings --config=configs/bl1.py` lists the values of bl1.

The command line overrides any key: `--config.train.epochs=100 --config.data.phantom.shape="(32,32,8)"
--config.loss.lovasz_per_image=True`. An unknown key, a value of another type or an impossible value ends the command
with one line, which names the key that was probably meant. A run writes its settings to `config.json`; afterwards its
workdir refuses other settings.

The defaults are those of `configs/proposed.py`. The other seven systems differ in `name`, `model.residual`,
`discriminator.enabled` and the weights of the losses.
"""


def page() -> str:
    """The whole of docs/config.md."""
    values = config.flatten(config.baseline(residual=True, adversarial=True, overlap=True))
    sections: dict[str, list[str]] = {}
    for key, text in config.comments().items():
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
