"""What `rhapsody doctor` runs in a process of its own for each plugin: load it and tell.

Reads one JSON request from standard input and writes JSON lines to standard
output, one as each step ends, so that the doctor sees how far a plugin came that
never returns. What the plugin prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

COMMAND = (
    "import json, sys\n"
    "request = json.loads(sys.stdin.read())\n"
    "sys.path[:] = request['path']\n"
    "from rhapsody.cli.probe import main\n"
    "main(request)\n"
)
"""Run with `python -P -c`; takes over the module path of the process that asks."""


LEVELS = ("ok", "note", "broken")


def main(request: dict[str, Any]) -> None:
    """Loads one plugin and the backends it declares.

    Args:
        request: `path`, the entry point as in `PluginEntry`, and `backends`, the names
            it is registered under.
    """
    # The plugin may print, so it gets no hold of the pipe that the answers go through.
    answers = os.dup(1)
    os.dup2(2, 1)
    os.set_inheritable(answers, False)
    # Imported before the clock starts: what these need is not the plugin's doing.
    import rhapsody.backends.base  # noqa: F401
    from rhapsody.errors import PluginError
    from rhapsody.plugins.entry_points import PluginEntry
    from rhapsody.plugins.manager import load

    def answer(**values: Any) -> None:
        os.write(answers, (json.dumps(values) + "\n").encode())

    try:
        loaded = load(PluginEntry(**request["entry"]))
    except PluginError as error:
        answer(step="load", ok=False, reason=str(error))
        return
    answer(step="load", ok=True, seconds=loaded.seconds, hooks=sorted(loaded.hooks))
    for name in request["backends"]:
        answer(step="backend", name=name, **_backend(name))
    sys.stdout.flush()
    # Threads that the library started must not keep this process.
    os._exit(0)


def _backend(name: str) -> dict[str, Any]:
    from rhapsody.backends.discovery import BackendRegistry

    described = BackendRegistry.describe(name)
    if not described.usable:
        return {"ok": False, "reason": described.reason, "remedy": described.remedy}
    start = time.perf_counter()
    try:
        kind = BackendRegistry.get_backend_class(name)
    except (ImportError, TypeError) as error:
        return {"ok": False, "reason": str(error), "remedy": ""}  # the error says it itself
    seconds = time.perf_counter() - start
    return {"ok": True, "seconds": seconds, "findings": _diagnosis(kind)}


def _diagnosis(kind: Any) -> list[tuple[str, str, str]]:
    """What the backend's class says of its installation; whatever it does, three texts each."""
    if not hasattr(kind, "diagnose"):
        return []
    try:
        return [
            (level if level in LEVELS else "note", str(text), str(remedy))
            for level, text, remedy in kind.diagnose()
        ]
    except Exception as error:  # the plugin's own
        return [("broken", f"diagnose() raised {type(error).__name__}: {error}", "")]
