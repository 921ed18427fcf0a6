"""The command that scores the label volumes of any tool.

python -m isles_jax.evaluate --predictions=DIR --labels=DIR
"""

from isles_jax.runtime import interrupt

if __name__ == "__main__":
    interrupt.listen()  # the other imports take a while

import argparse
from collections.abc import Sequence

from isles_jax.runtime import files
from isles_jax.runtime.command import InputError, Parser, local_path, run_command


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="isles-jax evaluate", description=main.__doc__)
    predictions = "a folder of CASE.nii or CASE.nii.gz"
    parser.add_argument("--predictions", type=local_path, required=True, metavar="DIR", help=predictions)
    reference = "the reference: a folder of CASE.nii or CASE.nii.gz, or a data set or table (.csv) that training reads"
    parser.add_argument("--labels", type=local_path, required=True, metavar="DIR", help=reference)
    parser.add_argument("--subset", action="store_true", help="leave out the cases that have no prediction")
    tables = (
        "also write cases.csv (a row for each case and class), lesions.csv (a row for each lesion) and summary.json to "
        "this folder, outside of the labels"
    )
    parser.add_argument("--output", metavar="DIR", help=tables)
    names = (
        "class names of a folder of label volumes; default: as in dataset.json there or above, or the integers found"
    )
    parser.add_argument("--classes", metavar="NAMES", help=names)
    parser.add_argument(
        "--values", metavar="INTEGERS", help="the classes' integers in the files; default: 1,2,... or as for --classes"
    )
    options = parser.parse_args(arguments)
    try:
        options.values = tuple(map(int, options.values.split(","))) if options.values else None
    except ValueError:
        raise InputError(f"--values={options.values}: expected integers with commas between them") from None
    options.output = None if options.output is None else files.location(options.output)
    options.classes = tuple(options.classes.split(",")) if options.classes else None
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Scores the label volumes of any tool with the measures of this package and prints the means."""
    options = _parse(arguments)
    # Imported here because SciPy and nibabel load slowly; --help and mistakes in the flags come first.
    from isles_jax.scoring import folders, lesions, scores

    if options.output is not None:
        files.refuse_inside(options.output, options.labels)
        scores.refuse_output(options.output)
    rows, lesion_rows = folders.score_folders(
        options.predictions, options.labels, options.classes, options.values, subset=options.subset
    )
    means = scores.means(rows)
    if options.output is not None:
        scores.write_cases_csv(options.output / "cases.csv", rows)
        lesions.write(options.output / "lesions.csv", lesion_rows)
        files.write_json(options.output / "summary.json", means)
    print(scores.means_text(means))


if __name__ == "__main__":
    run_command(main)
