"""The command that exports trained networks: their weights as safetensors, or the inference function as StableHLO.

python -m isles_jax.export --workdir=RUN --output=proposed.safetensors
python -m isles_jax.export --workdir=RUN --output=proposed.stablehlo

The safetensors file is made to last: `isles_jax.training.weights` describes its format, and
`isles_jax.predict --workdir=FILE` reads it. The StableHLO file holds a function of these weights, made by `jax.export`,
which guarantees compatibility for months only. It runs without this package:

    inference = jax.export.deserialize(open("proposed.stablehlo", "rb").read())
    probabilities = inference.call(safetensors.numpy.load_file("proposed.safetensors"), images)
"""

from isles_jax.runtime import interrupt

if __name__ == "__main__":
    interrupt.listen()  # the other imports take a while

import dataclasses
from collections.abc import Sequence

from isles_jax.runtime import files
from isles_jax.runtime.command import InputError, Parser, add_folds_flag, run_command

WEIGHTS = ".safetensors"
STABLEHLO = ".stablehlo"


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports the networks of a run: the weights (.safetensors) or the inference function (.stablehlo)."""
    parser = Parser(prog="isles-jax export", description=main.__doc__)
    run = "a run of isles_jax.main, or a .safetensors file of this command"
    parser.add_argument("--workdir", required=True, metavar="RUN", help=run)
    output = f"a name that ends in {WEIGHTS} or {STABLEHLO}; an earlier export is replaced, and nothing else"
    parser.add_argument("--output", required=True, metavar="FILE", help=output)
    add_folds_flag(parser)
    options = parser.parse_args(arguments)
    options.output = files.location(options.output)
    if options.output.suffix not in (WEIGHTS, STABLEHLO):
        raise InputError(f"--output={options.output}: expected a name that ends in {WEIGHTS} or {STABLEHLO}")
    files.check_run(options.workdir)
    # Imported here because JAX takes seconds to load; --help and mistakes in the flags come first.
    from isles_jax.prediction import expected, stablehlo
    from isles_jax.training import parallel, weights

    parallel.keep_compiled()
    ours = weights.is_ours if options.output.suffix == WEIGHTS else stablehlo.is_ours
    files.refuse_foreign(options.output, ours, "an export")
    trained = weights.load(options.workdir, options.folds)
    if options.output.suffix == WEIGHTS:
        facts = dict(expected.known(options.workdir, trained))
        # The checksums would tell whose scans were in the training data.
        facts.pop("held_out", None)
        weights.save(options.output, dataclasses.replace(trained, expected=facts))
    else:
        files.write_atomic(options.output, stablehlo.serialise(trained))
    print(f"{options.output}: folds {', '.join(map(str, trained.folds))} of {options.workdir}")


if __name__ == "__main__":
    run_command(main)
