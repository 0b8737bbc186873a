"""A workflow that is killed again and again ends with the right result, and does nothing twice."""

from __future__ import annotations

from pathlib import Path

from tests.system.chaos.killed import trial


def test_what_was_seen_before_a_kill_does_not_run_again(tmp_path: Path) -> None:
    said = trial(tmp_path, 160, 4, seed=20261122)
    assert "the same result" in said
