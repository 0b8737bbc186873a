"""Suggestions for misspelled names in messages."""

from __future__ import annotations

from collections.abc import Iterable


def similar(name: object, known: Iterable[str], limit: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return at most `limit` known names that resemble a name, the closest one first.

    Args:
        name: The name.
        known: The known names.
        limit: Maximum number of names to return.
        cutoff: Least similarity, between 0 and 1.
    """
    from difflib import get_close_matches  # only errors need it

    return get_close_matches(str(name), list(known), limit, cutoff)


def suggestion(name: object, known: Iterable[str], every: str = "") -> str:
    """Return the end of a message about an unknown name.

    Args:
        name: The unknown name.
        known: The known names.
        every: The word for the known names, such as `options`.

    Returns:
        `; did you mean ...?` with the closest name. If no name is close, the list of all names if
        `every` is given, otherwise an empty string.
    """
    names = list(known)
    if close := similar(name, names):
        return f"; did you mean {close[0]!r}?"
    return f"; the {every} are {', '.join(names)}" if every else ""
