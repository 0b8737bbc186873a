"""RADICAL-Pilot's schema as data: the keys of its descriptions, their types, and its constants.

With this schema, the backend can validate descriptions of pilots and tasks without importing
`radical` into the program. A test compares the schema with the installed library.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


def _keys(of_types: Mapping[type, str]) -> Mapping[str, type]:
    """Return a mapping of each key to its type, from a mapping of types to keys."""
    found = {key: kind for kind, keys in of_types.items() for key in keys.split()}
    return MappingProxyType(found)


PILOT: Mapping[str, type] = _keys(
    {
        str: "uid resource access_schema sandbox queue job_name project reconfig_src",
        int: "runtime cores gpus nodes backup_nodes memory",
        list: "app_comm input_staging output_staging services",
        bool: "cleanup exit_on_error enable_ep",
        dict: "prepare_env",
    }
)
"""The keys of a pilot's description, and the type of each value."""

TASK: Mapping[str, type] = _keys(
    {
        str: (
            "uid name mode executable info_pattern code function command sandbox named_env "
            "stdout stderr threading_type gpu_type cpu_process_type cpu_thread_type "
            "gpu_process_type gpu_thread_type scheduler worker_file worker_class raptor_id "
            "raptor_file raptor_class pilot"
        ),
        list: (
            "arguments args pre_launch pre_exec post_launch post_exec input_staging "
            "output_staging services slots"
        ),
        dict: "kwargs environment tags metadata",
        bool: "pre_exec_sync stage_on_error use_mpi restartable cleanup",
        int: (
            "priority ranks ranks_per_node cores_per_rank lfs_per_rank mem_per_rank "
            "cpu_processes cpu_threads gpu_processes gpu_threads lfs_per_process "
            "mem_per_process partition"
        ),
        float: "gpus_per_rank timeout startup_timeout",
    }
)
"""The keys of a task's description, and the type of each value."""

FORMER: Mapping[str, str] = MappingProxyType(
    {
        "cpu_processes": "ranks",
        "cpu_threads": "cores_per_rank",
        "cpu_thread_type": "threading_type",
        "gpu_processes": "gpus_per_rank",
        "gpu_process_type": "gpu_type",
        "lfs_per_process": "lfs_per_rank",
        "mem_per_process": "mem_per_rank",
        "scheduler": "raptor_id",
        "worker_file": "raptor_file",
        "worker_class": "raptor_class",
    }
)
"""Former keys of a task's description, each with the current key.

If both are set, the value of the former key is used.
"""

# Values of `mode`.

TASK_EXECUTABLE: Final = "task.executable"
TASK_SERVICE: Final = "task.service"
TASK_FUNCTION: Final = "task.function"
RAPTOR_MASTER: Final = "raptor.master"
RAPTOR_WORKER: Final = "raptor.worker"

# Staging actions, and types of GPUs.

TRANSFER: Final = "Transfer"
LINK: Final = "Link"
CUDA: Final = "CUDA"

# States.

AGENT_STAGING_INPUT_PENDING: Final = "AGENT_STAGING_INPUT_PENDING"
AGENT_EXECUTING: Final = "AGENT_EXECUTING"
PMGR_ACTIVE_PENDING: Final = "PMGR_ACTIVE_PENDING"
PMGR_ACTIVE: Final = "PMGR_ACTIVE"
DONE: Final = "DONE"
FAILED: Final = "FAILED"
CANCELED: Final = "CANCELED"
FINAL: Final = (DONE, FAILED, CANCELED)
