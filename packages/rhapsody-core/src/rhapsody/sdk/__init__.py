"""Building blocks for backends: worker calls, programs, services, output, readiness and threads.

Backends use these in addition to the interface in `rhapsody.backends`. This is a public package for
authors of plugins.
"""

from __future__ import annotations

from rhapsody.aio import is_cancelling, settable
from rhapsody.context import TaskContext, task_context
from rhapsody.data import (
    OUTPUT_FILES,
    RESERVED,
    copy_into,
    end_of_file,
    link_into,
    make_sandbox,
    moved,
    name_in_sandbox,
    output_of,
    plain_name,
)
from rhapsody.errors import add_note, describe_error, made_in_time, text_of
from rhapsody.forks import PerProcess
from rhapsody.masking import escaped, mask
from rhapsody.resources import (
    hosts_of_job,
    memory_in_bytes,
    nodes_of_job,
    seconds,
    seconds_of_job,
    time_needed,
)
from rhapsody.sdk.calls import (
    RemoteTraceback,
    call_spec,
    cannot_pack,
    finish,
    pack,
    pack_call,
    parts,
    unpack,
    unpack_error,
)
from rhapsody.sdk.capture import CapturedOutput, Recorder, recording, streams
from rhapsody.sdk.executables import Launch, TaskProgram, task_environment, working_directory
from rhapsody.sdk.loops import OWN_FILES, SharedLoop, WorkerLoop, without_own_frames
from rhapsody.sdk.modules import Origins, own_modules, spec_of
from rhapsody.sdk.mpi import require_mpi4py, run_rank
from rhapsody.sdk.nodes import NodeSampler
from rhapsody.sdk.processes import Program, Reaper
from rhapsody.sdk.runner import (
    PROTOCOL_VERSION,
    REFERENCE,
    RUNNER_FILE,
    CallResult,
    CallSpec,
    Captured,
    Environment,
    Meter,
    Output,
    ProtocolVersionError,
    Runner,
    StaleModuleError,
    copied_classes,
    dumps,
    known,
    pack_error,
    pickler,
    require_version,
    seconds_of_building,
    sent_modules,
    trimmed,
    watch_files,
    watching,
    worker_values,
)
from rhapsody.sdk.services import (
    FREE,
    Readiness,
    Ready,
    TaskService,
    accepts,
    call_ready,
    parse_ready,
    require_unused,
    search_output,
    too_early,
    wait_until,
)
from rhapsody.sdk.slurm import SlurmReason, slurm_refusal, slurm_waiting
from rhapsody.sdk.threads import Mailbox, in_thread, start_thread
from rhapsody.sdk.value_handles import TaskValues
from rhapsody.spelling import similar, suggestion
from rhapsody.task import Reference, TaskKind, is_async, task_kind
from rhapsody.undeclared import copy_all

__all__ = [
    "FREE", "OUTPUT_FILES", "OWN_FILES", "PROTOCOL_VERSION", "REFERENCE", "RESERVED", "RUNNER_FILE",
    "CallResult", "CallSpec", "Captured", "CapturedOutput", "Environment", "Launch", "Mailbox",
    "Meter", "NodeSampler", "Origins", "Output", "PerProcess", "Program", "ProtocolVersionError",
    "Readiness", "Ready", "Reaper", "Recorder", "Reference", "RemoteTraceback", "Runner",
    "SharedLoop", "SlurmReason", "StaleModuleError", "TaskContext", "TaskKind", "TaskProgram",
    "TaskService", "TaskValues", "WorkerLoop", "accepts", "add_note", "call_ready", "call_spec",
    "cannot_pack", "copied_classes", "copy_all", "copy_into", "describe_error", "dumps",
    "end_of_file", "escaped", "finish", "hosts_of_job", "in_thread", "is_async", "is_cancelling",
    "known", "link_into", "made_in_time", "make_sandbox", "mask", "memory_in_bytes", "moved",
    "name_in_sandbox", "nodes_of_job", "output_of", "own_modules", "pack", "pack_call",
    "pack_error", "parse_ready", "parts", "pickler", "plain_name", "recording", "require_mpi4py",
    "require_unused", "require_version", "run_rank", "search_output", "seconds",
    "seconds_of_building", "seconds_of_job", "sent_modules", "settable", "similar", "slurm_refusal",
    "slurm_waiting", "spec_of", "start_thread", "streams", "suggestion", "task_context",
    "task_environment", "task_kind", "text_of", "time_needed", "too_early", "trimmed", "unpack",
    "unpack_error", "wait_until", "watch_files", "watching", "without_own_frames", "worker_values",
    "working_directory",
]  # fmt: skip
