"""What the docstring of `TaskSettings` says about functions and backends."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import pytest

from rhapsody import TaskSettings, WorkflowEngine
from rhapsody.backends import Capabilities

VALUES = {"shell": "sh", "cwd": "."}


def described_settings() -> dict[str, str]:
    """Return what the docstring of `TaskSettings` says about each setting."""
    text = inspect.cleandoc(TaskSettings.__doc__ or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    for line in inspect.cleandoc("\n" + text).splitlines():
        if match := re.match(r"(\w+): (.*)", line):
            name, line = match.groups()
            found[name] = ""
        found[name] += f"{line.strip()} "
    return found


@pytest.mark.asyncio
async def test_settings_that_are_not_for_functions_are_refused_for_them() -> None:
    texts = described_settings()
    assert texts.keys() == TaskSettings.__annotations__.keys()
    refused = [name for name, text in texts.items() if "Not for functions" in text]
    assert refused == list(VALUES)
    async with WorkflowEngine.create() as flow:
        for name in refused:
            settings: Any = {name: VALUES[name]}
            with pytest.raises((TypeError, ValueError), match=name):
                flow.function_task(**settings)(print)()


def test_settings_name_capabilities_that_exist() -> None:
    fields = {each.name for each in dataclasses.fields(Capabilities)}
    named = [
        name
        for text in described_settings().values()
        for name in re.findall(r"capability `(\w+)`", text)
    ]
    assert named
    assert set(named) <= fields
