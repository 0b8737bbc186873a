"""Values of tasks' environment variables, which must not appear in files or output of a run."""

from __future__ import annotations

from pathlib import Path

from tests._support.marker import check_no_secrets


def test_a_run_on_worker_processes_shows_no_secrets(tmp_path: Path) -> None:
    # With one thread each, so that functions may have variables of their own.
    check_no_secrets(tmp_path, "-b", "dask", "-o", "n_workers=2", "-o", "threads_per_worker=1")
