"""The command that lists the settings of a run.

python -m isles_jax.settings [WORD]
"""

from isles_jax.runtime import interrupt

if __name__ == "__main__":
    interrupt.listen()  # the other imports take a while

import shlex
import sys
import textwrap
from collections.abc import Sequence

from isles_jax.config import baseline, comments, flatten, resolve
from isles_jax.runtime import overrides
from isles_jax.runtime.command import WIDTH, InputError, Parser, run_command

EXAMPLE = """What has to do with the learning rate, and all values of bl1 on your own data:
  isles-jax settings "learning rate"
  isles-jax settings --config=configs/bl1.py --config.data.root=/data/SPES"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Lists the settings of a run: value, meaning, and the default if it is another."""
    parser = Parser(prog="isles-jax settings", description=main.__doc__, epilog=EXAMPLE)
    parser.add_argument("word", nargs="?", default="", metavar="WORD", help="list those whose name or text has it")
    config = "file with the settings; default: %(default)s. --config.KEY=VALUE sets one, as for train"
    parser.add_argument("--config", default=overrides.DEFAULT, metavar="FILE", help=config)
    given = sys.argv[1:] if arguments is None else arguments
    # argparse would take a value with a space in it for WORD.
    changes = [argument for argument in given if argument.startswith("--config.")]
    options, rest = parser.parse_known_args([argument for argument in given if argument not in changes])
    values = flatten(resolve(overrides.read(options.config, [*changes, *rest])))
    texts = comments()
    word = options.word.lower()
    found = [key for key in texts | values if word in key or word in texts.get(key, "").lower()]
    if not found:
        raise InputError(f"{options.word}: found no setting whose name or text has this, expected another word")
    defaults = flatten(baseline(residual=True, adversarial=True, overlap=True))
    for key in found:
        print(f"--config.{key}={shlex.quote(str(values[key]))}")
        if key in defaults and values[key] != defaults[key]:
            print(f"    default: {defaults[key]}")
        text = textwrap.fill(texts.get(key, ""), WIDTH - 4, break_on_hyphens=False)
        print(textwrap.indent(text, "    "))


if __name__ == "__main__":
    run_command(main)
