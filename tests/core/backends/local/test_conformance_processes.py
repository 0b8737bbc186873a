"""The conformance kit on the local backend, with functions in processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rhapsody.backends.local import LocalExecutionBackend
from rhapsody_testing import BackendConformance
from tests._support.local import CannotStart

RESOURCES = {"cores": 2, "gpus": 2, "memory": "1 GiB"}


class TestLocalProcesses(BackendConformance):
    cores = 2
    gpus = 2
    memory = "1 GiB"
    big_bytes = 50_000_000
    separate_processes = True
    closures = 20
    closure_bytes = 10_000_000
    adds = frozenset({"threads", "children", "descriptors"})
    create_args = ("process",)
    create_kwargs: ClassVar[Mapping[str, Any]] = {"resources": RESOURCES}

    async def make_backend(self) -> LocalExecutionBackend:
        return LocalExecutionBackend("process", resources=RESOURCES, grace=1.0)

    async def make_failing_backend(self) -> LocalExecutionBackend:
        return CannotStart("process", resources=RESOURCES, grace=1.0)
