"""Metadata with arbitrary content is reported, and hides no other plugin."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import importlib_metadata  # noqa: F401 - the tests replace the path that it is found on
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsody import BackendRegistry
from rhapsody.plugins.manager import BACKENDS, PLUGINS, installed
from tests._support.distributions import install

pytestmark = pytest.mark.timeout(60)

LINES = st.one_of(
    st.sampled_from([f"[{BACKENDS}]", f"[{PLUGINS}]", "[", "]", "a = b:c", "a =", "= b", "a b"]),
    st.text(max_size=20),
)
TEXTS = st.lists(LINES, max_size=8).map(lambda lines: "\n".join(lines).encode(errors="replace"))
NAMES = st.text(max_size=8) | st.sampled_from(["dask", "local", "Da-sk", "noop"])


@given(points=TEXTS | st.binary(max_size=60), metadata=TEXTS | st.binary(max_size=60))
@settings(max_examples=50)
def test_files_with_arbitrary_content(points: bytes, metadata: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory, patch.object(sys, "path", [directory]):
        info = install(Path(directory), "broken")
        (info / "entry_points.txt").write_bytes(f"[{BACKENDS}]\n".encode() + points)
        (info / "METADATA").write_bytes(metadata)
        install(Path(directory), "whole", backends={"fine": "a_module"})
        found = installed()
    assert "fine" in [entry.name for entry in found.entries]
    assert all(entry.name and entry.group in (BACKENDS, PLUGINS) for entry in found.entries)
    assert all(len(reason) == 2 for reason in found.unreadable)


@given(name=NAMES, value=st.text(max_size=8), distribution=NAMES, version=st.text(max_size=4))
@settings(max_examples=50)
def test_entry_points_with_arbitrary_names_are_listed_as_unusable(
    name: str, value: str, distribution: str, version: str
) -> None:
    with tempfile.TemporaryDirectory() as directory, patch.object(sys, "path", [directory]):
        info = install(Path(directory), "odd")
        point = f"[{BACKENDS}]\n{name} = there_is_no_{value}\n"
        (info / "entry_points.txt").write_bytes(point.encode(errors="replace"))
        text = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (info / "METADATA").write_bytes(text.encode(errors="replace"))
        for described in BackendRegistry.describe().values():
            assert not described.usable
            assert described.reason
            assert described.remedy
