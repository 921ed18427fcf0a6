"""The command that compares finished runs.

python -m isles_jax.report RUN [RUN ...] --output=report.html
"""

from isles_jax.runtime import interrupt

if __name__ == "__main__":
    interrupt.listen()  # the other imports take a while

from collections.abc import Sequence

from isles_jax.runtime import files
from isles_jax.runtime.command import Parser, run_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of one or more finished runs on the same data, and writes their page."""
    parser = Parser(prog="isles-jax report", description=main.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="workdir of a finished run")
    parser.add_argument(
        "--output",
        default="report.html",
        metavar="FILE",
        help="the page; default: report.html; an earlier page is replaced, and nothing else",
    )
    parser.add_argument("--reference", metavar="ROW", help="the row to compare the others with, such as bl1")
    options = parser.parse_args(arguments)
    # Imported here because SciPy and nibabel load slowly; --help and mistakes in the flags come first.
    from isles_jax.pages import page
    from isles_jax.scoring import run_files, table

    options.output = files.location(options.output)
    page.refuse_output(options.output)
    runs = [run_files.read_run(workdir) for workdir in options.runs]
    print(table.table(runs, options.reference))
    page.write_report(options.output, runs, options.reference)
    print(f"\nreport: {options.output}")


if __name__ == "__main__":
    run_command(main)
