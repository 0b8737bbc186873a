"""Job specifications: the translation of a task's resources and settings for PSI/J.

A specification is a dict of plain values, because it is sent to the process in which PSI/J runs.
Its keys are the parameters of `psij.JobSpec`; `resources` and `attributes` contain those of
`psij.ResourceSpecV1` and `psij.JobAttributes`. The key `options` contains options of the command
that submits the job, which take precedence over the script and the environment.
"""

from __future__ import annotations

import base64
import math
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from rhapsody import CapabilityError, Resources, TaskDescription
from rhapsody.sdk import OUTPUT_FILES, seconds, similar, task_environment, working_directory

JobSpec = dict[str, Any]

START = 60.0
"""Seconds for the start of a job, in addition to the timeout of its task."""

UNSAFE = re.compile(r"[^\w@%+=:,./-]", re.ASCII)
"""Characters that PSI/J's scripts do not quote in the paths of files."""

COUNT_PROCESSES = frozenset({"pbs", "pbs_classic", "lsf"})
"""Executors that request one core per process, regardless of the cores per process."""

NO_REQUEUE = {
    "slurm": ["--no-requeue"],
    "pbs": ["-r", "n"],
    "pbs_classic": ["-r", "n"],
    "lsf": ["-rn"],
}
"""Options that keep a batch system from starting a job again, by executor.

A second start would find the files of the first one. The engine repeats lost tasks instead.
"""

REQUEUE = frozenset({"slurm.requeue", "pbs.r", "lsf.r"})
"""Attributes that would let a batch system start a job again."""


PREFIXES = ("slurm", "pbs", "pbs_classic", "lsf", "flux", "cobalt")
"""Prefixes of the attributes of the executors that PSI/J contains."""


@dataclass(frozen=True)
class JobSettings:
    """Options that apply to all jobs, and that a task can change with `task_description`.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: A value is invalid.
    """

    queue: str | None = None
    account: str | None = None
    launcher: str | None = None
    nodes: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("queue", "account", "launcher"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name} must be a string, got {value!r}")
        if self.nodes is not None and type(self.nodes) is not int:
            raise TypeError(f"nodes must be a whole number, got {self.nodes!r}")
        if self.nodes is not None and self.nodes < 1:
            raise ValueError(f"nodes must be at least 1, got {self.nodes}")
        if not isinstance(self.attributes, Mapping):
            raise TypeError(
                "attributes must be a dict such as {'slurm.qos': 'debug'}, got "
                f"{self.attributes!r}"
            )
        for name, value in self.attributes.items():
            if name == "duration":
                seconds("attributes: duration", value)
            elif name != "reservation_id" and not re.fullmatch(r"\w+\..+", str(name)):
                raise ValueError(
                    "attributes: names must be 'duration', 'reservation_id' or an option of the "
                    f"batch system such as 'slurm.qos', got {name!r}"
                )
            elif near := _near_prefix(str(name)):
                raise ValueError(f"attributes: unknown prefix in {name!r}; did you mean {near!r}?")
            elif name in REQUEUE:
                raise ValueError(
                    f"attributes: {name!r} is not supported, because a job that starts again would "
                    "find the files of its first start: set lost_retries of the engine, which "
                    "repeats lost tasks in new jobs"
                )
            elif not isinstance(value, str | int | float):
                raise TypeError(
                    f"attributes: the value of {name!r} must be a string, a number, or True for "
                    f"an option without a value, got {value!r}"
                )
            elif value == "":
                raise ValueError(
                    f"attributes: the value of {name!r} is empty; for an option without a value, "
                    f"use {{{name!r}: True}}"
                )

    def of(self, task: TaskDescription) -> JobSettings:
        """Return the settings of a task.

        Raises:
            TypeError: A value in the task's description is of the wrong type.
            ValueError: A value in the task's description is invalid.
        """
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        given = task["task_backend_specific_kwargs"]
        if isinstance(given.get("attributes"), Mapping):
            given = {**given, "attributes": {**self.attributes, **given["attributes"]}}
        return JobSettings(**{**own, **given})


def cores_of(task: TaskDescription) -> int:
    """Return the number of cores of each rank of a task. A task without cores takes one."""
    return max(1, int((task.get("resources") or Resources()).cores))


def _near_prefix(name: str) -> str | None:
    """Return the known prefix that an attribute's unknown prefix resembles, with a dot."""
    prefix = name.partition(".")[0]
    near = () if prefix in PREFIXES else similar(prefix.lower(), PREFIXES)
    return f"{near[0]}." if near else None


def job_spec(
    task: TaskDescription, settings: JobSettings, executor: str, node_cores: int | None = None
) -> JobSpec:
    """Return the specification of a job for a task, without the program that the job runs.

    Args:
        task: The task's description.
        settings: The settings of the task.
        executor: The executor of PSI/J.
        node_cores: Number of cores of the largest node, `None` if it is unknown.

    Raises:
        CapabilityError: The job cannot be expressed in PSI/J.
    """
    resources = task.get("resources") or Resources()
    ranks, cores = resources.ranks, cores_of(task)
    nodes = settings.nodes or 1
    processes = ranks
    what = f"task {task['name']!r}"
    if task["function"] is not None and ranks == 1 and nodes > 1:
        raise CapabilityError(
            f"{what} is a function with one rank and runs on one node, not on {nodes}: request "
            "ranks, or use an executable"
        )
    if ranks % nodes:
        raise CapabilityError(
            f"{what}: PSI/J places the same number of ranks on each node, but {ranks} ranks are "
            f"not divisible by {nodes} nodes"
        )
    if executor == "local" and ranks > (os.cpu_count() or 1):
        raise CapabilityError(
            f"{what} needs {ranks} ranks, but this machine has {os.cpu_count()} processors"
        )
    if node_cores is not None and cores * ranks // nodes > node_cores:
        cure = "lower its resource `cores`"
        if cores <= node_cores:
            cure = "lower its resource `ranks` or `cores`, or set the option `nodes` of the task"
        raise CapabilityError(
            f"{what} needs {cores * ranks // nodes} cores on each node for {ranks} ranks on "
            f"{nodes} nodes, but no node of {executor!r} has more than {node_cores}: {cure}"
        )
    if executor in COUNT_PROCESSES and cores > 1:
        if ranks > 1 or (executor == "lsf" and resources.gpus):
            raise CapabilityError(
                f"{what}: PSI/J cannot request {cores} cores per rank from {executor!r} for "
                "several ranks or with GPUs"
            )
        processes, cores = cores, 1
    requested: dict[str, Any] = {"process_count": processes, "cpu_cores_per_process": cores}
    if nodes > 1:
        requested["node_count"] = nodes
    if resources.gpus:
        requested["gpu_cores_per_process"] = resources.gpus
    if isinstance(resources.memory, int):  # the systems' options are the memory of each node
        requested["memory"] = resources.memory * ranks // nodes
    attributes = dict(settings.attributes)
    duration = resources.walltime or attributes.get("duration")
    if task.get("timeout") is not None and resources.walltime is None:
        duration = task["timeout"] + START  # so that the engine ends the attempt
    attributes.pop("duration", None)
    reservation = attributes.pop("reservation_id", None)
    flags = [name for name, value in attributes.items() if value is True]
    valued = {name: value for name, value in attributes.items() if not isinstance(value, bool)}
    return {
        "name": re.sub(r"[^\w.-]", "_", task["name"], flags=re.ASCII)[:15],
        "resources": requested,
        "attributes": {
            "duration": None if duration is None else math.ceil(seconds("duration", duration)),
            "queue_name": settings.queue,
            "account": settings.account,
            "reservation_id": reservation,
            "custom_attributes": valued,
        },
        "options": [*NO_REQUEUE.get(executor, ()), *_flags(flags, executor)],
        "launcher": "single",
        "environment": {},
    }


def _flags(names: list[str], executor: str) -> list[str]:
    """Return the options for attributes without a value; those of other systems are left out."""
    dash = "--" if executor in ("slurm", "cobalt") else "-"
    found = (name.split(".", 1) for name in names)
    return [dash + name for system, name in found if system == executor.partition("_")[0]]


def launch_ranks(
    spec: JobSpec, task: TaskDescription, settings: JobSettings, executor: str
) -> None:
    """Add the program of a task with several ranks, which PSI/J's launcher starts.

    Raises:
        CapabilityError: PSI/J cannot express a path or a variable of the task, or this machine has
            no `mpirun` for local jobs.
        OSError: The standard input cannot be written, or the task's `cwd` does not exist.
    """
    sandbox = task["sandbox"]
    command, arguments = str(task["executable"]), task.get("arguments")
    if arguments is None:
        command, arguments = "/bin/sh", ["-c", command]
    capture = task.get("capture", True) is not False
    out, err = (os.path.join(sandbox, name) if capture else os.devnull for name in OUTPUT_FILES)
    spec |= {
        "executable": command,
        "arguments": list(arguments),
        "directory": working_directory(task),
        "stdout_path": out,
        "stderr_path": err,
        "launcher": settings.launcher or ("srun" if executor == "slurm" else "mpirun"),
    }
    if executor == "local" and spec["launcher"] == "mpirun" and shutil.which("mpirun") is None:
        raise CapabilityError(
            f"task {task['name']!r} has several ranks, but there is no mpirun to start them: load "
            "a module or install MPI, for example with `pip install mpich`"
        )
    cores = cores_of(task)
    spec["environment"] = {"SRUN_CPUS_PER_TASK": str(cores)} if executor == "slurm" else {}
    spec["environment"] |= task_environment(task, cores=cores)
    for name in spec["environment"]:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise CapabilityError(
                f"task {task['name']!r}: PSI/J cannot pass on the environment variable {name!r}"
            )
    for path in (sandbox, spec["directory"]):
        if UNSAFE.search(path):
            raise CapabilityError(
                f"task {task['name']!r}: PSI/J's launchers cannot use the path {path!r}, because "
                "it contains spaces or other special characters: set work_dir"
            )
    source = _stdin_of(task)
    if source is not None:
        spec["stdin_path"] = source


OWN = """
_r_uid={uid}
_r_program={program}
_r_order={order}
"""
"""Values of a job of a single executable, for `SCRIPT`."""

SCRIPT = """
_r_log={reports}/$HOSTNAME.log
if [ -z "$SLURM_JOB_ID" ] || [ -n "$SLURM_RESTART_COUNT" ]; then
  ! grep -qsF "$_r_uid started " {reports}/*.log || exit 0  # the batch system starts it again
fi
_r_killed() {{  # how many processes of this control group were killed for lack of memory
  _r_kills=
  while IFS=: read -r _ _ _r_group; do
    for _r_file in "/sys/fs/cgroup$_r_group/memory.events" \\
        "/sys/fs/cgroup/memory$_r_group/memory.oom_control"; do
      [ ! -r "$_r_file" ] || while read -r _r_key _r_value; do
        [ "$_r_key" != oom_kill ] || _r_kills+=" $_r_value"
      done <"$_r_file"
    done
  done </proc/self/cgroup
}}
_r_now() {{ _r_time=${{EPOCHREALTIME-$(date +%s.%N)}}; _r_time=${{_r_time/,/.}}; }}
_r_killed
_r_before=$_r_kills
echo "$_r_uid started $HOSTNAME" >>"$_r_log" || exit
trap _r_ended=1 TERM INT
trap _r_failed=1 USR1
_r_now
_r_begin=$_r_time
set -m  # the program has its own process group
/bin/bash -p -O execfail /dev/fd/9 9<<<"$_r_program" &
_r_program=$!
set +m
wait $_r_program
_r_code=$?
while kill -0 $_r_program 2>/dev/null; do wait $_r_program; _r_code=$?; done
_r_now
kill -KILL -- -$_r_program 2>/dev/null  # what the program has left behind
# A batch system that ends a job signals all its processes, in any order.
[ $_r_code != 143 ] || sleep {termination}
[ -z "$_r_ended" ] || exit 143
[ -z "$_r_failed" ] || exec {python} <<<"$_r_order"
_r_memory=0
[ $_r_code != 137 ] || {{ _r_killed; [ "$_r_kills" = "$_r_before" ] || _r_memory=1; }}
read -r _r_stat </proc/$$/stat
set -- ${{_r_stat##*) }}  # the 14th and 15th number are the processor time of the children
_r_ticks=$((${{14}} + ${{15}}))
echo "$_r_uid exited $_r_begin $_r_time $_r_code $_r_memory $_r_ticks" >>"$_r_log"
"""
"""Commands of the job of a single executable, for bash. Python is started only if the program
cannot be started, to report the error. The prefix separates variables from those of the program.
Each process that the script starts takes about 2 ms, so the script uses bash's built-in commands.

After SIGTERM or SIGINT, the job ends without a report, and the batch system decides how much time
the program has.
"""

PROGRAM = """
exec 9<&-
[ ! -e {marker} ] || exit 143
_r_mask=$(umask)
umask 077
{exports}
exec <{stdin} >{stdout} 2>{stderr} && umask "$_r_mask" && cd {directory} && exec -- {command}
kill -USR1 $PPID
"""
"""Commands that become the program of such a job."""

BEFORE_RANKS = """
_r_uid={uid}
_r_log={reports}/$HOSTNAME.log
_r_begin=$(date +%s.%N)
echo "$_r_uid started $HOSTNAME" >>"$_r_log"
"""
"""Commands before the launch of ranks."""

AFTER_RANKS = """
[ $_r_code != 143 ] || sleep {termination}
echo "$_r_uid exited $_r_begin $(date +%s.%N) $_r_code 0 -" >>"$_r_log"
"""
"""Commands after the launch of ranks, whose exit code is in a variable."""

BASH_VARIABLES = re.compile(
    r"BASH.*|DIRSTACK|E?UID|FUNCNAME|GROUPS|LINENO|PPID|S?RANDOM|SECONDS|SHELLOPTS|_r_.*"
)
"""Environment variables that bash does not pass on unchanged."""

TERMINATION = 2.0
"""Seconds to wait for SIGTERM after a program was ended by SIGTERM."""

MAX_SCRIPT = 2**20
"""Maximum length of the values in such a job script. Slurm accepts 4 MiB by default."""


def script_of(
    task: TaskDescription, reports: str, order: Sequence[str], content: bytes
) -> tuple[str, str] | None:
    """Return the commands of a job that runs an executable with one rank without Python.

    Args:
        task: The task's description.
        reports: The directory of the reports.
        order: The command that runs the order in its standard input.
        content: The order.

    Returns:
        The commands that set the job's own values, and the commands that all jobs have in common;
        `None` if they cannot express the task.

    Raises:
        OSError: The standard input cannot be written.
    """
    environment = task_environment(task, cores=cores_of(task))
    names = all(
        re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) and not BASH_VARIABLES.fullmatch(name)
        for name in environment
    )
    if "container" in task or not names:
        return None
    arguments = task.get("arguments")
    command = [str(task["executable"]), *(arguments or ())]
    if arguments is None:
        command = ["/bin/sh", "-c", *command]
    sandbox = task["sandbox"]
    capture = task.get("capture", True) is not False
    out, err = (os.path.join(sandbox, name) if capture else os.devnull for name in OUTPUT_FILES)
    quote = shlex.quote
    program = PROGRAM.format(
        marker=quote(os.path.join(reports, f"{task['uid']}.cancel")),
        exports="\n".join(f"export {name}={quote(environment[name])}" for name in environment),
        stdin=quote(_stdin_of(task) or os.devnull),
        stdout=quote(out),
        stderr=quote(err),
        directory=quote(str(task.get("cwd") or sandbox)),
        command=shlex.join(command),
    )
    own = OWN.format(
        uid=quote(task["uid"]), program=quote(program), order=base64.b64encode(content).decode()
    )
    if len(own) > MAX_SCRIPT or "\0" in own:
        return None
    return own, SCRIPT.format(
        reports=quote(reports), termination=TERMINATION, python=shlex.join(order)
    )


def script_of_ranks(uid: str, reports: str) -> list[str]:
    """Return the commands with which the script of a job reports its ranks: before and after."""
    values = {"uid": shlex.quote(uid), "reports": shlex.quote(reports), "termination": TERMINATION}
    return [commands.format(**values) for commands in (BEFORE_RANKS, AFTER_RANKS)]


def _stdin_of(task: TaskDescription) -> str | None:
    """Write a task's standard input to a file, and return its path; `None` if it has none."""
    if not task.get("stdin"):
        return None
    path = os.path.join(task["sandbox"], ".rhapsody-stdin")
    with open(path, "w", encoding="utf-8") as file:
        file.write(task["stdin"])
    return path
