"""Control groups as the kernel shows them, made up for tests of what it kills for memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhapsody.sdk import executables
from rhapsody.sdk.executables import V2, CgroupFiles, MemoryGroup

MiB = 1 << 20


def write(
    directory: Path, files: CgroupFiles, kills: int, limit: int | str, peak: int | str
) -> Path:
    """Writes what the kernel has in the directory of a control group; returns the counts' file."""
    directory.mkdir(parents=True, exist_ok=True)
    counts = directory / files.kills
    counts.write_text(f"oom 3\noom_kill {kills}\noom_group_kill 0\n")
    (directory / files.limit).write_text(f"{limit}\n")
    (directory / files.peak).write_text(f"{peak}\n")
    return counts


def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pretend that this process is in a group of 500 MiB in which a process was killed before.

    Returns:
        The file with the counts.
    """
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    counts = write(tmp_path / "mount" / "job" / "step", V2, 1, 500 * MiB, 499 * MiB)
    group = MemoryGroup(own, tmp_path / "mount")
    monkeypatch.setattr(executables, "memory_group", lambda: group)
    return counts


def killed(counts: Path) -> str:
    """A command that ends as one that the kernel kills for memory."""
    return f"echo 'almost done' >&2; sed -i 's/^oom_kill 1/oom_kill 2/' {counts}; kill -9 $$"
