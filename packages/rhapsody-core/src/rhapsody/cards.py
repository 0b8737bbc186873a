"""Cards that show engines, futures and summaries in notebooks and with rich.

A card consists of a title and a few rows. Each class that has one returns it from `_card`, and its
methods `_repr_html_` and `__rich__` render it. The HTML inherits the colors of the page, so that it
is readable on light and dark backgrounds; only the border shows the state as a color.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from rhapsody.masking import Secrets, escaped, mask, secrets_of

if TYPE_CHECKING:
    from rich.table import Table

GOOD, BAD, ACTIVE, IDLE = "#2da44e", "#e5534b", "#3b82f6", "#888888"
"""Colors of the border, with a contrast of at least 3 to 1 on white and on black."""

MAX_LENGTH = 300
"""Maximum number of characters of a value."""

_CARD = (
    "border:1px solid rgba(128,128,128,.4);border-left:4px solid {color};border-radius:4px;"
    "display:inline-block;max-width:100%;box-sizing:border-box;padding:.4em .8em"
)
_TABLE = "border-collapse:collapse;margin:.3em 0 0;background:none;color:inherit;font:inherit"
_NAME = (
    "text-align:left;vertical-align:top;white-space:nowrap;font-weight:normal;opacity:.75;"
    "padding:0 1em 0 0"
)
_VALUE = "text-align:left;overflow-wrap:anywhere;white-space:pre-wrap;padding:0"


class Card(NamedTuple):
    """Title and rows of an object.

    Attributes:
        title: The title.
        color: The color of the state.
        rows: Texts by label. Empty texts are not shown.
        environment: Variables of a task, whose values are masked in all texts.
    """

    title: str
    color: str
    rows: Mapping[str, str]
    environment: Mapping[str, str] | None = None

    def html(self) -> str:
        """Return the card as HTML."""
        from html import escape

        secrets = secrets_of(self.environment)
        rows = "".join(
            f'<tr style="background:none"><th scope="row" style="{_NAME}">{escape(label)}</th>'
            f'<td style="{_VALUE}">{escape(_shown(text, secrets))}</td></tr>'
            for label, text in self.rows.items()
            if text
        )
        return (
            f'<div style="{_CARD.format(color=self.color)}">'
            f"<strong>{escape(_shown(self.title, secrets))}</strong>"
            f'<table style="{_TABLE}">{rows}</table></div>'
        )

    def rich(self) -> Table:
        """Return the card for a terminal."""
        from rich.table import Table
        from rich.text import Text

        secrets = secrets_of(self.environment)
        table = Table(
            title=Text(escaped(_shown(self.title, secrets)), f"bold {self.color}"),
            title_justify="left",
            show_header=False,
            box=None,
            pad_edge=False,
        )
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        for label, text in self.rows.items():
            if text:
                table.add_row(label, Text(escaped(_shown(text, secrets))))
        return table


def _shown(text: str, secrets: Secrets) -> str:
    """Return text without secrets, shortened if it is long."""
    text = mask(text, secrets)
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 3]}..."
