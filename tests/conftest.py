"""Fixtures for all tests: the user's settings have no effect, and no file is left behind."""

from __future__ import annotations

import gc
import os
import signal
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


@pytest.fixture(autouse=True)
def _isolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in an empty directory, without the user's settings and profiles."""
    for variable in [name for name in os.environ if name.startswith("RHAPSODY_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("XDG_CONFIG_HOME", os.fspath(tmp_path / ".config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_collection() -> Iterator[None]:
    """No garbage collection, which an idle program has no occasion for."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
