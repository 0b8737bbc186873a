"""The conformance kit as its own tests run it: on any backend, with short limits."""

from __future__ import annotations

from typing import cast

from rhapsody.testing import BackendConformance
from tests.core.small_backend import SmallBackend


class Quick(BackendConformance):
    """The kit with limits short enough to wait for a fault."""

    time_limit = 1.5
    settle = 0.1
    big_bytes = 100_000
    output_bytes = 200_000
    cycles = 4
    cores = 2


class Patient(Quick):
    """The same with limits that a busy machine keeps."""

    time_limit = 30


def kit_on(
    backend: type[SmallBackend], base: type[BackendConformance] = Quick
) -> BackendConformance:
    class On(base):  # type: ignore[misc, valid-type]
        async def make_backend(self) -> SmallBackend:
            return backend()

        async def make_failing_backend(self) -> SmallBackend:
            return backend()

    return cast("BackendConformance", On())
