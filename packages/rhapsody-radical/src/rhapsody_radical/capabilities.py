"""What the backend can do, by how it runs functions. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import replace

from rhapsody.backends import Capabilities
from rhapsody_radical import schema

RAPTOR = Capabilities(
    services=True,
    cancel_functions="running",
    cancel_async_functions="running",
    cancel_executables="running",
    cancel_services="running",
    sandboxes=True,
    cwd=True,
    files=True,
    shared_file_system=True,
    task_settings=frozenset(schema.TASK),
    resources=frozenset({"cores", "gpus", "memory", "ranks", "walltime"}),
    binds=frozenset({"cores"}),
    captures_output=True,
    reports_running=True,
)
"""Functions on RAPTOR workers of our own, each call in a process of its own."""

EXECUTABLES = RAPTOR
"""Functions as programs of their own."""

OTHER_WORKERS = replace(RAPTOR, cancel_functions="none", cancel_async_functions="none")
"""Functions on RAPTOR workers of a class that is not ours: what runs there goes on."""

NO_FUNCTIONS = replace(RAPTOR, functions=False, sync_functions=False)
"""RAPTOR is switched off, and functions with it."""


def of(functions: str, *, enabled: bool, other_workers: bool) -> Capabilities:
    """What a backend with these settings can do."""
    if functions == "executable":
        return EXECUTABLES
    if not enabled:
        return NO_FUNCTIONS
    return OTHER_WORKERS if other_workers else RAPTOR
