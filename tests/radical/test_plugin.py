"""The plugin's declaration, compared with the README's table of capabilities."""

from __future__ import annotations

import re
from pathlib import Path

from rhapsody.backends.base import Capabilities
from rhapsody.backends.discovery import BackendRegistry, discover_backends, get_backend
from rhapsody.backends.execution.radical_pilot import RadicalExecutionBackend
from rhapsody_radical import plugin, schema

README = Path(__file__).parents[2] / "packages/rhapsody-radical/README.md"

# The words of the table for the fields of the declaration, in its order.
MEANINGS = {
    "functions": "async functions",
    "sync_functions": "sync functions",
    "executables": "executables",
    "services": "executables as services",
    "function_services": "functions as services",
    "cancel_functions": "cancels functions that are",
    "cancel_async_functions": "cancels async functions that are",
    "cancel_executables": "cancels executables that are",
    "cancel_services": "cancels services that are",
    "sandboxes": "a directory for each task",
    "cwd": "runs executables in a given directory",
    "files": "input and output files",
    "shared_file_system": "shares the engine's file system",
    "copies_files_out": "copies files out of sandboxes",
    "task_settings": "keys of `task_description`",
    "resources": "supported resources",
    "binds": "enforced resources",
    "captures_output": "captures the output of functions",
    "reports_running": "reports when a task starts",
    "unfinished_dependencies": "accepts unfinished tasks as arguments",
}

COLUMNS = {
    "functions by RAPTOR (default)": plugin.RAPTOR,
    '`functions="executable"`': plugin.EXECUTABLES,
    "other RAPTOR workers": plugin.OTHER_WORKERS,
    "`raptor=False`": plugin.NO_FUNCTIONS,
}


def shown(declared: Capabilities, field: str) -> str:
    value = declared.as_dict()[field]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value == sorted(schema.TASK):
        return "RADICAL-Pilot's"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return {"running": "running or queued", "queued": "queued", "none": "neither"}[value]


def table() -> str:
    """Return the expected table."""
    rows = [["", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    for field, meaning in MEANINGS.items():
        rows.append([meaning, *(shown(declared, field) for declared in COLUMNS.values())])
    return "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows)


def test_the_table_has_every_capability() -> None:
    assert list(MEANINGS) == list(plugin.RAPTOR.as_dict())


def test_the_readme_contains_the_table() -> None:
    found = re.search(r"^\| \|.*?(?=\n\n)", README.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    assert found[0] == table(), f"the README's table should be:\n{table()}"


def test_the_registry_finds_the_backend() -> None:
    assert discover_backends()["radical_pilot"] is True
    assert BackendRegistry.get_backend_class("radical_pilot") is RadicalExecutionBackend
    assert isinstance(get_backend("radical_pilot"), RadicalExecutionBackend)
