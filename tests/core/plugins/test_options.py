"""Options of backends as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from rhapsody.backends import BackendOption, BackendSpec


@pytest.mark.parametrize(
    ("kind", "good", "bad", "short", "words"),
    [
        (str, ["a", ""], [1, True, ["a"]], "str", "a string"),
        (int, [1, -1], [1.5, True, "1"], "int", "a whole number"),
        (float, [1, 1.5], [True, "1"], "float", "a number"),
        (bool, [True], [1, "true"], "bool", "true or false"),
        (list, [[1], (1,)], ["a", {}], "list", "a list"),
        (dict, [{}], [[], "a"], "table", "a table"),
        (Path, ["a", Path("a")], [1], "path", "a path"),
        (list[str], [["a"], []], ["a", ["a", 1]], "list[str]", "a list[str]"),
        (int | str, [1, "a"], [1.5, True], "int | str", "a whole number or a string"),
        (str | None, ["a"], [None, 1], "str", "a string"),
        (Literal["a", "b"], ["a"], ["c", 1, ["a"]], '"a" | "b"', '"a" or "b"'),
        (Literal["auto"] | int, ["auto", 3], ["b"], '"auto" | int', '"auto" or a whole number'),
        (Literal[0, 1], [0, 1], [True, 2], "0 | 1", "0 or 1"),
        (Any, [1, "a", None], [], "any", "any value"),
    ],
)
def test_an_option_has_a_type(
    kind: Any, good: list[Any], bad: list[Any], short: str, words: str
) -> None:
    option = BackendOption("x", kind)
    assert [option.accepts(each) for each in good] == [True] * len(good)
    assert [option.accepts(each) for each in bad] == [False] * len(bad)
    assert option.type_name == short
    assert option.expected == words


def test_an_option_as_plain_values() -> None:
    option = BackendOption("x", Path, Path("a/b"), "Help.")
    assert option.as_dict() == {"name": "x", "type": "path", "default": "a/b", "help": "Help."}


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("a b", str, "name must be an identifier, got 'a b'"),
        (3, str, "name must be an identifier, got 3"),
        ("a", set, "unsupported type <class 'set'>"),
        ("a", list[set[int]], "unsupported type list"),
    ],
)
def test_an_option_that_is_malformed_is_refused(name: Any, kind: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        BackendOption(name, kind)


def test_the_options_of_a_backend_are_checked() -> None:
    wrong: Any = ["cores"]
    with pytest.raises(TypeError, match="options must be a list of BackendOptions"):
        BackendSpec(name="a", import_path="a:B", options=wrong)
    with pytest.raises(ValueError, match="two options are named 'cores'"):
        BackendSpec(name="a", import_path="a:B", options=[BackendOption("cores")] * 2)
