"""The conformance kit as its own tests run it: on any backend, with short limits."""

from __future__ import annotations

from typing import Any, Literal, cast

from rhapsody.testing import BackendConformance
from rhapsody.testing._running import Stage, stages
from tests.core.faulty_backends import use_library
from tests.core.small_backend import SmallBackend


class Quick(BackendConformance):
    """The kit with limits short enough to wait for a fault."""

    time_limit = 1.5
    settle = 0.05
    silence = 0.5
    shutdown_limit = 0.3
    big_bytes = 100_000
    output_bytes = 200_000
    cycles = 4
    closures = 11
    cores = 2
    memory = "1 GiB"
    shares_memory = False


class Hurried(Quick):
    """For what does not come within the time limit, whatever it is."""

    time_limit = 0.6


class Patient(Quick):
    """The same with limits that a busy machine keeps."""

    time_limit = 30
    settle = 0.1
    shutdown_limit = 5


class Lingering(Patient):
    """For what stays: there is no need to wait for it to go."""

    settle = 0.02


Scope = Literal["test", "class"]


def kit_on(
    backend: type[SmallBackend],
    base: type[BackendConformance] = Quick,
    scope: Scope = "test",
) -> BackendConformance:
    class On(base):  # type: ignore[misc, valid-type]
        backend_scope = scope

        async def make_backend(self) -> SmallBackend:
            return backend()

        def library_function(self) -> Any:
            return use_library

        async def make_failing_backend(self) -> SmallBackend:
            return backend()

    return cast("BackendConformance", On())


def prove(kit: BackendConformance, check: str) -> None:
    """Runs a check as pytest would, with a backend of its own or that of its class."""
    if kit.backend_scope == "test":
        getattr(kit, check)()
        return
    stage = stages[type(kit)] = Stage()
    try:
        getattr(kit, check)()
    finally:
        del stages[type(kit)]
        stage.close(type(kit))
