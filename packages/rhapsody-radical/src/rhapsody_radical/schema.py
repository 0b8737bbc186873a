"""RADICAL-Pilot's schema as data: the keys of its descriptions, their types, and its constants.

With these, a workflow's program can describe pilots and tasks without importing `radical`. A test
compares all of them with the installed library.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

PILOT: Mapping[str, type] = MappingProxyType(
    {
        "uid": str,
        "resource": str,
        "access_schema": str,
        "runtime": int,
        "app_comm": list,
        "sandbox": str,
        "cores": int,
        "gpus": int,
        "nodes": int,
        "backup_nodes": int,
        "memory": int,
        "queue": str,
        "job_name": str,
        "project": str,
        "cleanup": bool,
        "exit_on_error": bool,
        "input_staging": list,
        "output_staging": list,
        "prepare_env": dict,
        "services": list,
        "enable_ep": bool,
        "reconfig_src": str,
    }
)
"""The keys of a pilot's description, and the type of each value."""

TASK: Mapping[str, type] = MappingProxyType(
    {
        "uid": str,
        "name": str,
        "mode": str,
        "executable": str,
        "arguments": list,
        "info_pattern": str,
        "code": str,
        "function": str,
        "args": list,
        "kwargs": dict,
        "command": str,
        "sandbox": str,
        "environment": dict,
        "named_env": str,
        "pre_launch": list,
        "pre_exec": list,
        "pre_exec_sync": bool,
        "post_launch": list,
        "post_exec": list,
        "stdout": str,
        "stderr": str,
        "input_staging": list,
        "output_staging": list,
        "stage_on_error": bool,
        "priority": int,
        "use_mpi": bool,
        "ranks": int,
        "ranks_per_node": int,
        "cores_per_rank": int,
        "gpus_per_rank": float,
        "threading_type": str,
        "gpu_type": str,
        "lfs_per_rank": int,
        "mem_per_rank": int,
        "cpu_processes": int,
        "cpu_process_type": str,
        "cpu_threads": int,
        "cpu_thread_type": str,
        "gpu_processes": int,
        "gpu_process_type": str,
        "gpu_threads": int,
        "gpu_thread_type": str,
        "lfs_per_process": int,
        "mem_per_process": int,
        "scheduler": str,
        "worker_file": str,
        "worker_class": str,
        "restartable": bool,
        "tags": dict,
        "raptor_id": str,
        "raptor_file": str,
        "raptor_class": str,
        "metadata": dict,
        "services": list,
        "timeout": float,
        "startup_timeout": float,
        "cleanup": bool,
        "pilot": str,
        "slots": list,
        "partition": int,
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
"""Former keys of a task's description, with the current ones. If both are set, the former wins."""

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
