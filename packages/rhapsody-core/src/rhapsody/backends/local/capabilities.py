"""What the local backend can do, by the executor it runs functions on. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import replace

from rhapsody.backends.base import Capabilities

THREADS = Capabilities(
    services=True,
    cancel_functions="queued",
    cancel_async_functions="running",
    cancel_executables="running",
    cancel_services="running",
    sandboxes=True,
    cwd=True,
    files=True,
    shared_file_system=True,
    task_settings=frozenset({"shell"}),
    resources=frozenset({"cores", "fractional_cores", "gpus", "memory", "walltime"}),
    binds=frozenset({"cores", "gpus"}),
    captures_output=True,
    reports_running=True,
)
"""Functions on threads: a function that runs cannot be stopped, a coroutine can.

Executables are bound to their cores and GPUs by variables; functions on threads
share the program's own variables, and are only counted.
"""

PROCESSES = replace(THREADS, cancel_functions="running")
"""Functions in worker processes: everything can be stopped, and is bound by variables."""

EXECUTOR = replace(THREADS, cancel_async_functions="queued")
"""Functions on an executor that the user brings: what runs there cannot be stopped."""
