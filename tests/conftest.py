"""Fixtures for all tests: the user's settings have no effect, and no file is left behind."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Programs started in the background of a script inherit that Ctrl-C, and under `nohup` a
# hang-up, are ignored. Those that tests start are to find what a terminal's would.
for _number, _usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)

# How long one example takes, or is drawn, says more about the machine than about the code: the time
# limits of the tests themselves are what finds a hang.
settings.register_profile(
    "workspace", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("workspace")


# For the whole session, because the conformance kit checks that backends leave variables unchanged.
os.environ["XDG_CONFIG_HOME"] = os.path.join(tempfile.gettempdir(), "rhapsody-tests-no-profiles")


@pytest.fixture(autouse=True)
def _isolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in an empty directory, with the plugins that are installed and no others."""
    for variable in [name for name in os.environ if name.startswith("RHAPSODY_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_collection() -> Iterator[None]:
    """No garbage collection, which an idle program has no occasion for."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
