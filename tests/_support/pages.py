"""HTML pages as trees of elements, for tests of reports; READMEs."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

VOID = frozenset({"meta", "rect", "path", "br", "link", "img"})
"""Elements without an end tag; those of SVG close themselves."""


def readme(distribution: str) -> str:
    """Return the README of a distribution, in the repository or in its sdist."""
    root = Path(__file__).parents[2]
    folder = root / "packages" / distribution
    return ((folder if folder.exists() else root) / "README.md").read_text(encoding="utf-8")


class Element:
    """Element of a page.

    Args:
        tag: The name of the tag.
        attributes: The attributes.
        parent: The element that contains it, or `None` for the whole page.
    """

    def __init__(self, tag: str, attributes: dict[str, str], parent: Element | None) -> None:
        self.tag = tag
        self.attributes = attributes
        self.parent = parent
        self.children: list[Element | str] = []

    @property
    def elements(self) -> Iterator[Element]:
        """The elements in it, in the order of the page."""
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child.elements

    @property
    def text(self) -> str:
        """Its text, with single spaces; scripts and styles have none."""
        if self.tag in ("script", "style", "title") and self.parent is not None:
            return ""
        parts = (x if isinstance(x, str) else f" {x.text} " for x in self.children)
        return " ".join("".join(parts).split())

    @property
    def content(self) -> str:
        """Its own text, as it is."""
        return "".join(child for child in self.children if isinstance(child, str))

    def find(self, *tags: str, **attributes: str) -> list[Element]:
        """The elements in it with one of these tags and with these attributes."""
        return [
            each
            for each in self.elements
            if each.tag in tags
            and all(each.attributes.get(name) == value for name, value in attributes.items())
        ]

    def get(self, id: str) -> Element:
        """The only element with an id."""
        (found,) = (each for each in self.elements if each.attributes.get("id") == id)
        return found


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.at = Element("page", {}, None)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = Element(tag, {name: value or "" for name, value in attributes}, self.at)
        self.at.children.append(found)
        if tag not in VOID:
            self.at = found

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = Element(tag, {name: value or "" for name, value in attributes}, self.at)
        self.at.children.append(found)

    def handle_endtag(self, tag: str) -> None:
        assert self.at.tag == tag, f"</{tag}> ends <{self.at.tag}>"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.children.append(data)


def parsed(html: str) -> Element:
    """Parse a page. Fails if an element is not closed."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert parser.at.tag == "page", f"<{parser.at.tag}> is not closed"
    return parser.at


def row(table: Element, name: str) -> list[str]:
    """The cells of the row with this header."""
    (found,) = (each for each in table.find("tr") if each.find("th")[0].text == name)
    return [cell.text for cell in found.find("td")]
