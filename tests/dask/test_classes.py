"""Keywords for clusters of a class that the user names."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import LocalCluster

from rhapsody_dask.classes import keywords, remove_credentials, requested, scratch_directory

CLOSED = ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]


class BatchJob:
    @classmethod
    def default_config_name(cls) -> str:
        return "example"


class BatchCluster:
    """A class with the attribute by which classes of dask-jobqueue are recognized."""

    job_cls = BatchJob


def test_jobs_use_tls_and_no_http_by_default(tmp_path: Path) -> None:
    made, http = keywords(BatchCluster, {"interface": "ib0"}, lambda: str(tmp_path))
    security = made.pop("security")
    assert made == {
        "interface": "ib0",
        "scheduler_options": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        "worker_extra_args": CLOSED,
        "log_directory": str(tmp_path),
        "job_script_prologue": made["job_script_prologue"],
        "local_directory": '"$rhapsody_dask"',
    }
    assert http == (False, False)
    files = [security.tls_ca_file, security.tls_worker_cert, security.tls_worker_key]
    assert [stat.S_IMODE(Path(path).stat().st_mode) for path in files] == [0o600] * 3
    remove_credentials(str(tmp_path))
    assert not tmp_path.exists()


def test_settings_of_the_user_and_of_dasks_configuration_are_kept(tmp_path: Path) -> None:
    configured = {
        "scheduler-options": {"dashboard_address": ":8787"},
        "worker-extra-args": ["--resources", "cores=4"],
        "log-directory": str(tmp_path / "logs"),
        "job-script-prologue": ["module load python"],
        "local-directory": "/local",
    }
    with dask.config.set({"jobqueue.example": configured}):
        made, http = keywords(BatchCluster, {"security": False}, lambda: None)
        assert made["scheduler_options"] == {"dashboard_address": ":8787"}
        assert made["worker_extra_args"] == ["--resources", "cores=4", *CLOSED]
        assert made["job_script_prologue"][0] == "module load python"
        assert '"/local/rhapsody-dask-' in made["job_script_prologue"][1]
        assert "security" not in made  # dask-jobqueue takes any other value for True
        assert http == (True, False)
        given: dict[str, Any] = {"worker_extra_args": ["--dashboard-address", ":0"]}
        made, http = keywords(BatchCluster, given, lambda: str(tmp_path))
        assert made["worker_extra_args"] == ["--dashboard-address", ":0"]
        assert http == (True, True)
        assert made["log_directory"] == str(tmp_path / "logs")
        assert stat.S_IMODE((tmp_path / "logs").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("given", "http"),
    [
        ({}, (False, False)),
        ({"dashboard_address": None, "worker_dashboard_address": None}, (False, False)),
        ({"dashboard_address": ":0"}, (True, False)),
        ({"scheduler_kwargs": {"dashboard_address": ":0"}}, (True, False)),
        ({"worker_dashboard_address": ":0"}, (False, True)),
        ({"worker_options": {"dashboard_address": ":0"}}, (False, True)),
    ],
)
def test_a_dashboard_is_requested_by_an_address(given: dict[str, Any], http: object) -> None:
    assert requested(given) == http
    assert keywords(LocalCluster, given, lambda: None)[1] == http


@pytest.mark.parametrize("fault", [None, "link", "mode", "owner"])
def test_files_of_workers_are_in_a_directory_of_the_user(tmp_path: Path, fault: str | None) -> None:
    """A directory or link of another user is not used, neither here nor by batch jobs."""
    path = tmp_path / f"rhapsody-dask-{os.getuid()}"
    if fault == "link":
        (tmp_path / "theirs").mkdir(0o700)
        path.symlink_to(tmp_path / "theirs")
    elif fault is not None:
        path.mkdir(0o700)
        if fault == "mode":
            path.chmod(0o777)
        elif os.getuid() == 0:
            os.chown(path, 23002, 23002)
        else:
            pytest.skip("only root can give a directory to another user")
    made, _ = keywords(BatchCluster, {"security": False, "local_directory": tmp_path}, lambda: None)
    script = "\n".join([*made["job_script_prologue"], f"echo {made['local_directory']}"])
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True)
    for found in (Path(scratch_directory(tmp_path)), Path(done.stdout.strip())):
        assert found.parent == tmp_path
        assert (found == path) == (fault is None)
        assert (found.stat().st_uid, found.stat().st_mode & 0o777) == (os.getuid(), 0o700)
