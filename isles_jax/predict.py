"""The command that segments new cases with the networks of a run.

python -m isles_jax.predict --workdir=RUN --input=CASE_OR_FOLDER --output=DIR
"""

from isles_jax.runtime import interrupt

if __name__ == "__main__":
    interrupt.listen()  # the other imports take a while

import argparse
import dataclasses
from collections.abc import Sequence

from isles_jax.runtime import files
from isles_jax.runtime.command import InputError, Parser, add_folds_flag, run_command


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="isles-jax predict", description=main.__doc__)
    run = "a run of isles_jax.main, or a .safetensors file of isles_jax.export"
    parser.add_argument("--workdir", required=True, metavar="RUN", help=run)
    cases = "a case folder, a folder of cases, an nnU-Net imagesTs folder, or a table (.csv)"
    parser.add_argument("--input", required=True, metavar="DIR", help=cases)
    written = (
        "folder or bucket for CASE.nii.gz, CASE.json and CASE.html of each case, and summary.csv; may hold other cases"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help=written)
    add_folds_flag(parser)
    flips = "average with the mirrored slices' predictions; takes twice the time; default: the run's predict.flips"
    parser.add_argument("--flips", action=argparse.BooleanOptionalAction, help=flips)
    small = "remove lesions smaller than ML; default: the run's predict.min_volume_ml"
    parser.add_argument("--min-volume-ml", type=float, metavar="ML", help=small)
    grids = "bring sequences on other grids to that of the first one, by the headers; default: the run's data.resample"
    parser.add_argument("--resample", action=argparse.BooleanOptionalAction, help=grids)
    maps = "also write DIR/probabilities/CASE.nii.gz: float32, whose fourth axis is background and then the classes"
    parser.add_argument("--probabilities", action="store_true", help=maps)
    calibrated = "with --probabilities: write them at the temperature that made the run's held-out ones most likely"
    parser.add_argument("--calibrated", action="store_true", help=calibrated)
    spread = "also write DIR/spread/CASE.nii.gz: float32, the standard deviation of the folds' probabilities"
    parser.add_argument("--spread", action="store_true", help=spread)
    defuse3 = "add to summary.csv whether a case meets the thresholds of the DEFUSE 3 trial; no rule for a treatment"
    parser.add_argument("--defuse3", action="store_true", help=defuse3)
    strict = "make warnings errors: a case with a warning is not written, and the exit code is 2"
    parser.add_argument("--strict", action="store_true", help=strict)
    page = "write no page DIR/CASE.html with numbers, pictures and warnings"
    parser.add_argument("--no-page", action="store_false", dest="page", help=page)
    overwrite = (
        "replace all files of earlier predictions of these cases, and nothing else; by default, they are an error"
    )
    parser.add_argument("--overwrite", action="store_true", help=overwrite)
    options = parser.parse_args(arguments)
    if options.min_volume_ml is not None and not options.min_volume_ml >= 0:
        raise InputError(f"--min-volume-ml: found {options.min_volume_ml:g}, expected 0 or more")
    if options.calibrated and not options.probabilities:
        raise InputError("--calibrated: found no --probabilities beside it, which it changes")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Segments new cases with the networks of a run, averaged over its folds: label volumes and numbers."""
    options = _parse(arguments)
    output = files.location(options.output)
    files.check_data(options.input)
    files.refuse_inside(options.output, options.input)
    files.refuse_run(output)
    files.check_run(options.workdir)
    # Imported here because JAX takes seconds to load; --help and mistakes in the flags come first.
    from isles_jax import new_cases

    flags = {field.name: getattr(options, field.name) for field in dataclasses.fields(new_cases.Options)}
    new_cases.predict_folder(options.workdir, options.input, output, new_cases.Options(**flags))


if __name__ == "__main__":
    run_command(main)
