"""Tools for testing backends and workflows: the conformance kit, a driver, a recorder.

The only part of the package that needs pytest and psutil, which the extra
`rhapsody-core[testing]` brings. What a backend must do is in
`rhapsody.backends.base`; here it is proved.
"""

from __future__ import annotations

try:
    import psutil  # noqa: F401
    import pytest  # noqa: F401
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        f"rhapsody.testing needs {_error.name}: pip install 'rhapsody-core[testing]'",
        name=_error.name,
    ) from _error

from rhapsody.testing._conformance import BackendConformance
from rhapsody.testing._driver import Driver, Fault, Finished, ReadyFuture, Report
from rhapsody.testing._ledger import capability_table
from rhapsody.testing._recorder import EventRecorder
from rhapsody.testing._rules import ConformanceError

__all__ = [
    "BackendConformance",
    "ConformanceError",
    "Driver",
    "EventRecorder",
    "Fault",
    "Finished",
    "ReadyFuture",
    "Report",
    "capability_table",
]
