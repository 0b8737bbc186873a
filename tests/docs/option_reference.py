"""Writes docs/engine-options.md from `rhapsody.engine.options`.

Run it after a change there: `python tests/docs/option_reference.py`. A test compares the two.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from rhapsody import WorkflowEngine
from rhapsody.engine.options import OPTIONS

PAGE = Path(__file__).parents[2] / "docs" / "engine-options.md"

HEAD = """\
<!-- Written by tests/docs/option_reference.py from rhapsody/engine/options.py: do not edit. -->
# Options of the engine

Arguments of `WorkflowEngine.create(...)` and of `rhapsody.run(main, ...)`. On the command line,
`rhapsody run -e NAME=VALUE` sets those that have no option of their own, with values as in TOML:
`-e retries=2 -e 'timeout="3 min"'`.

"""


def page() -> str:
    """Return the text of the page."""
    parameters = inspect.signature(WorkflowEngine.create).parameters
    sections = [
        f"## {name}\n\n`{parameters[name].annotation}`, default `{parameters[name].default!r}`\n\n"
        f"{option.metadata['help']}\n"
        for name, option in OPTIONS.items()
    ]
    return HEAD + "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(page())
