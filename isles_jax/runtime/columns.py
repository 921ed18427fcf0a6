"""Plain-text tables that fit the columns of a terminal."""

from collections.abc import Sequence

from isles_jax.runtime.command import WIDTH


def lines(heads: Sequence[str], rows: Sequence[Sequence[str]], names: int, width: int = WIDTH) -> list[str]:
    """A table as lines of at most `width` characters. A column without any cell is left out, with its heading.

    Args:
      heads: the headings of all columns.
      rows: the cells of each row.
      names: how many of the first columns name the row. They stand to the left. The other columns stand to the right;
        those that do not fit follow below, beside the names again.
      width: of a line. Names that leave less than a third of it to the cells stand in a line of their own.
    """
    table = [heads, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(heads))]
    room = width - sum(widths[:names]) - 2 * (names - 1)
    alone = room < width / 3
    parts: list[list[int]] = [[]]
    for column in range(names, len(heads)):
        if not any(row[column] for row in rows):
            continue
        if parts[-1] and sum(widths[other] + 2 for other in (*parts[-1], column)) > (width if alone else room):
            parts.append([])
        parts[-1].append(column)
    text = []
    for part in parts:
        text += [""] if part is not parts[0] else []
        for row in table:
            cells = "".join(f"  {row[column]:>{widths[column]}}" for column in part)
            if alone:
                text += [*filter(None, ["  ".join(filter(None, row[:names]))]), cells.rjust(width)]
            else:
                name = "  ".join(row[column].ljust(widths[column]) for column in range(names))
                text.append((name + cells).rstrip())
    return text
