"""A Slurm of one node, for tests that use it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests._support.slurm import slurm, why_not


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real Slurm of one node with two cores, 2,000 MB and two GPUs."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with slurm(tmp_path_factory.mktemp("slurm"), gpus=2):
        yield
