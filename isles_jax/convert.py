"""The command that writes a data set in the raw layout of nnU-Net.

python -m isles_jax.convert --input=SPES_FOLDER --output=DIR
"""

from isles_jax.runtime import interrupt

if __name__ == "__main__":
    interrupt.listen()  # the other imports take a while

from collections.abc import Sequence

from isles_jax.runtime.command import Parser, add_data_flags, local_path, run_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes a data set in the raw layout of nnU-Net."""
    parser = Parser(prog="isles-jax convert", description=main.__doc__)
    parser.add_argument(
        "--input", type=local_path, required=True, metavar="DIR", help="a data set in any layout, or a table (.csv)"
    )
    folder = "a new folder, such as nnUNet_raw/Dataset015_SPES"
    parser.add_argument("--output", type=local_path, required=True, metavar="DIR", help=folder)
    add_data_flags(parser)
    options = parser.parse_args(arguments)
    # Imported here because NumPy and nibabel load slowly; --help and mistakes in the flags come first.
    from isles_jax.data import layouts, nifti, nnunet
    from isles_jax.runtime.progress import say

    how = nifti.ReadOptions(resample=options.resample)
    dataset = layouts.load(options.input, options.channels, penumbra=options.penumbra, core=options.core, how=how)
    say(dataset.headline)
    for note in dataset.notes:
        say(f"note: {note}")
    nnunet.write(dataset, options.output)
    labels = ", ".join(f"{value} {name}" for value, name in enumerate(dataset.classes, 1))
    print(f"{options.output}: {len(dataset.cases)} cases, labels {labels}")


if __name__ == "__main__":
    run_command(main)
