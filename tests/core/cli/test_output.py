"""Tables of the command line."""

from __future__ import annotations

from rhapsody.cli.output import table


def test_tables_are_aligned_and_have_no_trailing_blanks() -> None:
    assert table(("A", "LONG"), [("wide cell", "x"), ("y", "")]) == [
        "A          LONG",
        "wide cell  x",
        "y",
    ]
