"""The conformance kit on the local backend, with functions on threads."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from rhapsody.backends.local import LocalExecutionBackend
from rhapsody_testing import BackendConformance
from tests._support.local import CannotStart

RESOURCES = {"cores": 2, "gpus": 2, "memory": "1 GiB"}


class TestLocalThreads(BackendConformance):
    cores = 2
    gpus = 2
    memory = "1 GiB"
    adds = frozenset({"threads", "children", "descriptors"})  # a child: its reaper
    create_kwargs: ClassVar[Mapping[str, Any]] = {"resources": RESOURCES}

    async def make_backend(self) -> LocalExecutionBackend:
        return LocalExecutionBackend(resources=RESOURCES, grace=1.0)

    async def make_failing_backend(self) -> LocalExecutionBackend:
        return CannotStart(resources=RESOURCES, grace=1.0)


EXECUTOR = ThreadPoolExecutor(2, thread_name_prefix="callers-own")


class TestLocalOnAnExecutor(BackendConformance):
    cores = 2
    gpus = 2
    memory = "1 GiB"
    fan = 200
    cycles = 5
    adds = frozenset({"threads", "children", "descriptors"})
    create_args = (EXECUTOR,)
    create_kwargs: ClassVar[Mapping[str, Any]] = {"resources": RESOURCES}
    # The executor's threads outlive the backend, and with them the loops for coroutines.
    leaves_behind = ("thread callers-own_*", "file anon_inode:*", "file socket:*")

    async def make_backend(self) -> LocalExecutionBackend:
        return LocalExecutionBackend(EXECUTOR, resources=RESOURCES, grace=1.0)
