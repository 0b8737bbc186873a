"""Output, files and place of the attempt that ended a task, for its future and its dependents."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class AttemptInfo:
    """Output, files and place of the attempt that ended a task, if it has any of them.

    Attributes:
        uid: The attempt's backend uid.
        stdout: Its standard output, or the file with it.
        stderr: Its standard error, likewise.
        exit_code: An executable's exit code.
        sandbox: Its directory.
        backend: The name of the backend that ran it.
        name: The task's name.
        output_files: Names of the declared files and directories that it wrote.
        keeper: Object that must stay alive while the sandbox is needed.
        matches: The files that match each declared pattern.
        paths: The paths of files of an earlier run; other files are in the sandbox.
        make_again: Produces missing files of an earlier run for the task with a uid.
    """

    uid: str
    stdout: str | None = None
    stderr: str | None = None
    exit_code: int | None = None
    sandbox: str | None = None
    backend: str | None = None
    name: str = ""
    output_files: tuple[str, ...] = ()
    keeper: object = None
    matches: Mapping[str, tuple[str, ...]] | None = None
    paths: Mapping[str, str] | None = None
    make_again: Callable[[AttemptInfo, str], Awaitable[None]] | None = None

    @property
    def task(self) -> str:
        """The task's name and uid, such as `'clean' (task.000003)`."""
        return f"{self.name!r} ({'.'.join(self.uid.split('.')[-3:-1])})"

    def path_of(self, name: str) -> str:
        """Return the path of a file or directory that the attempt made."""
        if self.paths is not None and name in self.paths:
            return self.paths[name]
        return os.path.join(self.sandbox or "", name)
