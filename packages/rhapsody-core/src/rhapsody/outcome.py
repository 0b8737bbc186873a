"""What is left of an attempt besides its value, for its future and for tasks that follow."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class AttemptInfo:
    """What is left of the attempt that ended a task, where it is more than a value.

    Attributes:
        uid: The attempt's backend uid.
        stdout: What it wrote to standard output, or the file that holds it.
        stderr: The same of standard error.
        exit_code: An executable's exit code.
        sandbox: The directory it ran in.
        backend: The name of the backend that ran it.
        name: The task's name.
        output_files: Names of the files and directories it declared and wrote.
        keeper: Whatever must stay alive while the sandbox is needed.
        matches: Which of the files match each pattern that it declared.
        paths: Where the files are that an earlier run left; those of others are in the sandbox.
        make_again: Produces missing files of an earlier run, for the task with a uid.
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
        """The task in words, such as `'clean' (task.000003)`."""
        return f"{self.name!r} ({'.'.join(self.uid.split('.')[-3:-1])})"

    def path_of(self, name: str) -> str:
        """Where a file or directory is that the attempt made."""
        if self.paths is not None and name in self.paths:
            return self.paths[name]
        return os.path.join(self.sandbox or "", name)
