"""Bytes that are not what they should be, for tests of what reads them."""

from __future__ import annotations

import contextlib
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

ROOM = 2 << 30
"""Bytes that a test may take: nonsense may ask for terabytes."""


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Limit the memory, so that absurd requests fail as on a small machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def values() -> SearchStrategy[object]:
    """Values of plain types."""
    plain = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5)
    return st.recursive(plain, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)


def nonsense(good: bytes) -> SearchStrategy[bytes]:
    """Any bytes, the beginning of good ones, and pickles of something else."""
    cut = st.integers(0, len(good) - 1).map(lambda end: good[:end])
    tuples = st.lists(values(), max_size=11).map(lambda each: pickle.dumps(tuple(each)))
    return st.one_of(st.binary(max_size=64), cut, tuples)
