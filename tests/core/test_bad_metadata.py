"""Metadata that is nonsense is told of, and keeps nobody from the plugins beside it."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsody.backends.catalog import Catalog, UnusableError
from rhapsody.plugins import entry_points
from rhapsody.plugins.entry_points import BACKENDS, PLUGINS, Declared, Installed
from tests.core.distributions import install

pytestmark = pytest.mark.timeout(60)

LINES = st.one_of(
    st.sampled_from([f"[{BACKENDS}]", f"[{PLUGINS}]", "[", "]", "a = b:c", "a =", "= b", "a b"]),
    st.text(max_size=20),
)
TEXTS = st.lists(LINES, max_size=8).map(lambda lines: "\n".join(lines).encode(errors="replace"))
NAMES = st.text(max_size=8) | st.sampled_from(["dask", "local", "Da-sk", ""])


@given(points=TEXTS | st.binary(max_size=60), metadata=TEXTS | st.binary(max_size=60))
@settings(max_examples=50)
def test_files_that_are_none(points: bytes, metadata: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        info = install(Path(directory), "broken")
        (info / "entry_points.txt").write_bytes(f"[{BACKENDS}]\n".encode() + points)
        (info / "METADATA").write_bytes(metadata)
        install(Path(directory), "whole", backends={"fine": "a_module"})
        found = entry_points._contents(directory)
    assert "fine" in [one.name for _, one in found.declared]
    assert all(one.name and one.group in (BACKENDS, PLUGINS) for _, one in found.declared)
    assert all(len(reason) == 2 for reason in found.unreadable)


@given(
    st.lists(
        st.builds(
            Declared,
            st.sampled_from([BACKENDS, PLUGINS]),
            NAMES,
            st.text(max_size=8).map(lambda text: f"there_is_no_{text}"),
            NAMES,
            st.text(max_size=4),
        ),
        max_size=5,
    ).map(tuple)
)
@settings(max_examples=50)
def test_declarations_that_are_none(declared: tuple[Declared, ...]) -> None:
    catalog = Catalog(Installed(declared))
    for key in catalog.names():
        assert catalog.claimants(key)
        catalog.conflicts(key)
        with contextlib.suppress(UnusableError):
            catalog.spec(key)
            raise AssertionError("a module that there is not was loaded")
