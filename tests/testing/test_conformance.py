"""The conformance kit on the small backend: it finds no fault where there is none.

What is planted in this backend, and found, is in `test_kit_catches_faults`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import ClassVar

from rhapsody_testing import BackendConformance
from tests._support.small_backend import SmallBackend


class TestSmallBackend(BackendConformance):
    adds = frozenset()
    expected_failures: ClassVar = {
        "test_a_task_ends_with_a_killed_program[executable]": "the backend has no reaper"
    }

    async def make_backend(self) -> SmallBackend:
        return SmallBackend()

    async def make_failing_backend(self) -> SmallBackend:
        return FailingBackend()


class FailingBackend(SmallBackend):
    """Starts a child, then fails to start."""

    async def start(self) -> None:
        self.child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import time; time.sleep(60)"
        )
        raise ConnectionError("no such scheduler")

    async def stop(self) -> None:
        self.child.kill()
        await self.child.wait()
