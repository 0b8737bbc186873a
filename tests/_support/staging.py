"""Helpers for tests of files and sandboxes: a backend that links, a completed task."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rhapsody import undeclared
from rhapsody.backends.base import Capabilities, ManagedBackend
from rhapsody.data import InputFile, OutputFile, link_into
from rhapsody.staging import stager
from rhapsody.staging.flow import FileFlow, FilePhase
from rhapsody.task import AttemptInfo, ProducedFiles, Sandbox, TaskDescription
from rhapsody.undeclared import copy_all

FULL = Capabilities(files=True, sandboxes=True, shared_file_system=True)


class Stager(stager.Stager):
    """A stager that is closed when its test ends, with the files of the attempts in the test."""

    made: ClassVar[list[Stager]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made.append(self)
        self.flows: dict[str, FileFlow] = {}

    def end(
        self,
        task: TaskDescription,
        succeeded: bool,
        outputs: Sequence[OutputFile] = (),
        result_is_path: bool = False,
    ) -> Sandbox | None:
        """End an attempt, which `link` has started or which has no inputs."""
        flow = self.flows.pop(task["uid"], None) or FileFlow(self, task, outputs=outputs)
        if flow.phase is not FilePhase.PLACED:
            flow.place(Linking())
        if succeeded:
            return flow.check(None, Linking(), stays=result_is_path).reference
        return flow.fail(stays=result_is_path).reference

    @classmethod
    async def close_all(cls) -> None:
        while cls.made:
            await cls.made.pop().close()


class Linking(ManagedBackend):
    """A backend that links as the local one does, and tells what it was asked."""

    def __init__(self, name: str = "linking", capabilities: Capabilities = FULL) -> None:
        super().__init__()
        self.name = name
        self.capabilities = capabilities
        self.explicit: list[dict[str, Any]] = []
        self.implicit: list[tuple[str, str]] = []

    def link_explicit_data_deps(
        self,
        src_task: Mapping[str, Any] | None = None,
        dst_task: TaskDescription | None = None,
        file_name: str | None = None,
        file_path: str | None = None,
    ) -> None:
        assert dst_task is not None
        assert file_name is not None
        self.explicit.append({"src": src_task, "name": file_name, "path": file_path})
        path = file_path
        if src_task is not None:
            assert file_path is None
            assert file_name in src_task["metadata"]["output_files"]
            path = os.path.join(src_task["sandbox"], file_name)
        assert path is not None
        if self.capabilities.shared_file_system:
            link_into(dst_task["sandbox"], file_name, path)

    def link_implicit_data_deps(self, src_task: Mapping[str, Any], dst_task: Any) -> None:
        self.implicit.append((src_task["uid"], dst_task["uid"]))
        left_out = src_task.get("left_out", ())
        copy_all(src_task["sandbox"], dst_task["sandbox"], left_out)


def describe(stager: Stager, uid: str = "e.task.000002.1", name: str = "reader") -> TaskDescription:
    return {
        "uid": uid,
        "name": name,
        "function": None,
        "executable": "true",
        "args": (),
        "kwargs": {},
        "is_service": False,
        "task_backend_specific_kwargs": {},
        "metadata": {"dependencies": [], "input_files": [], "output_files": []},
        "sandbox": stager.sandbox_path(uid),
    }


def ended(
    stager: Stager,
    uid: str = "e.task.000001.1",
    *,
    writes: Mapping[str, str] | None = None,
    declares: bool = True,
    backend: str | None = "linking",
    succeeded: bool = True,
    result_is_path: bool = False,
) -> AttemptInfo:
    """Return the record of a completed task that wrote files, as the engine creates it."""
    task = describe(stager, uid)
    sandbox = Path(task["sandbox"])
    sandbox.mkdir(parents=True, exist_ok=True)
    for name, text in (writes or {}).items():
        (sandbox / name).write_text(text)
    outputs = [OutputFile(name) for name in writes or {}] if declares else []
    files = ProducedFiles(
        str(sandbox),
        tuple(file.filename for file in outputs),
        reference=stager.end(task, succeeded, outputs, result_is_path),
    )
    return AttemptInfo(uid=uid, backend=backend, files=files)


async def link(
    stager: Stager,
    task: TaskDescription,
    backend: Linking,
    inputs: list[InputFile] | None = None,
    sources: list[AttemptInfo] | None = None,
    *,
    outputs: list[OutputFile] | None = None,
    implicit: bool = False,
) -> Path:
    left = [s for s in sources or () if implicit and s.files.sandbox and not s.files.output_files]
    flow = FileFlow(stager, task, inputs or (), outputs or (), sources or (), left)
    stager.flows[task["uid"]] = flow
    async with asyncio.timeout(20):
        if flow.resolve(backend):
            await flow.fetch()
        if flow.place(backend):
            await flow.copy(backend)
    return Path(task["sandbox"])


def no_clones(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Make copies as on a file system that cannot share blocks, and with a lower limit."""
    monkeypatch.setattr(undeclared, "COPY_LIMIT", limit)
    monkeypatch.setattr(undeclared, "clone", lambda *_: False)
