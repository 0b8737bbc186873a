"""Packing of sandbox files."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsody_dask.worker.messages import pack_files, unpack_files

pytestmark = pytest.mark.timeout(60)


@given(
    names=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
        | st.sampled_from(["../up", "/tmp/abs", "a/../../b", "..", "link/x"]),
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_no_file_is_unpacked_outside_of_the_sandbox(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as top:
        source, inside = Path(top, "source"), Path(top, "a", "b", "sandbox")
        source.write_text("content")
        inside.mkdir(parents=True)
        (inside / "link").symlink_to("/tmp")
        packed, _ = pack_files((name, str(source)) for name in names)
        before = _outside(top)
        with suppress(Exception):  # it is refused in whatever way
            unpack_files(packed, str(inside))
        assert _outside(top) == before


def _outside(top: str) -> set[str]:
    found = {os.path.join(place, name) for place, _, names in os.walk(top) for name in names}
    return {path for path in found if "/sandbox/" not in path} | set(os.listdir("/tmp")) & {"abs"}
