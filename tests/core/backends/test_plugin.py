"""Core's declarations of its backends, compared with their classes."""

from __future__ import annotations

from rhapsody import LocalExecutionBackend
from rhapsody.backends.local.backend import EXECUTORS, OPTIONS
from rhapsody.backends.local.jobs import KEYS
from rhapsody.backends.plugin import rhapsody_backends
from tests._support.declared_options import check_options


def test_the_options_of_the_local_backend_are_those_that_it_accepts() -> None:
    local = next(spec for spec in rhapsody_backends() if spec.name == "local")
    assert local.options == OPTIONS
    # The default of the executor is `None` in the signature, which also accepts objects.
    check_options(OPTIONS, LocalExecutionBackend, KEYS)
    executor = OPTIONS[0]
    assert [executor.accepts(each) for each in (*EXECUTORS, "other")] == [True, True, False]
