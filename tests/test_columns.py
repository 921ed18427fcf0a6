"""Plain-text tables: aligned, and not wider than a terminal."""

from isles_jax.runtime import columns


def test_names_stand_to_the_left_and_numbers_to_the_right():
    assert columns.lines(["name", "a", "long head"], [["x", "1.5", "2"], ["yyyyy", "10.5", "3"]], 1) == [
        "name      a  long head",
        "x       1.5          2",
        "yyyyy  10.5          3",
    ]


def test_a_column_without_any_cell_is_left_out_with_its_heading():
    assert columns.lines(["", "mean", "interval"], [["x", "1.5", ""], ["y", "2", ""]], 1) == [
        "   mean",
        "x   1.5",
        "y     2",
    ]
    assert columns.lines(["", "mean", "interval"], [["x", "1.5", ""], ["y", "2", "a"]], 1) == [
        "   mean  interval",
        "x   1.5",
        "y     2         a",
    ]


def test_columns_that_do_not_fit_follow_below_beside_the_names():
    assert columns.lines(["", "", "aaaa", "bbbb", "cccc"], [["x", "y", "1", "2", "3"]], 2, width=16) == [
        "      aaaa  bbbb",
        "x  y     1     2",
        "",
        "      cccc",
        "x  y     3",
    ]


def test_names_without_room_stand_in_a_line_of_their_own():
    assert columns.lines(["", "", "aaaa", "bbbb"], [["a very long name", "y", "1", "2"]], 2, width=18) == [
        "        aaaa  bbbb",
        "a very long name  y",
        "           1     2",
    ]
