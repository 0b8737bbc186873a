"""What the kit adds to a pytest run: tables of what was proved, at its end.

It joins the run by itself when the first conformance test starts, so that a test
run without such tests is not touched by it. Loaded by name as well
(`-p rhapsody.testing.plugin`), it adds an option for tables in Markdown.
"""

from __future__ import annotations

import sys

import pytest

from rhapsody.testing._ledger import ledger, proof_tables

_announced = pytest.StashKey[list[type]]()
_NAME = "rhapsody-conformance"


def announce(config: pytest.Config, kit: type) -> None:
    """Says that tests of this class run, so that the end of the run shows its table."""
    if not config.pluginmanager.has_plugin(_NAME):
        config.pluginmanager.register(sys.modules[__name__], _NAME)
    kits = config.stash.setdefault(_announced, [])
    if kit not in kits:
        kits.append(kit)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Writes one table for each conformance class that ran."""
    as_markdown = config.getoption("rhapsody_table", "plain") == "markdown"
    for kit in config.stash.get(_announced, []):
        if not ledger.of(kit):
            continue
        if as_markdown:
            terminalreporter.write_line(f"\n### {kit.__name__}\n")
        else:
            terminalreporter.section(f"conformance of {kit.__name__}")
        terminalreporter.write_line(proof_tables(kit, as_markdown=as_markdown))
