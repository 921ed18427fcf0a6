"""The command that writes a data set in the raw layout of nnU-Net.

python -m isles_jax.convert --input=SPES_FOLDER --output=DIR
"""

from collections.abc import Sequence

from isles_jax.runtime.command import Parser, local_path, run_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes a data set in the raw layout of nnU-Net."""
    parser = Parser(prog="isles-jax convert", description=main.__doc__)
    parser.add_argument("--input", type=local_path, required=True, metavar="DIR", help="a data set in the SPES layout")
    folder = "a new folder, such as nnUNet_raw/Dataset015_SPES"
    parser.add_argument("--output", type=local_path, required=True, metavar="DIR", help=folder)
    integer = "the integer that marks %s in the input's label volumes (default %%(default)s)"
    parser.add_argument("--penumbra", type=int, default=1, metavar="INTEGER", help=integer % "penumbra")
    parser.add_argument("--core", type=int, default=2, metavar="INTEGER", help=integer % "core")
    options = parser.parse_args(arguments)
    # Imported here because NumPy and nibabel load slowly; --help and mistakes in the flags come first.
    from isles_jax.data import layouts, nnunet

    dataset = layouts.load(options.input, penumbra=options.penumbra, core=options.core)
    nnunet.write(dataset, options.output)
    print(f"{options.output}: {len(dataset.cases)} cases, labels 1 {', 2 '.join(dataset.classes)}")


if __name__ == "__main__":
    run_command(main)
