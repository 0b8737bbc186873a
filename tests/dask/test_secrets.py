"""Tests that values of tasks' variables are in nothing that a run on Dask leaves or shows."""

from __future__ import annotations

from pathlib import Path

from tests._support.marker import check_no_secrets


def test_a_run_in_dasks_processes(tmp_path: Path) -> None:
    # With one thread each, so that functions may have variables of their own.
    check_no_secrets(tmp_path, "-b", "dask", "-o", "n_workers=2", "-o", "threads_per_worker=1")
