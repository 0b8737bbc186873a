"""Declaration of the PSI/J backend for Rhapsody's registry, and of the plugin's commands.

This module imports neither PSI/J nor the class of the backend.
"""

from __future__ import annotations

from dataclasses import replace

from rhapsody import hookimpl
from rhapsody.backends import BackendOption, BackendSpec, Capabilities
from rhapsody.plugins import CommandLine

TASK_SETTINGS = frozenset({"queue", "account", "attributes", "launcher", "nodes"})
"""Keys of `task_description`: the options of the same names for one task, and its nodes."""

LOCAL = Capabilities(
    function_environments=True,
    mpi_functions=True,
    cancel_functions="running",
    cancel_async_functions="running",
    cancel_executables="running",
    sandboxes=True,
    cwd=True,
    files=True,
    shared_file_system=True,
    task_settings=TASK_SETTINGS,
    result_settings=frozenset(),  # they choose the nodes
    resources=frozenset({"ranks", "walltime"}),
    captures_output=True,
    reports_running=True,
)
"""Capabilities with the executor `local`, which starts jobs without counting their resources."""

RESOURCES = {
    "slurm": frozenset({"cores", "gpus", "memory"}),
    "pbs": frozenset({"cores", "memory"}),
    "pbs_classic": frozenset({"cores", "gpus", "memory"}),
    "lsf": frozenset({"cores", "gpus", "memory"}),
    "flux": frozenset({"cores", "gpus"}),
}
"""Resources that PSI/J passes on, by executor, in addition to ranks and the walltime."""

BINDS = {"slurm": frozenset({"gpus"})}
"""Resources that a batch system enforces on each task in its usual configuration, by executor."""


def capabilities_of(executor: str) -> Capabilities:
    """Return the capabilities of the backend with an executor of PSI/J."""
    return replace(
        LOCAL,
        resources=LOCAL.resources | RESOURCES.get(executor, frozenset()),
        binds=BINDS.get(executor, frozenset()),
    )


OPTIONS = (
    BackendOption(
        "executor",
        str,
        "local",
        'The batch system: "slurm", "pbs", "pbs_classic", "lsf", "flux", "cobalt", or "local".',
    ),
    BackendOption("queue", str, help="Queue or partition of the batch system."),
    BackendOption("account", str, help="Account to which the batch system charges the jobs."),
    BackendOption(
        "attributes",
        dict,
        help='Attributes of each job: "duration" and "reservation_id", and options of the batch '
        'system such as "slurm.qos".',
    ),
    BackendOption(
        "launcher",
        str,
        help='PSI/J\'s launcher for tasks with several ranks. Default: "srun" on Slurm, "mpirun" '
        "otherwise.",
    ),
    BackendOption(
        "max_jobs",
        int,
        help="Maximum number of jobs in the batch system at the same time, including those of "
        "earlier runs that are taken over. Default: 100, or the number of processors with the "
        'executor "local".',
    ),
    BackendOption(
        "tasks_per_job",
        int,
        help="Maximum number of tasks that share a job. By default, only tasks that take less than "
        "90 ms share jobs.",
    ),
    BackendOption(
        "detach",
        bool,
        False,
        "Let jobs continue if the program is killed, or ended by SIGTERM or SIGHUP; the next run "
        "takes over their results.",
    ),
    BackendOption(
        "poll_interval",
        float | str,
        30.0,
        "Maximum seconds between two queries of the queue while there are jobs.",
    ),
    BackendOption("name", str, "psij", "Name of the backend in an engine."),
    BackendOption("partition", instead="PSI/J calls it 'queue'"),
    BackendOption("project", instead="PSI/J calls it 'account'"),
    BackendOption("walltime", instead="set 'duration' in 'attributes', or the task's walltime"),
)
"""The options that can be set in files and on the command line."""


@hookimpl
def rhapsody_backends() -> BackendSpec:
    """Return the declaration of the backend `psij`, with its capabilities on this machine."""
    return BackendSpec(
        name="psij",
        import_path="rhapsody_psij.backend:PsijExecutionBackend",
        summary="a job of a batch system for each task, or for several tasks, through PSI/J",
        requires=("psij-python>=0.9.11,<0.10", "psutil>=5.9"),
        capabilities=LOCAL,
        install_hint="pip install rhapsody-psij",
        options=OPTIONS,
    )


@hookimpl
def rhapsody_commands(cli: CommandLine) -> None:
    """Add the commands for submitted runs."""
    from rhapsody_psij import commands

    cli.add_command("submit", commands.SUBMIT, commands.configure_submit, commands.submit)
    cli.add_command("attach", commands.ATTACH, commands.configure_run, commands.attach)
    cli.add_command("cancel", commands.CANCEL, commands.configure_run, commands.cancel)
