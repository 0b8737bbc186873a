"""Generator of docs/plugins/hooks.md from the hook specifications.

Run `python tests/docs/hook_reference.py` after a change of `rhapsody.plugins.specs`. A test checks
that the page is up to date.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ForwardRef, is_typeddict

from rhapsody import Usage
from rhapsody.plugins import BackendOption, specs

PAGE = Path(__file__).parents[2] / "docs" / "plugins" / "hooks.md"

MARK = (
    "<!-- Generated from here on by tests/docs/hook_reference.py from rhapsody/plugins/specs.py: "
    "do not edit. -->\n"
)
"""First line of the generated part. The text before it is written by hand."""

HEAD = (
    MARK
    + """
## Every hook

| hook | purpose |
|---|---|
"""
)

VALUES: tuple[type, ...] = (
    specs.BackendSpec,
    BackendOption,
    specs.TaskCall,
    specs.TaskEvent,
    specs.AttemptFiles,
    Usage,
    specs.LookupTask,
    specs.Recorded,
    specs.Record,
    specs.Summary,
    specs.Stats,
    specs.ObservedEngine,
    specs.CommandLine,
)
"""Types that hooks receive and return, except those documented for users elsewhere."""


def hooks() -> dict[str, Callable[..., Any]]:
    """Return the hook specifications, in the order of the module."""
    mark = f"{specs.PROJECT}_spec"
    return {name: value for name, value in vars(specs).items() if hasattr(value, mark)}


def page() -> str:
    """Return the text of the page."""
    by_hand = PAGE.read_text().partition(MARK)[0]
    found = hooks()
    rows = "".join(f"| [`{name}`](#{name}) | {summary(hook)} |\n" for name, hook in found.items())
    sections = [_hook(name, hook) for name, hook in found.items()]
    sections += ["## Types of arguments and results\n", *map(_value, VALUES)]
    return by_hand + HEAD + rows + "\n" + "\n".join(sections)


def summary(thing: object) -> str:
    """Return the first line of an object's docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0].rstrip(".")


def _hook(name: str, hook: Callable[..., Any]) -> str:
    parts = "\n\n".join(_parts(inspect.getdoc(hook) or ""))
    return f"## {name}\n\n{_call(name, hook)}\n\n{parts}\n"


def _value(kind: type) -> str:
    text = inspect.getdoc(kind) or ""
    if dataclasses.is_dataclass(kind) or is_typeddict(kind) or issubclass(kind, tuple):
        call = [] if is_typeddict(kind) else [_call(kind.__name__, kind)]
        parts = [*call, *_parts(text)]
        return f"### {kind.__name__}\n\n" + "\n\n".join(parts) + "\n"
    methods = "\n\n".join(
        "\n\n".join([_call(name, method), *_parts(inspect.getdoc(method) or "")])
        for name, method in vars(kind).items()
        if inspect.isfunction(method) and not name.startswith("_")
    )
    views = "\n".join(
        f"- `{name}`: {inspect.getdoc(view)}"
        for name, view in vars(kind).items()
        if isinstance(view, property)
    )
    return f"### {kind.__name__}\n\n{text}\n\n{views}{methods}\n"


def _call(name: str, function: Callable[..., Any]) -> str:
    """Return the signature as inline code."""
    found = inspect.signature(function)
    made = {}  # the defaults that are created for each object
    if dataclasses.is_dataclass(function):
        made = {
            field.name: field.default_factory()
            for field in dataclasses.fields(function)
            if field.default_factory is not dataclasses.MISSING
        }
    signature = found.replace(
        parameters=[
            each.replace(annotation=_source(each.annotation), default=made.get(name, each.default))
            for name, each in found.parameters.items()
        ],
        return_annotation=_source(found.return_annotation),
    )
    text = str(signature).replace("mappingproxy({})", "{}")
    return f"`{name}{text.replace('(self, ', '(').removesuffix(' -> None')}`"


class _Source(str):
    """Annotation that a signature shows without quotation marks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _source(annotation: Any) -> Any:
    """Return an annotation, which is a string in this package, without quotation marks.

    `NamedTuple` converts annotations to `ForwardRef` objects.
    """
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    return _Source(annotation) if isinstance(annotation, str) else annotation


_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):\n", re.MULTILINE)


def _parts(docstring: str) -> Iterator[str]:
    """Yield the paragraphs of a Google-style docstring as Markdown."""
    before, *sections = _SECTION.split(docstring)
    yield before.strip()
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        text = textwrap.dedent(body).strip()
        if title == "Returns":
            yield f"Returns: {_line(text)}"
        else:
            items = [_line(item) for item in re.split(r"\n(?=\S)", text)]
            yield "\n".join(re.sub(r"^(\S+?):", r"- `\1`:", item) for item in items)


def _line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(page())
