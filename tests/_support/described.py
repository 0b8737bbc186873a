"""Descriptions of executable tasks, for tests of the code that runs them without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from rhapsody.data import make_sandbox
from rhapsody.task import TaskDescription


def described(tmp_path: Path, command: str, **keys: Any) -> TaskDescription:
    """Return the description of a command with a new sandbox."""
    task = {
        "uid": "flow.task.000001.1",
        "name": "tool",
        "executable": command,
        "sandbox": make_sandbox(str(tmp_path / "sandbox")),
        **keys,
    }
    return cast("TaskDescription", task)
