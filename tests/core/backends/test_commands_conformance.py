"""The backend for a batch system that the documents show passes the conformance kit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rhapsody.backends.commands import CommandBackend
from rhapsody_testing import BackendConformance
from tests._support.batch_system import documented, install


class TestCommandBackend(BackendConformance):
    cores = 2
    fan = 40
    ends_with_program = False  # the batch system runs its jobs to their ends
    names_workers = False  # the batch system of the example does not say

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def batch_system(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            install(tmp_path_factory.mktemp("batch"), patch)
            yield

    async def make_backend(self) -> CommandBackend:
        backend = documented()
        backend.ask_every = 0.2
        return backend
