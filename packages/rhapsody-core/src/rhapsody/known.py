"""Facts about other distributions, for messages that name the distribution to install.

This module holds data and imports nothing. No other module of core names a plugin, except those
for the import paths of rhapsody 0.1. What the engine needs to know about a backend is declared by
the backend, so that those of third parties get the same. Asking a package index what exists would
make messages depend on the network.
"""

from __future__ import annotations

BACKENDS = {
    "dask": "rhapsody-dask",
    "radical_pilot": "rhapsody-radical",
    "psij": "rhapsody-psij",
    "simulated": "rhapsody-simulated",
    "dragon": "rhapsody-dragon",
}
"""Reserved names of backends, each with the only distribution that may use it."""

BACKENDS_ELSEWHERE = {
    **dict.fromkeys(("dask_parallel", "distributed"), "dask"),
    **dict.fromkeys(("radical", "rp", "radical.pilot", "slurm", "pbs"), "radical_pilot"),
    **dict.fromkeys(("dragon_v1", "dragon_v2", "dragonhpc"), "dragon"),
}
"""Names of backends in other projects, and likely guesses, each with the name to use instead."""

COMMANDS = {
    "report": "rhapsody-report",
    "replay": "rhapsody-wfcommons",
    "submit": "rhapsody-psij",
    "attach": "rhapsody-psij",
    "cancel": "rhapsody-psij",
}
"""Commands, each with the distribution that contains it."""

FORMATS = {"ro-crate": "rhapsody-report", "wfcommons": "rhapsody-wfcommons"}
"""Formats of `rhapsody export`, each with the distribution that contains it."""

RUN_OPTIONS = {"--dashboard": "rhapsody-report", "--dashboard-port": "rhapsody-report"}
"""Options of `rhapsody run`, each with the distribution that contains it."""

ALIASES = {"dragon_v3": "dragon"}
"""Names of other projects that are accepted for a backend of a separate distribution."""

CLASSES = {
    "rhapsody.backends.execution.dask_parallel": "DaskExecutionBackend",
    "rhapsody.backends.execution.dragon": "DragonExecutionBackend DragonExecutionBackendV3",
    "rhapsody.backends.execution.radical_pilot": "RadicalExecutionBackend",
}
"""Classes of plugins that core exports under the import paths of rhapsody 0.1, by module."""

SESSION_NAMES = {
    "rhapsody.api": (
        "AITask BaseTask ComputeTask ResourceError Session SessionError TaskExecutionError "
        "TaskValidationError enable_logging"
    ),
}
"""Names of rhapsody-py, which a separate distribution provides, by module."""

NEEDED: dict[str, tuple[str, ...]] = {
    "rhapsody.api": ("rhapsody_asyncflow",),
    "rhapsody.backends.execution.dask_parallel": ("rhapsody_dask", "distributed"),
    "rhapsody.backends.execution.dragon": ("rhapsody_dragon", "dragon"),
    "rhapsody.backends.execution.radical_pilot": ("rhapsody_radical", "radical.pilot"),
}
"""The modules that must be installed for each module in `CLASSES` and `SESSION_NAMES`."""

PYTHONS = {
    "rhapsody-dragon": ("Dragon", (3, 11), (3, 13)),
    "rhapsody-radical": ("RADICAL-Pilot", (3, 11), (3, 13)),
}
"""Distributions that support only some versions of Python, each with the library that is the
reason, and the first and last version."""

RANKS = ("psij", "radical_pilot")
"""Backends that run functions with several ranks."""

NODES = "install rhapsody-dask and run with -b dask -o launcher=srun (or mpirun, ssh)"
"""The way to use all nodes of a batch job."""
