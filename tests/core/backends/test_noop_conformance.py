"""The conformance kit on the noop backend, which runs nothing and says that all is done."""

from __future__ import annotations

from rhapsody.backends.noop import NoopExecutionBackend
from rhapsody_testing import BackendConformance


class TestNoop(BackendConformance):
    dry = True
    adds = frozenset()

    async def make_backend(self) -> NoopExecutionBackend:
        return NoopExecutionBackend()
