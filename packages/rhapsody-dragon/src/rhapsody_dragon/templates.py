"""The keys `process_template` and `process_templates` of `task_description`.

They are those of rhapsody-py: `{"process_template": {"env": {...}, "cwd": ...}}` describes one
process, and `{"process_templates": [(2, {...}), (2, {...})]}` several processes of one task.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from rhapsody import TaskDescription
from rhapsody.sdk import is_async

KEYS = ("cwd", "env")

SEVERAL = r"""
count=$1; shift
directory=$(mktemp -d) || exit
trap 'rm -r "$directory"' EXIT
number=0
while [ $number -lt "$count" ]; do
    "$@" >"$directory/$number.out" 2>"$directory/$number.err" </dev/null &
    eval "process$number=$!"
    number=$((number + 1))
done
code=0
number=0
while [ $number -lt "$count" ]; do
    eval "wait \$process$number" || code=$?
    cat "$directory/$number.out"
    cat "$directory/$number.err" >&2
    number=$((number + 1))
done
exit $code
"""
"""Shell script that runs several processes at the same time, and prints the output of each."""


class ProcessesOfTask(NamedTuple):
    """Processes of one task.

    Attributes:
        number: The number of processes; `None` if the task has one process and no list of them.
        environment: Variables of all of them.
        cwd: Their current directory, or `None`.
    """

    number: int | None
    environment: Mapping[str, str]
    cwd: str | None


ONE_PROCESS = ProcessesOfTask(None, {}, None)


def processes_of(task: TaskDescription) -> ProcessesOfTask:
    """Return the processes that a task describes.

    Raises:
        ValueError: A template contains unknown keys, templates differ, or a function has a `cwd`.
        TypeError: A value has the wrong type.
    """
    settings, title = task["task_backend_specific_kwargs"], f"task {task['name']!r}"
    if not settings:
        return ONE_PROCESS
    if len(settings) > 1:
        raise ValueError(f"{title}: pass either process_template or process_templates")
    template: Any
    several = settings.get("process_templates")
    templates = [(1, settings.get("process_template"))] if several is None else several
    if not isinstance(templates, Sequence) or not templates:
        raise TypeError(
            f"{title}: process_templates must be a list of pairs such as [(2, {{}})], got "
            f"{templates!r}"
        )
    count = 0
    for pair in templates:
        number, template = pair if isinstance(pair, tuple | list) and len(pair) == 2 else (0, pair)
        if type(number) is not int or number < 1 or not isinstance(template, Mapping):
            raise TypeError(
                f"{title}: a process template is a number of processes and a dict, got {pair!r}"
            )
        if unknown := [key for key in template if key not in KEYS]:
            raise ValueError(
                f"{title}: unknown key {unknown[0]!r} of a process template; accepted keys: "
                f"{', '.join(KEYS)}. Cores and GPUs are requested with resources={{...}}"
            )
        if template != templates[0][1]:
            raise ValueError(f"{title}: all process templates must be equal, got {templates!r}")
        count += number
    template = templates[0][1]
    cwd = template.get("cwd")
    if cwd is not None and task["function"] is not None:
        raise ValueError(f"{title}: a function has no cwd; pass the path as an argument")
    environment = {str(name): str(value) for name, value in (template.get("env") or {}).items()}
    place = None if cwd is None else os.path.abspath(os.fspath(cwd))
    return ProcessesOfTask(None if several is None else count, environment, place)


def several_processes(task: TaskDescription, count: int) -> None:
    """Change the description of a task so that it runs several processes."""
    function, executable, arguments = task["function"], task["executable"], task.get("arguments")
    if function is not None:
        call = call_several_async if is_async(function) else call_several
        task["function"] = partial(call, function, count)
        return
    command = ["/bin/sh", "-c", str(executable)] if arguments is None else [executable, *arguments]
    task["executable"] = "/bin/sh"
    task["arguments"] = ["-c", SEVERAL, "several", str(count), *map(str, command)]


def call_several(function: Callable[..., Any], count: int, *args: Any, **kwargs: Any) -> list[Any]:
    """Call a function several times, and return the list of its results."""
    return [function(*args, **kwargs) for _ in range(count)]


async def call_several_async(
    function: Callable[..., Any], count: int, *args: Any, **kwargs: Any
) -> list[Any]:
    """Call a coroutine function several times, and return the list of its results."""
    return [await function(*args, **kwargs) for _ in range(count)]
