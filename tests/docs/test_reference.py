"""Tests of the reference: it is complete. The build of the site reports names that do not exist."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rhapsody import __version__

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
PACKAGES = (
    "rhapsody",
    "rhapsody.backends",
    "rhapsody.history",
    "rhapsody.plugins",
    "rhapsody.sdk",
    "rhapsody.sdk.runs",
    "rhapsody_asyncflow",
    "rhapsody_dask",
    "rhapsody_dragon",
    "rhapsody_otel",
    "rhapsody_psij",
    "rhapsody_radical",
    "rhapsody_report",
    "rhapsody_simulated",
    "rhapsody_testing",
    "rhapsody_wfcommons",
)


def documented() -> set[str]:
    """Return the names on the pages of the public names."""
    text = "".join(page.read_text() for page in sorted((REFERENCE / "api").glob("*.md")))
    lists = re.findall(r"<!-- generate: names \S+ (.*?) -->", text, re.DOTALL)
    return {name for each in lists for name in each.split()}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_an_entry(package: str) -> None:
    names = set(importlib.import_module(package).__all__)
    assert names - documented() - {"__version__"} == set()


def test_the_version_is_in_the_menu_of_versions() -> None:
    versions = json.loads((ROOT / "docs" / "_static" / "switcher.json").read_text())
    assert __version__ in [each["version"] for each in versions]


def test_every_environment_variable_has_a_row() -> None:
    page = (REFERENCE / "environment-variables.md").read_text()
    sources = ROOT.glob("packages/*/src/**/*.py")
    text = "".join(path.read_text() for path in sources)
    used = set(re.findall(r'"(RHAPSODY_[A-Z_]+)"', text))
    assert used
    assert {name for name in used if f"`{name}`" not in page} == set()


def test_every_message_in_the_gallery_is_a_message_of_a_distribution() -> None:
    page = (REFERENCE / "errors.md").read_text()
    command = [sys.executable, str(ROOT / ".ci" / "messages.py")]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    messages = [
        line for line in listing.splitlines() if len(line.split()) > 6 and not line.startswith("#")
    ]
    patterns = [_pattern(message) for message in messages]
    blocks = re.findall(r"^```text\n(.*?)\n```", page, re.MULTILINE | re.DOTALL)
    shown = [line for block in blocks for line in block.splitlines()]
    assert len(shown) > 20
    wrong = []
    for line in shown:
        begin = line.removesuffix(" ...")
        if begin == line:
            known = any(each.search(line) for each in patterns)
        else:  # the end is left out; its last characters are also in the message
            last = begin[-8:]
            parts = [each[: each.index(last) + len(last)] for each in messages if last in each]
            known = any(_pattern(part).search(begin) for part in parts)
        if not known:
            wrong.append(line)
    assert wrong == []


def _pattern(message: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\\\}|%s|%d|%r|%\\\.0f|%g", ".*", re.escape(message)))
