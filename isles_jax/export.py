"""The trained networks for other programs: their weights as safetensors, or the inference function as StableHLO.

python -m isles_jax.export --workdir=RUN --output=proposed.safetensors
python -m isles_jax.export --workdir=RUN --output=proposed.stablehlo

The first file is for keeping; `isles_jax.training.weights` describes it, and
`isles_jax.predict --workdir=FILE` uses it.
The second is a function of the first (`jax.export`; readable for months, not for archives), and needs no code of ours:

    inference = jax.export.deserialize(open("proposed.stablehlo", "rb").read())
    probabilities = inference.call(safetensors.numpy.load_file("proposed.safetensors"), images)
"""

from collections.abc import Sequence

from isles_jax.runtime import files
from isles_jax.runtime.command import InputError, Parser, add_folds_flag, run_command

WEIGHTS, STABLEHLO = ".safetensors", ".stablehlo"


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes a run's networks for other programs: .safetensors, the weights; .stablehlo, the inference function."""
    parser = Parser(prog="isles-jax export", description=main.__doc__)
    run = "a run of isles_jax.main, or a .safetensors file of this command"
    parser.add_argument("--workdir", required=True, metavar="RUN", help=run)
    output = f"ends in {WEIGHTS} or in {STABLEHLO}; replaced if it exists"
    parser.add_argument("--output", required=True, metavar="FILE", help=output)
    add_folds_flag(parser)
    options = parser.parse_args(arguments)
    options.output = files.location(options.output)
    if options.output.suffix not in (WEIGHTS, STABLEHLO):
        raise InputError(f"--output={options.output}: expected a name that ends in {WEIGHTS} or {STABLEHLO}")
    files.check_run(options.workdir)
    # JAX: --help and mistakes in the flags should not wait for it.
    from isles_jax import exporting

    trained = exporting.export(options.workdir, options.output, options.folds)
    print(f"{options.output}: folds {', '.join(map(str, trained.folds))} of {options.workdir}")


if __name__ == "__main__":
    run_command(main)
