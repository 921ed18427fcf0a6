"""The command that reads a data set as training would, and says what it is.

python -m isles_jax.check FOLDER_OR_TABLE
"""

from isles_jax.runtime import interrupt

if __name__ == "__main__":
    interrupt.listen()  # the other imports take a while

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from isles_jax.runtime import files
from isles_jax.runtime.command import InputError, Parser, add_data_flags, fitted, local_path, run_command

EXAMPLE = """The exit code is 2 if training would refuse the data.

A table of a folder with any names, and then what it holds:
  isles-jax check mydata --images "DWI={case}/dwi.nii.gz" "ADC={case}/adc.nii.gz" \\
      --label "{case}/mask.nii.gz" --output mydata/cases.csv"""


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="isles-jax check", description=main.__doc__, epilog=EXAMPLE)
    data = "a folder or bucket in any layout, or a table (.csv)"
    parser.add_argument("data", metavar="FOLDER_OR_TABLE", help=data)
    add_data_flags(parser)
    missing = "what a sequence that a case lacks is: a mistake (refuse, the default), or a channel of zeros (zero)"
    parser.add_argument("--missing", choices=("refuse", "zero"), default="refuse", help=missing)
    table = parser.add_argument_group("to write a table of a folder with any names")
    images = (
        "where the images of each channel are below the folder, with {case}, {patient}, {session}, {site}, * and **"
    )
    table.add_argument("--images", nargs="+", default=(), metavar="CHANNEL=PATTERN", help=images)
    table.add_argument("--label", default="", metavar="PATTERN", help="where the label volumes are")
    classes = "the classes of the labels, as in penumbra=1,core=2; default: one class, lesion"
    table.add_argument("--classes", default="", metavar="NAME=INTEGER,...", help=classes)
    table.add_argument("--output", type=local_path, metavar="TABLE", help="the file that is written, such as cases.csv")
    overwrite = "replace another table that this command has written"
    table.add_argument("--overwrite", action="store_true", help=overwrite)
    options = parser.parse_args(arguments)
    for flag in ("label", "classes", "output", "overwrite"):
        if getattr(options, flag) and not options.images:
            raise InputError(f"--{flag}: found no --images beside it, expected patterns from which the table is made")
    if options.images and options.output is None:
        raise InputError("--images: found no --output beside it, expected a name for the table, such as cases.csv")
    if options.images and not Path(options.data).is_dir():
        raise InputError(f"{options.data}: found no folder on this machine, expected one for --images")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads a data set as training would, and says what it is, what looks odd, and how to train on it."""
    options = _parse(arguments)
    # Imported here because SciPy and nibabel load slowly; --help and mistakes in the flags come first.
    from isles_jax.data import layouts, patterns, proposal, survey, table
    from isles_jax.data.nifti import ReadOptions

    files.check_data(options.data)
    data = options.data
    if options.images:
        texts = (options.images, options.label, options.classes)
        _print(patterns.write(Path(data), options.output, *texts, overwrite=options.overwrite))
        data = str(options.output)
    channels = options.channels
    if not layouts.is_known(data, channels) and _print(proposal.described(Path(data))):
        raise InputError(f"{data}: fits no known layout; expected one, or the table that the command above writes")
    how = ReadOptions(resample=options.resample, missing=options.missing == "zero")
    dataset = layouts.load(data, channels, penumbra=options.penumbra, core=options.core, how=how)
    _print(survey.survey(dataset))
    if dataset.layout != table.LAYOUT and all(case.labels is None for case in dataset.cases):
        # The labels may have other names than those of the layout.
        _print(["", *proposal.described(Path(data), with_label=True)])
    settings = {
        "data.channels": channels,
        "data.labels.penumbra": options.penumbra,
        "data.labels.core": options.core,
        "data.resample": options.resample,
        "data.missing": options.missing,
    }
    _print(["", "To train on it:", survey.training_command(dataset, data, settings)])


def _print(lines: Sequence[str]) -> bool:
    """Prints lines at once, before what follows; returns whether there are any."""
    for line in lines:
        # A command stays whole, so that it can be copied.
        print(line if line.startswith("isles-jax ") else fitted(line, sys.stdout), flush=True)
    return bool(lines)


if __name__ == "__main__":
    run_command(main)
