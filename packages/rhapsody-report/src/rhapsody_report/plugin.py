"""Entry point of the plugin: `rhapsody report`, the RO-Crates, and the dashboard of a run.

The libraries that they need and the other modules of this package are imported on first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from rhapsody import hookimpl
from rhapsody.plugins import CommandLine, CommandOption, StartedRun, UsageError

CRATE_OPTIONS = (
    CommandOption("license", str, "the license of the RO-Crate, as URL or text"),
    CommandOption(
        "files",
        Literal["reference", "digest", "copy"],
        "reference data files in the RO-Crate, also compute their digests, or also copy them "
        "(default: digest)",
    ),
)

RUN_OPTIONS = (
    CommandOption(
        "dashboard",
        bool,
        "serve the report of the run while it is in progress, for a browser on this machine",
    ),
    CommandOption(
        "dashboard_port",
        int,
        "the port of the dashboard (default: a free one); implies --dashboard",
        "PORT",
    ),
)


@hookimpl
def rhapsody_commands(cli: CommandLine) -> None:
    """Add the command `report` and the format `ro-crate`."""
    from rhapsody_report import command

    cli.add_command("report", command.HELP, command.configure, command.run)
    cli.add_export_format("ro-crate", "-crate", write_crate, CRATE_OPTIONS)


def write_crate(
    record: Path,
    output: Path,
    *,
    license: str | None = None,
    files: Literal["reference", "digest", "copy"] | None = None,
) -> str:
    """Write a record as an RO-Crate: a directory, or a file if its name ends with `.zip`.

    Args:
        record: The path of the record.
        output: The path of the directory or file to write.
        license: The license of the crate.
        files: The treatment of data files.

    Returns:
        A description of the crate.
    """
    from rhapsody.history import read_run
    from rhapsody_report.provenance import ro_crate

    crate = ro_crate(read_run(record), license=license, files=files or "digest")
    if output.suffix == ".zip":
        crate.write_zip(output)
    else:
        crate.write(output)
    if crate.mainEntity is not None:
        return "a Provenance Run Crate"
    return "a Process Run Crate without the program, which is not available"


@hookimpl
def rhapsody_run_options() -> Sequence[CommandOption]:
    """Return the options of the dashboard."""
    return RUN_OPTIONS


@hookimpl
def rhapsody_run_started(run: StartedRun) -> AbstractContextManager[object] | None:
    """Return the dashboard if it was requested.

    Raises:
        UsageError: The options contradict each other, or the port is invalid.
        DashboardError: The dashboard cannot be started.
    """
    port = run.options["dashboard_port"]
    if port is None and not run.options["dashboard"]:
        return None
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"--dashboard-port must be between 1 and 65535, got {port}")
    if run.dry_run:
        raise UsageError("--dashboard shows tasks that run, but --dry-run runs none; omit one")
    from rhapsody_report.dashboard.process import shown

    return shown(run.program, port)
