"""A small batch system made of shell commands, with Slurm's names, and the backend of the docs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from rhapsody.backends.commands import CommandBackend

PAGE = Path(__file__).parents[2] / "docs/plugins/processes.md"

COMMANDS = {
    # A job is a process group; it is in the queue as long as its file is there.
    "sbatch": """
for script; do
    case $script in --mem=????????????*)
        echo "error: Requested node configuration is not available" >&2
        exit 1
    esac
done
setsid sh -c 'for _ in $(seq 1000); do [ -e "$0/$$" ] && break; sleep 0.01; done
    [ -e "$0/$$" ] && "$1"; rm -f "$0/$$"' \\
    "$SPOOL" "$script" </dev/null >/dev/null 2>&1 &
until kill -0 "-$!" 2>/dev/null; do sleep 0.01; done
echo >"$SPOOL/$!"
echo "$!;here"
""",
    "squeue": """
[ ! -e "$SPOOL/down" ] || { echo no controller >&2; exit 1; }
cd "$SPOOL" && for job in [0-9]*; do
    [ -e "$job" ] && [ ! -e lags ] && if [ -e waits ]; then echo "$job PD"; else echo "$job R"; fi
done
echo . >>"$SPOOL/asked"
""",
    "scancel": """
for job; do kill -9 "-$job"; rm -f "$SPOOL/$job"; done 2>/dev/null
""",
}


def install(directory: Path, patch: Any) -> Path:
    """Makes the commands, and has them found; the directory of the queue."""
    programs, spool = directory / "bin", directory / "spool"
    programs.mkdir()
    spool.mkdir()
    for name, text in COMMANDS.items():
        (programs / name).write_text(f"#!/bin/sh{text}")
        (programs / name).chmod(0o755)
    patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    patch.setenv("SPOOL", str(spool))
    return spool


def documented(resources: Any = None) -> CommandBackend:
    """A backend as the page for authors shows it."""
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {"__name__": "documented"}
    exec(compile(found[1], PAGE.name, "exec", dont_inherit=True), names)
    backend: CommandBackend = names["SlurmBackend"](resources)
    return backend
