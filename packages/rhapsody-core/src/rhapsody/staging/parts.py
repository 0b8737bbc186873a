"""Unfinished copies next to the destinations of results, which a killed run leaves behind.

A run records, in its own directory, the directories in which it saves files. The next run and
`rhapsody clean` look there for the unfinished copies of dead runs: names with the run's token.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from pathlib import Path

from rhapsody.staging.fsutil import remove
from rhapsody.staging.locks import state_of
from rhapsody.staging.runs import LOCK, PARTS

_TOKEN = re.compile(r"[0-9a-f]{8}")


def new_token() -> str:
    """Return the common part of the names of one engine's copies."""
    return uuid.uuid4().hex[:8]


def part_of(path: Path, token: str) -> Path:
    """Return a name for a copy that is to be renamed to a path."""
    return path.with_name(f".{path.name[:40]}.{token}{uuid.uuid4().hex[8:]}.part")


def note(run: Path, token: str, directory: Path) -> None:
    """Record that a run saves files in a directory."""
    with open(run / PARTS, "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"{token} {directory}\n")


def remove_parts(run: Path) -> None:
    """Remove the unfinished copies of a dead run."""
    try:
        noted = (run / PARTS).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except (OSError, ValueError):
        return
    for token, _, directory in (line.partition(" ") for line in noted):
        if not (_TOKEN.fullmatch(token) and os.path.isabs(directory)):
            continue
        part = re.compile(rf"\..{{1,40}}\.{token}[0-9a-f]{{24}}\.part", re.DOTALL)
        with contextlib.suppress(OSError):  # it was removed, or may not be read
            for name in os.listdir(directory):
                if part.fullmatch(name):
                    remove(Path(directory, name))
    with contextlib.suppress(OSError):
        (run / PARTS).unlink()


def remove_parts_of_others(base: Path, own: Path) -> None:
    """Remove the unfinished copies of earlier runs in a `.rhapsody`."""
    with contextlib.suppress(OSError), os.scandir(base) as entries:
        for entry in entries:
            run = Path(entry.path)
            if run == own or entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            if os.path.exists(run / PARTS) and state_of(run / LOCK) in ("left", "free"):
                remove_parts(run)
