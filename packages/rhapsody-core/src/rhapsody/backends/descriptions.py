"""Task descriptions from somebody who calls a backend without an engine: filled in, checked."""

from __future__ import annotations

from typing import Any

from rhapsody.task import TaskDescription


def completed(
    batch: list[TaskDescription],
) -> tuple[list[TaskDescription], list[tuple[TaskDescription, Exception]]]:
    """Puts missing keys into the descriptions of a batch.

    Returns:
        Those that can be understood, and the others, each with why not.
    """
    understood: list[TaskDescription] = []
    problems: list[tuple[TaskDescription, Exception]] = []
    for task in batch:
        if not isinstance(task, dict):
            raise TypeError(f"submit_tasks takes a list of dicts, one for each task, got {task!r}")
    for task in batch:
        problem = _complete(task)
        if problem is None:
            understood.append(task)
        else:
            problems.append((task, problem))
    return understood, problems


def _complete(task: Any) -> Exception | None:
    """Puts missing keys into a description; gives what is wrong with it, if anything is."""
    uid = task.setdefault("uid", "")
    for key, value in (("args", ()), ("kwargs", {}), ("task_backend_specific_kwargs", {})):
        if task.get(key) is None:
            task[key] = value
    for key in ("function", "executable"):
        task.setdefault(key, None)
    task.setdefault("name", str(uid))
    task.setdefault("is_service", False)
    task.setdefault("metadata", {"dependencies": [], "input_files": [], "output_files": []})
    if not isinstance(uid, str) or not uid:
        return ValueError(f"a task needs a 'uid', a string of its own, got {uid!r}")
    function, executable = task["function"], task["executable"]
    if function is None and (not isinstance(executable, str) or not executable):
        return ValueError(
            f"task {task['name']!r} has neither a 'function' nor an 'executable', which is a "
            f"command for a shell, or a program with its 'arguments' in a list; got {executable!r}"
        )
    if function is not None and not callable(function):
        return TypeError(f"task {task['name']!r}: its 'function' cannot be called: {function!r}")
    return None
