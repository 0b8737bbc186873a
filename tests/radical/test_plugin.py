"""Tests of the plugin's declaration, and of the README's table of capabilities."""

from __future__ import annotations

import re

from rhapsody.backends.discovery import BackendRegistry, discover_backends, get_backend
from rhapsody.backends.execution.radical_pilot import RadicalExecutionBackend
from rhapsody_radical import plugin
from rhapsody_radical.pilot import rp
from rhapsody_testing import capability_table
from tests._support.declared_options import check_options
from tests._support.pages import readme

COLUMNS = {
    "functions by RAPTOR (default)": plugin.RAPTOR,
    '`functions="executable"`': plugin.EXECUTABLES,
    "other RAPTOR workers": plugin.OTHER_WORKERS,
    "`raptor=False`": plugin.NO_FUNCTIONS,
}


def cells(line: str) -> list[str]:
    """Return the cells of a line of a Markdown table."""
    return line.strip("| ").split(" | ")


def table() -> str:
    """Return the expected table: the capabilities of all kinds of pilots, side by side."""
    tables = [capability_table(each).splitlines() for each in COLUMNS.values()]
    rows = [
        [*cells(lines[0])[:2], *(cells(line)[2] for line in lines)]
        for lines in zip(*tables, strict=True)
    ]
    rows[0][2:] = COLUMNS
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return text.replace(", ".join(sorted(plugin.TASK_KEYS)), "RADICAL-Pilot's")


def test_keys_of_descriptions_match_the_library() -> None:
    assert set(rp.TaskDescription._schema) == plugin.TASK_KEYS
    kinds = {
        key: kind if isinstance(kind, type) else type(kind)
        for key, kind in rp.PilotDescription._schema.items()
    }
    assert kinds == plugin.PILOT_KEYS


def test_the_readme_contains_the_table() -> None:
    found = re.search(r"(?ms)^\| capability \|.*?(?=\n\n)", readme("rhapsody-radical"))
    assert found
    assert found[0] == table(), f"the README's table should be:\n{table()}"


def test_the_registry_finds_the_backend() -> None:
    assert discover_backends()["radical_pilot"] is True
    assert BackendRegistry.get_backend_class("radical_pilot") is RadicalExecutionBackend
    assert isinstance(get_backend("radical_pilot"), RadicalExecutionBackend)


def test_the_options_are_those_that_the_backend_accepts() -> None:
    keys = {*plugin.PILOT_KEYS, "pilots"} - {"uid"}
    check_options(plugin.OPTIONS, RadicalExecutionBackend, keys)
