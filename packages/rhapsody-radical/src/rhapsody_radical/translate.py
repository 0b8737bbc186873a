"""From a task's description to RADICAL-Pilot's, so that the task runs as it was written.

RADICAL-Pilot puts commands into shell scripts, with arguments and variables in double
quotes: what the shell would change is quoted here.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rhapsody.data import make_sandbox
from rhapsody.errors import CapabilityError, DataError
from rhapsody.resources import Resources
from rhapsody.task import TaskDescription
from rhapsody_radical.descriptions import as_list, task_settings
from rhapsody_radical.library import rp
from rhapsody_radical.session import Pilot, can_work_in

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
MEGABYTE = 1 << 20

_IN_DOUBLE_QUOTES = str.maketrans({"\\": r"\\", '"': r"\"", "$": r"\$", "`": r"\`"})


def in_double_quotes(text: str) -> str:
    """Text that a shell reads as it is between double quotes."""
    return text.translate(_IN_DOUBLE_QUOTES)


def command(
    executable: str, arguments: list[str] | None, stdin: str | None = None
) -> tuple[str, list[str]]:
    """The words for RADICAL-Pilot's `executable` and `arguments`.

    Its `executable` goes into a script as it is. Its `arguments` go there in double
    quotes, in which dollar signs and backticks mean something: where there are such,
    the whole command becomes the `executable`.

    Args:
        executable: A shell command where there are no arguments, else a program.
        arguments: The program's arguments, `None` for a shell command.
        stdin: The file for standard input.
    """
    words = ["/bin/sh", "-c", executable] if arguments is None else [executable, *arguments]
    if stdin is not None:
        return f"{shlex.join(words)} < {shlex.quote(stdin)}", []
    if any("$" in word or "`" in word for word in words[1:]):
        return shlex.join(words), []
    return shlex.quote(words[0]), words[1:]


def describe_executable(task: TaskDescription, pilot: Pilot | None) -> Any:
    """RADICAL-Pilot's description of an executable.

    Args:
        task: The task.
        pilot: The pilot it goes to; `None` to see the translation only.

    Raises:
        ValueError: There is nothing to run.
        TypeError: A setting that RADICAL-Pilot does not have.
        DataError: A file that is to be staged is not there.
    """
    executable = task["executable"]
    if not isinstance(executable, str) or not executable:
        raise ValueError(f"task {task['name']!r} has neither a function nor an executable")
    settings = task_settings(task)
    _refuse_nul(task)
    stdin = None
    if task.get("stdin") and pilot is not None:
        stdin = f"{task['uid']}.in"
    words = command(executable, task.get("arguments"), stdin)
    description = rp.TaskDescription(
        {
            "mode": rp.TASK_EXECUTABLE,
            "executable": words[0],
            "arguments": words[1],
            **settings,
            "uid": task["uid"],
            "name": _name(settings.get("name") or task["name"]),
        }
    )
    _add_environment(description, task, settings)
    add_resources(description, task.get("resources"), settings)
    if task.get("capture", True) is False:
        description.stdout = description.stderr = "/dev/null"
    check_staging(task, settings)
    if settings:
        verify(task, description)
    return description


def verify(task: TaskDescription, description: Any) -> None:
    """Has RADICAL-Pilot check a description alone; in a batch it would refuse all for one.

    What it has under a former name is there under today's afterwards.

    Raises:
        ValueError: RADICAL-Pilot does not take it; the text has the reason.
    """
    try:
        description.verify()
        rp.staging_directives.expand_description(description)
    except Exception as error:  # whatever RADICAL-Pilot raises
        raise ValueError(f"task {task['name']!r}: task_description: {error}") from error


def _refuse_nul(task: TaskDescription) -> None:
    """Raises for what no program can be given: shells leave it out without a word."""
    environment = task.get("environment", {})
    words = [task["executable"] or "", *(task.get("arguments") or ()), *environment.values()]
    if any("\0" in word for word in words):
        raise ValueError(f"task {task['name']!r}: an embedded null byte in its command")


def _name(name: str) -> str:
    """A name that RADICAL-Pilot can put between double quotes in its scripts."""
    return in_double_quotes(name).replace("\n", " ")


def _add_environment(description: Any, task: Mapping[str, Any], settings: dict[str, Any]) -> None:
    environment: dict[str, str] = {}
    resources = task.get("resources")
    if resources is not None and resources.cores:
        environment.update(dict.fromkeys(THREADS, str(resources.cores)))
    environment.update(
        {name: in_double_quotes(value) for name, value in task.get("environment", {}).items()}
    )
    environment.update(settings.get("environment") or {})  # in RADICAL-Pilot's own words
    description.environment = environment


def add_resources(
    description: Any, resources: Resources | None, settings: Mapping[str, Any]
) -> None:
    """Puts what a task needs into its description, where the user's own words do not say it."""
    if resources is None:
        return
    wanted: dict[str, Any] = {
        "ranks": resources.ranks,
        "cores_per_rank": max(1, resources.cores),
        "gpus_per_rank": float(resources.gpus),
    }
    if resources.gpus:
        wanted["gpu_type"] = rp.CUDA
    if isinstance(resources.memory, int):
        wanted["mem_per_rank"] = -(-resources.memory // MEGABYTE)
    for name, value in wanted.items():
        if name not in settings:
            description[name] = value


def check_pilot(task: TaskDescription, pilot: Pilot, pilots: Sequence[Pilot]) -> None:
    """Raises for a pilot that there is not: RADICAL-Pilot would wait for it for ever.

    Raises:
        ValueError: It says which pilots there are.
    """
    wanted = task["task_backend_specific_kwargs"].get("pilot")
    if wanted and wanted != pilot.uid:
        there = ", ".join(each.uid for each in pilots)
        raise ValueError(f"task {task['name']!r}: there is no pilot {wanted!r}; there are: {there}")


def needs(task: TaskDescription) -> Any:
    """What a task needs of a pilot, in a description that holds nothing else."""
    settings = task_settings(task)
    keys = ("ranks", "cores_per_rank", "gpus_per_rank", "mem_per_rank")
    description = rp.TaskDescription({key: settings[key] for key in keys if settings.get(key)})
    add_resources(description, task.get("resources"), settings)
    return description


def check_fits(name: str, description: Any, pilot: Pilot, taken: int = 0) -> None:
    """Raises where a pilot can never run a task: RADICAL-Pilot would fail it, or never start it.

    Args:
        name: The task's name, for the error.
        description: RADICAL-Pilot's description.
        pilot: The pilot.
        taken: Cores that are taken for good.

    Raises:
        CapabilityError: It says what there is.
    """
    wanted = {
        "cores": int(description.cores_per_rank or 1),
        "gpus": int(description.gpus_per_rank or 0),
        "mem": int(description.mem_per_rank or 0),
    }
    words = {"cores": "cores", "gpus": "gpus", "mem": "MB of memory"}
    for key, amount in wanted.items():
        there = pilot.has(key)
        known = there or (key == "gpus" and pilot.has("cores"))
        if known and amount > there:
            raise CapabilityError(
                f"task {name!r} asks for {amount} {words[key]} per rank, a node of pilot "
                f"{pilot.uid} ({pilot.settings['resource']}) has {there}"
            )
    ranks = int(description.ranks or 1)
    if ranks > 1 and pilot.here and not any(map(shutil.which, ("mpirun", "mpiexec"))):
        raise CapabilityError(
            f"task {name!r} asks for {ranks} ranks, and there is no mpirun here to start them: "
            "load or install an MPI, on Debian: apt-get install openmpi-bin"
        )
    check_total(name, wanted["cores"] * ranks, pilot, taken)


def check_total(name: str, cores: int, pilot: Pilot, taken: int) -> None:
    """Raises where a task asks for more cores in all than a pilot has for it.

    Raises:
        CapabilityError: It says what there is.
    """
    there = pilot.cores - taken
    if cores > there:
        kept = f"; {taken} more are RAPTOR's, see `function_cores`" if taken else ""
        raise CapabilityError(
            f"task {name!r} asks for {cores} cores in all, pilot {pilot.uid} "
            f"({pilot.settings['resource']}) has {there}{kept}; ask for a larger pilot with "
            "RadicalExecutionBackend({'cores': ...})"
        )


# Sandboxes and files.


def place(task: TaskDescription, description: Any, pilot: Pilot) -> bool:
    """Gives a task its sandbox, on a file system that is the pilot's, too.

    The engine's sandbox is where the task runs, and is reachable below the pilot's
    sandbox under the task's uid, where RADICAL-Pilot's `pilot:///UID/NAME` looks.

    Returns:
        Whether the sandbox is the backend's own, neither the engine's nor one that the user named.
    """
    below = os.path.join(pilot.sandbox, task["uid"])
    wanted = task.get("sandbox")
    own = not wanted and not description.sandbox
    if not pilot.shared:
        task["sandbox"] = below
        if task.get("stdin"):
            raise CapabilityError(
                f"task {task['name']!r} has a standard input, which cannot be given on pilot "
                f"{pilot.uid} ({pilot.settings['resource']}): it does not see this machine's "
                "files; stage a file and read that"
            )
        return False
    if not wanted or description.sandbox:
        wanted = description.sandbox or below
        if not os.path.isabs(wanted):
            wanted = os.path.join(pilot.sandbox, wanted)
    sandbox = make_sandbox(wanted)
    if not can_work_in(sandbox):
        raise DataError(
            f"task {task['name']!r}: RADICAL-Pilot cannot run it in {sandbox!r}: its scripts do "
            "not quote paths with spaces, quotes, wildcards or dollar signs; give the engine "
            "another directory: WorkflowEngine.create(..., work_dir='/tmp/rhapsody')"
        )
    if sandbox != below:
        os.symlink(sandbox, below)
    task["sandbox"] = sandbox
    description.sandbox = sandbox
    text = task.get("stdin")
    if text and task["function"] is None:
        Path(sandbox, f"{task['uid']}.in").write_text(text)
    return own


def check_staging(task: TaskDescription, settings: Mapping[str, Any]) -> None:
    """Raises for a local file to be staged that is not there: RADICAL-Pilot would say nothing.

    Raises:
        DataError: It names the file.
    """
    for directive in as_list(settings.get("input_staging")):
        source = directive.get("source") if isinstance(directive, Mapping) else directive
        if not isinstance(source, str):
            continue
        path = source.removeprefix("file://localhost").removeprefix("file://")
        path = path.split(">")[0].split("<")[0].strip()
        if path.startswith("client:///"):
            path = os.path.abspath(path.removeprefix("client:///"))
        if os.path.isabs(path) and not os.path.exists(path):
            raise DataError(f"task {task['name']!r}: there is no file {path!r} to stage in")


def missing_outputs(task: TaskDescription, sandbox: str) -> list[str]:
    """Files that a finished task was to stage out and did not write."""
    missing = []
    for directive in as_list(task["task_backend_specific_kwargs"].get("output_staging")):
        source = directive.get("source") if isinstance(directive, Mapping) else directive
        if not isinstance(source, str):
            continue
        name = source.split(">")[0].split("<")[0].strip().removeprefix("task:///")
        if "://" not in name and not os.path.lexists(os.path.join(sandbox, name)):
            missing.append(name)
    return missing
