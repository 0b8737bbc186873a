"""Registry entry and capabilities of the RADICAL-Pilot backend.

The capabilities depend on where function tasks run: on RAPTOR workers of Rhapsody's or another
class, or as separate programs. This module imports neither RADICAL-Pilot nor the backend.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rhapsody import hookimpl
from rhapsody.backends import BackendOption, BackendSpec, Capabilities

_KEYS = (
    "uid name mode executable arguments info_pattern code function command args kwargs sandbox "
    "named_env stdout stderr environment tags metadata scheduler pilot slots services partition "
    "threading_type gpu_type cpu_process_type cpu_thread_type gpu_process_type gpu_thread_type "
    "worker_file worker_class raptor_id raptor_file raptor_class pre_launch pre_exec post_launch "
    "post_exec input_staging output_staging pre_exec_sync stage_on_error use_mpi restartable "
    "cleanup priority ranks ranks_per_node cores_per_rank gpus_per_rank lfs_per_rank mem_per_rank "
    "cpu_processes cpu_threads gpu_processes gpu_threads lfs_per_process mem_per_process timeout "
    "startup_timeout"
)
TASK_KEYS: frozenset[str] = frozenset(_KEYS.split())
"""The keys of RADICAL-Pilot's task description."""

RESULT_KEYS = frozenset(
    ("environment", "input_staging", "named_env", "post_exec", "pre_exec", "pre_launch")
)
"""The keys among these that change the environment or the files of a task."""

RAPTOR = Capabilities(
    mpi_functions=True,
    services=True,
    cancel_functions="running",
    cancel_async_functions="running",
    cancel_executables="running",
    cancel_services="running",
    sandboxes=True,
    cwd=True,
    files=True,
    shared_file_system=True,
    task_settings=TASK_KEYS,
    result_settings=RESULT_KEYS,
    resources=frozenset({"cores", "gpus", "memory", "ranks", "walltime"}),
    binds=frozenset({"cores", "gpus"}),
    captures_output=True,
    reports_running=True,
)
"""Capabilities if functions run on Rhapsody's RAPTOR workers, which can kill a call's process."""

EXECUTABLES = RAPTOR
"""Capabilities if functions run as separate programs."""

OTHER_WORKERS = replace(RAPTOR, cancel_functions="none", cancel_async_functions="none")
"""Capabilities with RAPTOR workers of other classes, which cannot cancel a running call."""

NO_FUNCTIONS = replace(RAPTOR, functions=False, sync_functions=False, mpi_functions=False)
"""Capabilities if RAPTOR is disabled: functions cannot run."""


def capabilities_of(functions: str, *, enabled: bool, other_workers: bool) -> Capabilities:
    """Return the capabilities of a backend with these settings."""
    if functions == "executable":
        return EXECUTABLES
    if not enabled:
        return NO_FUNCTIONS
    return OTHER_WORKERS if other_workers else RAPTOR


_KINDS: dict[type, str] = {
    str: "uid resource access_schema sandbox queue job_name project reconfig_src",
    int: "runtime cores gpus nodes backup_nodes memory",
    list: "app_comm input_staging output_staging services",
    bool: "cleanup exit_on_error enable_ep",
    dict: "prepare_env",
}
PILOT_KEYS: dict[str, type] = {key: kind for kind, keys in _KINDS.items() for key in keys.split()}
"""The keys of RADICAL-Pilot's pilot description, and the types of their values."""

_PILOT_HELP = {
    "resource": 'Where pilots run, as SITE.MACHINE, such as "local.localhost".',
    "queue": "Queue or partition of the batch system.",
    "project": "Account of the batch system.",
    "runtime": "Runtime of the pilot in minutes.",
    "nodes": "Number of nodes. Default: 1 on a batch system, if `cores` is not set.",
    "cores": "Number of cores. Default: all cores of this machine, if `nodes` is not set.",
    "gpus": "Number of GPUs.",
    "memory": "Memory in megabytes.",
    "access_schema": 'Way to reach the machine, such as "local" or "interactive".',
}
"""Help for the most used parameters of a pilot's description."""

PILOT_DEFAULTS: dict[str, Any] = {
    "resource": "local.localhost",
    "runtime": 60,
    "exit_on_error": False,  # otherwise, a failed pilot would send SIGTERM to the user's program
}
"""Defaults of a pilot's parameters that do not depend on its resource."""


def _pilot_option(key: str) -> BackendOption:
    kind = PILOT_KEYS[key]
    accepted = list | str | dict if kind is list else kind  # a single entry instead of a list
    return BackendOption(key, accepted, PILOT_DEFAULTS.get(key), _PILOT_HELP.get(key, ""))


BATCH_WORDS = {
    "partition": "RADICAL-Pilot calls it 'queue'",
    "account": "RADICAL-Pilot calls it 'project'",
    **dict.fromkeys(("walltime", "time"), "RADICAL-Pilot calls it 'runtime', in minutes"),
    **{
        word: f"on Slurm, set the variable SBATCH_{word.upper()}"
        for word in ("constraint", "qos", "reservation")
    },
}
"""Terms of batch systems, with a hint about the equivalent in RADICAL-Pilot."""

OPTIONS = (
    *map(_pilot_option, _PILOT_HELP),
    BackendOption("pilots", list, help="Parameters of each pilot, if there are several."),
    BackendOption(
        "functions",
        Literal["raptor", "executable"],
        "raptor",
        "Function tasks run on RAPTOR workers, or each one as a separate program.",
    ),
    BackendOption(
        "commands",
        Literal["task", "raptor"],
        "task",
        "Commands run as tasks of RADICAL-Pilot, or RAPTOR workers start them, which is many times "
        "faster.",
    ),
    BackendOption("raptor", bool, True, "False disables RAPTOR."),
    BackendOption("raptor_config", dict, help="RAPTOR masters and their workers."),
    BackendOption("function_cores", int, help="Cores of each pilot for RAPTOR's workers."),
    BackendOption("pre_exec", list[str] | str, [], "Shell commands that each task runs first."),
    BackendOption("work_dir", Path, help="Directory that contains the session's directory."),
    BackendOption(
        "keep_session",
        bool,
        help="True keeps the session's directory, false removes it. Default: keep it only if a "
        "pilot failed.",
    ),
    BackendOption("verbose", bool, False, "True prints RADICAL-Pilot's reports."),
    BackendOption("name", str, "radical_pilot", "Name of the backend in an engine."),
    *(_pilot_option(key) for key in PILOT_KEYS if key not in {"uid", *_PILOT_HELP}),
    *(BackendOption(word, instead=hint) for word, hint in BATCH_WORDS.items()),
)
"""The options of the backend, including the parameters of a pilot's description."""


@hookimpl
def rhapsody_backends() -> BackendSpec:
    """Declare the backend `radical_pilot`, with its capabilities on one machine."""
    return BackendSpec(
        name="radical_pilot",
        import_path="rhapsody_radical.backend:RadicalExecutionBackend",
        summary="RADICAL-Pilot's pilots, on this machine or in batch jobs on a supercomputer",
        requires=("radical.pilot>=1.103.2,<1.104", "cloudpickle>=3.0", "psutil>=5.9"),
        capabilities=RAPTOR,
        install_hint="pip install rhapsody-radical",
        options=OPTIONS,
    )
