"""Tables of the command line."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest

from rhapsody.cli.output import complain, note, say, shortened, table, text_width, wrapped
from rhapsody.history.values import printable
from rhapsody.masking import escaped


def test_tables_are_aligned_and_have_no_trailing_blanks() -> None:
    assert table(("A", "LONG"), [("wide cell", "x"), ("y", "")]) == [
        "A          LONG",
        "wide cell  x",
        "y",
    ]


def test_numbers_are_aligned_to_the_right() -> None:
    assert table(("NAME", "N"), [("a", "10"), ("b", "5")], numbers=("N",)) == [
        "NAME   N",
        "a     10",
        "b      5",
    ]


def test_columns_are_shortened_in_order_until_the_table_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [("x" * 30, "y" * 30, "1")]
    header, flexible = ("A", "B", "C"), ("B", "A")
    assert table(header, rows, flexible=flexible)[1] == "  ".join(rows[0])
    monkeypatch.setattr("rhapsody.cli.output.terminal_width", lambda: 50)
    assert table(header, rows, flexible=flexible)[1] == f"{'x' * 30}  {'y' * 12}...  1"
    monkeypatch.setattr("rhapsody.cli.output.terminal_width", lambda: 30)
    assert table(header, rows, flexible=flexible)[1] == f"{'x' * 14}...  {'y' * 5}...  1"
    monkeypatch.setattr("rhapsody.cli.output.terminal_width", lambda: 5)
    assert table(header, rows, flexible=flexible)[1] == "xxxxx...  yyyyy...  1"


def test_optional_columns_are_left_out_before_others_become_unreadable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    header, rows = ("NAME", "P95", "MAX", "CPU"), [("x" * 30, "5.0 s", "6.0 s", "-")]

    def columns(width: int) -> str:
        monkeypatch.setattr("rhapsody.cli.output.terminal_width", lambda: width)
        lines = table(header, rows, flexible=("NAME",), optional=("P95", "CPU"))
        assert all(len(line) <= width for line in lines)
        return " ".join(lines[0].split())

    assert columns(40) == "NAME P95 MAX CPU"
    assert columns(32) == "NAME P95 MAX"
    assert columns(25) == "NAME MAX"
    assert columns(16) == "NAME MAX"


def test_text_is_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "  failed: " + "word " * 10 + "a_long_name"
    assert wrapped(line) == [line]
    monkeypatch.setattr("rhapsody.cli.output.terminal_width", lambda: 40)
    lines = wrapped(line)
    assert all(len(each) <= 40 for each in lines)
    assert lines[1].startswith("    word")
    assert " ".join(" ".join(lines).split()) == line.strip()


def test_wide_characters_take_two_columns() -> None:
    name = "\u6f22\u5b57"
    assert text_width(name) == 4
    assert table(("A", "B"), [(name, "x"), ("abcd", "y")]) == ["A     B", f"{name}  x", "abcd  y"]
    assert shortened(name * 10, 11) == f"{name * 2}..."


def test_control_characters_are_escaped() -> None:
    assert printable("a\x1b[2J\tb\n") == "a\\x1b[2J\\tb\\n"
    assert printable("\u00e9 ok") == "\u00e9 ok"
    assert table(("A",), [("x\ny",)]) == ["A", "x\\ny"]
    assert escaped("a\tb\r\nc\r\x9b\u202e\n") == "a\tb\nc\\r\\x9b\\u202e\n"
    assert escaped("\u00e9\u00a0\u20ac\n") == "\u00e9\u00a0\u20ac\n"


@pytest.mark.parametrize("write", [say, note, complain])
def test_control_characters_in_lines_are_escaped(
    write: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    write("a\x1b]8;;http://evil\x07b\n  c")
    out, error = capsys.readouterr()
    assert (out or error).endswith("a\\x1b]8;;http://evil\\x07b\n  c\n")


def test_characters_that_the_output_cannot_encode_are_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", output)
    say("\u00e9 \u20ac")
    output.seek(0)
    assert output.read() == "\u00e9 \\u20ac\n"
