"""Translation of task descriptions into RADICAL-Pilot's.

The result is a plain dict of the keywords of `radical.pilot.TaskDescription`, named `words` in this
package; the client creates the object.

RADICAL-Pilot writes commands into shell scripts, with arguments and variables in double quotes.
This module therefore escapes all characters that the shell would expand.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rhapsody import CapabilityError, DataError, Resources, TaskDescription
from rhapsody.sdk import OUTPUT_FILES, make_sandbox, moved, task_environment, working_directory
from rhapsody_radical.descriptions import (
    EXECUTABLE,
    FUNCTION,
    as_list,
    can_work_in,
    cores_taken,
    number,
    task_settings,
)
from rhapsody_radical.pilots import Pilot

MEGABYTE = 1 << 20


_IN_DOUBLE_QUOTES = str.maketrans({"\\": r"\\", '"': r"\"", "$": r"\$", "`": r"\`"})


def plain(text: str) -> str:
    """Return an instance of a subclass of `str`, such as NumPy's, as a plain string."""
    return str.__str__(text)


def in_double_quotes(text: str) -> str:
    """Escape a string for use between double quotes in a shell script."""
    return text.translate(_IN_DOUBLE_QUOTES)


def command(
    executable: str,
    arguments: list[str] | None,
    stdin: str | None = None,
    cwd: str | None = None,
) -> tuple[str, list[str]]:
    """Return RADICAL-Pilot's `executable` and `arguments` for a command.

    RADICAL-Pilot copies the `executable` into a script unchanged, and the `arguments` in double
    quotes, between which dollar signs and backticks are special. If an argument contains one of
    these, the whole command becomes the `executable`.

    Args:
        executable: A shell command if `arguments` is `None`, otherwise a program.
        arguments: The program's arguments, or `None` for a shell command.
        stdin: The file for standard input.
        cwd: The working directory, if it is not the task's sandbox.
    """
    words = ["/bin/sh", "-c", executable] if arguments is None else [executable, *arguments]
    words = list(map(plain, words))
    if cwd is not None:
        words = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', cwd, *words]
    if stdin is not None:
        return f"{shlex.join(words)} < {shlex.quote(stdin)}", []
    if any("$" in word or "`" in word for word in words[1:]):
        return shlex.join(words), []
    return shlex.quote(words[0]), words[1:]


def describe_executable(task: TaskDescription, pilot: Pilot | None) -> dict[str, Any]:
    """Return the RADICAL-Pilot description of an executable task.

    Args:
        task: The task.
        pilot: The task's pilot, or `None` to translate the description without standard input and
            without a check of the working directory.

    Raises:
        ValueError: The task has no executable, or its command cannot be passed to a program.
        TypeError: RADICAL-Pilot does not have one of the settings.
        DataError: A file to stage does not exist.
        OSError: The working directory does not exist.
    """
    executable = task["executable"]
    if not isinstance(executable, str) or not executable:
        raise ValueError(f"task {task['name']!r} has neither a function nor an executable")
    settings = task_settings(task)
    _check_text(task)
    stdin = None
    if task.get("stdin") and pilot is not None:
        stdin = f"{task['uid']}.in"
    if "cwd" in task and pilot is not None:
        working_directory(task)
    program, arguments = command(executable, task.get("arguments"), stdin, task.get("cwd"))
    variables = task_environment(task, cores=requested_cores(task, settings))
    environment = {name: in_double_quotes(value) for name, value in variables.items()}
    words = {
        "mode": EXECUTABLE,
        "executable": program,
        "arguments": arguments,
        **settings,
        "uid": task["uid"],
        "name": _name(settings.get("name") or task["name"]),
        "environment": environment | (settings.get("environment") or {}),  # quoted by the user
    }
    _add_resources(words, task.get("resources"), settings, pilot)
    if task.get("capture", True) is False:
        words["stdout"] = words["stderr"] = "/dev/null"
    check_staging(task, settings)
    return words


def describe_command(task: TaskDescription, pilot: Pilot, script: str) -> tuple[Any, Any]:
    """Create the sandbox of a command, and describe the command for RAPTOR.

    Args:
        task: The task.
        pilot: The task's pilot.
        script: The script that starts the process of `rhapsody_radical.command`.

    Returns:
        The RADICAL-Pilot description, and the order for `rhapsody_radical.command`.

    Raises:
        ValueError: The task has no executable, or its command cannot be passed to a program.
        OSError: The working directory does not exist.
    """
    words = describe_executable(task, pilot)
    place(task, {}, pilot)
    cores, sandbox, uid = int(words.get("cores_per_rank") or 1), task["sandbox"], task["uid"]
    variables = task_environment(task, cores=requested_cores(task, task_settings(task)))
    own = {"ID": uid, "NAME": task["name"], "SANDBOX": sandbox}
    environment = {f"RP_TASK_{name}": value for name, value in own.items()}
    environment |= {"RP_CORES_PER_RANK": str(cores), **variables}
    order: dict[str, Any] = {
        "uid": uid,
        "name": plain(task["name"]),
        "executable": plain(task["executable"] or ""),
        "sandbox": sandbox,
        "environment": {plain(name): plain(value) for name, value in environment.items()},
        "capture": "files" if task.get("capture", True) else False,
        "stdin": os.path.join(sandbox, f"{uid}.in") if task.get("stdin") else None,
        "script": script,
    }
    if task.get("arguments") is not None:
        order["arguments"] = list(map(plain, task["arguments"]))
    if "cwd" in task:
        order["cwd"] = plain(task["cwd"])
    return {"mode": FUNCTION, "uid": uid, "cores_per_rank": cores}, order


def commands_script(restore: str, commands: Sequence[str]) -> str:
    """Return the script that starts the process of `rhapsody_radical.command`.

    Args:
        restore: The script that restores the program's variables.
        commands: The commands that every task of the backend runs first.
    """
    first = [
        f"{{ {command}\n}} || {{ echo {shlex.quote(f'pre_exec failed: {command}')} >&2; exit 1; }}"
        for command in commands
    ]
    last = f'exec {shlex.quote(sys.executable)} -m rhapsody_radical.command "$1"'
    return "\n".join([f". {shlex.quote(restore)}", *first, last, ""])


def _check_text(task: TaskDescription) -> None:
    """Raise for text with null bytes, which shells silently drop."""
    environment = task.get("environment", {})
    words = [task["executable"] or "", *(task.get("arguments") or ()), task.get("cwd") or ""]
    if any("\0" in word for word in (*words, *environment, *environment.values())):
        raise ValueError(
            f"task {task['name']!r}: its command, environment or cwd contains a null byte"
        )


def _name(name: str) -> str:
    """Return a name, escaped for use between double quotes in RADICAL-Pilot's scripts."""
    return in_double_quotes(name.encode(errors="replace").decode()).replace("\n", " ")


def requested_cores(task: Mapping[str, Any], settings: Mapping[str, Any]) -> float:
    """Return the number of cores for a task's threads; 0 if the task does not request cores."""
    resources = task.get("resources")
    return number(settings, "cores_per_rank") or (resources.cores if resources is not None else 0)


def add_environment(words: dict[str, Any], script: str, commands: Sequence[str]) -> None:
    """Make a task run in the program's environment instead of RADICAL-Pilot's.

    A task that names an environment (`named_env`) is not changed.

    Args:
        words: The task's RADICAL-Pilot description, which is changed.
        script: The script that restores the program's variables.
        commands: The commands that every task of the backend runs first.
    """
    if not words.get("named_env"):
        own = [f'export {name}="{value}"' for name, value in words["environment"].items()]
        words["pre_exec"] = [
            f". {shlex.quote(script)}",
            *commands,
            *own,
            *as_list(words.get("pre_exec")),
        ]


def _add_resources(
    words: dict[str, Any],
    resources: Resources | None,
    settings: Mapping[str, Any],
    pilot: Pilot | None,
) -> None:
    """Add requested resources to a RADICAL-Pilot description, except those that the user has set.

    RADICAL-Pilot compares a task's memory only with the total memory of a node, and would start any
    number of such tasks on one node. Therefore, the task reserves a proportional share of the
    node's cores.
    """
    if resources is None:
        return
    cores = max(1, int(resources.cores))
    if isinstance(resources.memory, int) and pilot is not None:
        cores = max(cores, _cores_for_memory(resources, pilot))
    wanted: dict[str, Any] = {
        "ranks": resources.ranks,
        "cores_per_rank": cores,
        "gpus_per_rank": float(resources.gpus),
    }
    if resources.gpus:
        wanted["gpu_type"] = "CUDA"
    if isinstance(resources.memory, int):
        wanted["mem_per_rank"] = _megabytes(resources)
    for name, value in wanted.items():
        if name not in settings:
            words[name] = value


def _megabytes(resources: Resources) -> int:
    return -(-int(resources.memory or 0) // MEGABYTE)


def _cores_for_memory(resources: Resources, pilot: Pilot) -> int:
    """Return the number of cores proportional to a rank's share of a node's memory."""
    cores, memory = pilot.has("cores"), pilot.has("mem")
    if not cores or not memory:
        return 0
    most = cores
    if pilot.nodes == 1:  # reserving the cores that RAPTOR has left keeps other tasks away
        most = (pilot.cores - pilot.raptor_cores) // resources.ranks
    return min(most, -(-_megabytes(resources) * cores // memory))


def check_pilot(task: TaskDescription, pilot: Pilot, pilots: Sequence[Pilot]) -> None:
    """Raise if a task names an unknown pilot; RADICAL-Pilot would wait for that pilot forever.

    Raises:
        ValueError: There is no such pilot; the message lists the pilots.
    """
    wanted = task["task_backend_specific_kwargs"].get("pilot")
    if wanted and wanted != pilot.uid:
        there = ", ".join(each.uid for each in pilots)
        raise ValueError(f"task {task['name']!r}: no pilot {wanted!r}; the pilots are {there}")


def needs(task: TaskDescription, pilot: Pilot) -> dict[str, Any]:
    """Return the resources that a task requests, with RADICAL-Pilot's keys."""
    settings = task_settings(task)
    keys = ("ranks", "cores_per_rank", "gpus_per_rank", "mem_per_rank")
    words = {key: settings[key] for key in keys if settings.get(key)}
    _add_resources(words, task.get("resources"), settings, pilot)
    return words


def check_fits(name: str, words: Mapping[str, Any], pilot: Pilot) -> None:
    """Raise if a pilot is too small for a task; RADICAL-Pilot would fail or never start the task.

    Args:
        name: The task's name, for the error message.
        words: The requested resources, with RADICAL-Pilot's keys.
        pilot: The pilot.

    Raises:
        CapabilityError: The pilot is too small; the message contains its size.
    """
    wanted = {
        "cores": int(number(words, "cores_per_rank") or 1),
        "gpus": int(number(words, "gpus_per_rank")),
        "mem": int(number(words, "mem_per_rank")),
    }
    units = {"cores": "cores", "gpus": "gpus", "mem": "MB of memory"}
    for key, amount in wanted.items():
        there = pilot.has(key)
        if amount > there and pilot.has("cores"):  # otherwise the size of nodes is unknown
            cure = ""
            if key == "mem":
                cure = ". Request less, or correct `mem_per_node` (in MB) in the resource's file"
            raise CapabilityError(
                f"task {name!r} requests {amount} {units[key]} per rank, but a node of pilot "
                f"{pilot.uid} ({pilot.settings['resource']}) has {there}{cure}"
            )
    ranks = int(number(words, "ranks") or 1)
    if ranks > 1 and pilot.here and not any(map(shutil.which, ("mpirun", "mpiexec"))):
        raise CapabilityError(
            f"task {name!r} requests {ranks} ranks, but there is no mpirun to start them. "
            "Load or install MPI; on Debian: apt-get install openmpi-bin"
        )
    check_total(name, cores_taken(words), pilot, ranks)


def check_total(name: str, cores: int, pilot: Pilot, ranks: int = 1) -> None:
    """Raise if a task requests more cores in total than RAPTOR leaves on a pilot.

    Raises:
        CapabilityError: The pilot is too small; the message contains its size.
    """
    taken = pilot.raptor_cores
    there = pilot.cores - taken
    if cores > there:
        of_ranks = f" for its {ranks} ranks" if ranks > 1 else ""
        kept = f" (RAPTOR uses another {taken}, see `function_cores`)" if taken else ""
        without = ", or disable RAPTOR with functions='executable'" if taken else ""
        raise CapabilityError(
            f"task {name!r} requests {cores} cores in total{of_ranks}, but pilot {pilot.uid} "
            f"({pilot.settings['resource']}) has {there}{kept}. Request a larger pilot with "
            f"RadicalExecutionBackend({{'cores': ...}}){without}"
        )


# Sandboxes and files.


def place(task: TaskDescription, words: dict[str, Any], pilot: Pilot) -> bool:
    """Create a task's sandbox, and set it in the task's description and in RADICAL-Pilot's.

    The sandbox is the directory in the user's settings, or else the one that the engine has chosen,
    or else a directory in the pilot's sandbox. In the first two cases, a link with the task's uid
    in the pilot's sandbox refers to it, because RADICAL-Pilot resolves `pilot:///UID/NAME` there.

    Returns:
        True if the backend has chosen the sandbox, False if the engine or the user has chosen it.

    Raises:
        DataError: The path contains characters that RADICAL-Pilot's scripts do not quote.
    """
    below = os.path.join(pilot.sandbox, task["uid"])
    wanted = task.get("sandbox")
    own = not wanted and not words.get("sandbox")
    if not wanted or words.get("sandbox"):
        wanted = words.get("sandbox") or below
        if not os.path.isabs(wanted):
            wanted = os.path.join(pilot.sandbox, wanted)
    sandbox = make_sandbox(wanted)
    if not can_work_in(sandbox):
        raise DataError(
            f"task {task['name']!r}: RADICAL-Pilot cannot run it in {sandbox!r}, because its "
            "scripts do not quote paths with spaces, quotes or wildcards. Use another directory: "
            "WorkflowEngine.create(..., work_dir='/tmp/rhapsody')"
        )
    if sandbox != below:
        os.symlink(sandbox, below)
    former, task["sandbox"] = task.get("sandbox"), sandbox
    if former and former != sandbox and "executable" in words:
        words["executable"] = moved(words["executable"], former, sandbox)
        words["arguments"] = [moved(word, former, sandbox) for word in words["arguments"]]
    for key, name in zip(("stdout", "stderr"), output_names(task), strict=True):
        words[key] = words.get(key) or os.path.join(sandbox, name)
    words["sandbox"] = sandbox
    text = task.get("stdin")
    if text and task["function"] is None:
        Path(sandbox, f"{task['uid']}.in").write_text(text)
    return own


def remove_place(task: TaskDescription, pilot: Pilot) -> None:
    """Remove the sandbox of a task that was canceled before it ran, unless it contains files."""
    sandbox, below = task.get("sandbox"), os.path.join(pilot.sandbox, task["uid"])
    if sandbox:
        with suppress(OSError):
            os.unlink(os.path.join(sandbox, f"{task['uid']}.in"))
        with suppress(OSError):
            os.rmdir(sandbox)
    with suppress(OSError):  # `below` is the sandbox itself, or there is no link
        os.unlink(below)


def output_names(task: TaskDescription) -> tuple[str, str]:
    """Return the names of an executable's output files in its sandbox, or the user's own paths.

    If the user has chosen the sandbox, several tasks may share it, so the names begin with the uid.
    """
    settings, uid = task["task_backend_specific_kwargs"], task["uid"]
    out, err = (f"{uid}.out", f"{uid}.err") if settings.get("sandbox") else OUTPUT_FILES
    return settings.get("stdout") or out, settings.get("stderr") or err


def check_staging(task: TaskDescription, settings: Mapping[str, Any]) -> None:
    """Raise if a local file to stage is missing; RADICAL-Pilot would ignore the missing file.

    Raises:
        DataError: A file is missing; the message names it.
    """
    for source in _staged(settings, "input_staging"):
        path = source.removeprefix("file://localhost").removeprefix("file://")
        if path.startswith("client:///"):
            path = os.path.abspath(path.removeprefix("client:///"))
        if os.path.isabs(path) and not os.path.exists(path):
            raise DataError(f"task {task['name']!r}: input_staging: no such file: {path!r}")


def missing_outputs(task: TaskDescription, sandbox: str) -> list[str]:
    """Return the files in a finished task's `output_staging` that the task did not write."""
    sources = _staged(task["task_backend_specific_kwargs"], "output_staging")
    names = [source.removeprefix("task:///") for source in sources]
    return [
        name for name in names
        if "://" not in name and not os.path.lexists(os.path.join(sandbox, name))
    ]  # fmt: skip


def _staged(settings: Mapping[str, Any], key: str) -> Iterator[str]:
    """Yield the sources of staging directives."""
    for directive in as_list(settings.get(key)):
        source = directive.get("source") if isinstance(directive, Mapping) else directive
        if isinstance(source, str):
            yield source.split(">")[0].split("<")[0].strip()
