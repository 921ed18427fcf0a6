"""The command that writes a digital phantom data set.

python -m isles_jax.phantom --output=DIR
"""

from isles_jax.runtime import interrupt

if __name__ == "__main__":
    interrupt.listen()  # the other imports take a while

from collections.abc import Sequence
from importlib.util import find_spec

from isles_jax.config import baseline
from isles_jax.runtime.command import InputError, Parser, local_path, run_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes a digital phantom data set in the layout of SPES or of ISLES-2022."""
    defaults = baseline(residual=True, adversarial=True, overlap=True)
    keys = defaults.data.phantom
    shape = "x".join(map(str, keys.shape))
    parser = Parser(prog="isles-jax phantom", description=main.__doc__)
    parser.add_argument("--output", type=local_path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--cases", type=int, default=keys.cases, metavar="N", help="cases (default %(default)s)")
    layout = "spes (Tmax, TTP, DWI) or isles2022 (DWI and ADC, mixed spacings); default %(default)s"
    parser.add_argument("--layout", choices=("spes", "isles2022"), default=keys.layout, help=layout)
    parser.add_argument("--shape", default=shape, metavar="XxYxZ", help="voxels of a volume (default %(default)s)")
    difficulty = "0: clean images; 1 (default): thresholds make the same mistakes as on patients; above 1: harder"
    parser.add_argument("--difficulty", type=float, default=keys.difficulty, metavar="D", help=difficulty)
    seed = "equal seeds give equal patients (default %(default)s)"
    parser.add_argument("--seed", type=int, default=defaults.seed, metavar="N", help=seed)
    parser.add_argument("--figure", action="store_true", help="also draw the first six patients, as DIR/phantom.png")
    options = parser.parse_args(arguments)
    try:
        sides = tuple(int(side) for side in options.shape.strip("()").replace("x", ",").split(","))
    except ValueError:
        raise InputError(f"--shape={options.shape}: expected three numbers, as in {shape}") from None
    if options.figure and options.layout != "spes":
        raise InputError(f"--figure: found --layout={options.layout}, expected spes")
    if options.figure and find_spec("matplotlib") is None:
        install = "pip install matplotlib, or uv run --extra report"
        raise InputError(f"matplotlib is not installed, expected it for --figure: {install}")
    # Imported here because SciPy and nibabel load slowly; --help and mistakes in the flags come first.
    from isles_jax.phantoms import phantom

    settings = {key: getattr(options, key) for key in ("cases", "difficulty", "seed", "layout")}
    phantom.write_phantom(options.output, shape=sides, **settings)
    if options.figure:
        phantom.write_figure(options.output, options.output / "phantom.png")
    print(f"{options.output}: {options.cases} phantom patients")


if __name__ == "__main__":
    run_command(main)
