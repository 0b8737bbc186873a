"""The conformance kit as its own tests run it: on any backend, with short limits."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from rhapsody_testing import BackendConformance
from tests._support.faulty_backends import use_library
from tests._support.small_backend import SmallBackend


class Quick(BackendConformance):
    """The suite with limits short enough to wait for a fault."""

    time_limit = 1.5
    settle = 0.05
    shutdown_limit = 0.3
    big_bytes = 100_000
    output_bytes = 200_000
    cycles = 4
    closures = 11
    fan = 300
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


Kit = type[BackendConformance]
SUBJECT: Kit = Quick
_NUMBERS = itertools.count()
_MODULE = "from tests._support import kits\nTestSubject = kits.SUBJECT\n"
_OPTIONS = (
    *("--import-mode=importlib", "--capture=no", "--tb=short", "-q", "--no-header"),
    *("-W", "error", "-W", "ignore:Module already imported"),
    *("-o", "asyncio_default_fixture_loop_scope=function", "-o", "addopts="),
    *(f"-pno:{name}" for name in ("cacheprovider", "faulthandler", "rerunfailures", "xdist")),
)


@dataclass(eq=False)  # hashable, as pytest 8.4 wants its plugins
class Outcome:
    """Report of pytest about some checks.

    Attributes:
        text: The failures and errors, or the reasons of skips and expected failures.
        counts: How many checks passed, failed, and so on.
    """

    text: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def word(self) -> str:
        """Return the outcome of the only check."""
        return "failed" if "failed" in self.counts else next(iter(self.counts), "none")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a report of pytest's."""
        reason = getattr(report, "wasxfail", "")
        word = "xfailed" if reason and report.skipped else report.outcome
        if report.when == "call" or word != "passed":
            self.counts[word] = self.counts.get(word, 0) + 1
        self.text += f"{reason}{report.longreprtext}"


def kit_on(backend: type[SmallBackend], base: Kit = Quick) -> Kit:
    class On(base):  # type: ignore[misc, valid-type]
        async def make_backend(self) -> SmallBackend:
            return backend()

        def library_function(self) -> Any:
            return use_library

        async def make_failing_backend(self) -> SmallBackend:
            return backend()

    return cast("Kit", On)


def run(kit: Kit, *checks: str) -> Outcome:
    """Runs checks in a pytest of their own, in this process."""
    global SUBJECT
    SUBJECT, outcome = kit, Outcome()
    with tempfile.TemporaryDirectory() as root:
        module = Path(root) / f"test_subject_{os.getpid()}_{next(_NUMBERS)}.py"
        module.write_text(_MODULE)
        nodes = (f"{module}::TestSubject::{check}" for check in checks)
        options = (*_OPTIONS, f"--rootdir={root}", f"--confcutdir={root}")
        pytest.main([*options, "-c", os.devnull, *nodes], plugins=[outcome])
        sys.modules.pop(module.stem, None)  # workers of later tests would ask for its file
    assert outcome.counts, f"no check ran: {checks}"
    return outcome
