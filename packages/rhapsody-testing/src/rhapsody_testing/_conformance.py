"""Conformance test class for authors of backends to subclass."""

from __future__ import annotations

from typing import Any

import pytest

_TOPICS = "engine executables functions lifecycle protocol"
pytest.register_assert_rewrite(*(f"rhapsody_testing._{topic}" for topic in _TOPICS.split()))

from rhapsody_testing._engine import Engine
from rhapsody_testing._executables import ExecutableChecks, FileChecks, ServiceChecks
from rhapsody_testing._functions import FunctionChecks
from rhapsody_testing._lifecycle import Lifecycle
from rhapsody_testing._protocol import Cancellation, ReportChecks, ResourceRequests
from rhapsody_testing._suite import require_unchanged


# pytest runs the checks of the last base class first: those of starting and stopping.
class BackendConformance(
    Engine,
    ResourceRequests,
    Cancellation,
    ServiceChecks,
    FileChecks,
    ExecutableChecks,
    FunctionChecks,
    ReportChecks,
    Lifecycle,
):
    """Suite of checks that a backend does what its capabilities declare.

    Subclass it in a test module, with a name that starts with `Test`, and write one method:

        class TestMine(BackendConformance):
            async def make_backend(self):
                return MyBackend(workers=2)

    Checks of capabilities that the backend does not declare are skipped, with the reason. A failure
    names the section of the documentation that states the rule. The attributes of `Suite` are the
    settings. Checks cannot be overridden; list those that are known to fail in `expected_failures`.

    Raises:
        TypeError: A subclass overrides a check, or `expected_failures` names an unknown check or
            gives no reason.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        require_unchanged(cls, BackendConformance)
