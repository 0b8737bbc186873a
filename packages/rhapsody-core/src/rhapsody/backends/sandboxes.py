"""Sandboxes on a file system that the engine and its tasks share.

Public as a part of `rhapsody.backends.programs`, which adds executables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rhapsody.backends.base import Session
from rhapsody.data import link_all, link_into


class SharedSandboxes:
    """Links files into sandboxes that tasks see under the same path as the engine.

    In front of `ManagedBackend` it lets a backend declare `files` and
    `shared_file_system`. A task's sandbox is made by `rhapsody.data.make_sandbox`,
    where its description names one.
    """

    session: Session

    def link_explicit_data_deps(
        self,
        src_task: Mapping[str, Any] | None = None,
        dst_task: Any = None,
        file_name: str | None = None,
        file_path: str | None = None,
    ) -> None:
        """Links a file into the sandbox of the task that needs it.

        Raises:
            ValueError: Neither a path nor a task and a name are given.
            DataError: The file is not there, or the name could leave the sandbox.
        """
        if file_path is not None:
            source, name = file_path, file_name or os.path.basename(file_path)
        elif src_task is not None and file_name is not None:
            source, name = os.path.join(self.sandbox_of(src_task), file_name), file_name
        else:
            raise ValueError("link_explicit_data_deps needs file_path, or src_task and file_name")
        link_into(self.sandbox_of(dst_task), name, source)

    def link_implicit_data_deps(self, src_task: Mapping[str, Any], dst_task: Any) -> None:
        """Links all that one task left in its sandbox into another's, but what it printed."""
        link_all(self.sandbox_of(src_task), self.sandbox_of(dst_task))

    def sandbox_of(self, task: Mapping[str, Any]) -> str:
        """The sandbox that a description names, or one of the backend's own."""
        sandbox: str = task.get("sandbox") or self.own_sandbox(task["uid"])
        return sandbox

    def own_sandbox(self, uid: str) -> str:
        """The sandbox of a task that names none."""
        return self.session.directory(uid)
