"""Conformance tests of the backend, with two workers in one MPI job.

Run them with `mpiexec -n 3 python -m mpi4py.futures -m pytest`.
"""

from __future__ import annotations

import pytest
from mpi4py import MPI
from rhapsody_mpi.backend import MPIBackend

from rhapsody_testing import BackendConformance

if MPI.COMM_WORLD.size < 2:
    pytest.exit("run these tests with: mpiexec -n 3 python -m mpi4py.futures -m pytest", 2)


class TestMPI(BackendConformance):
    """The checks of the conformance kit. Each failure links to the violated rule."""

    closures = 10  # each takes a second with MPI
    ends_with_program = False  # `mpiexec` starts and ends the processes

    async def make_backend(self) -> MPIBackend:
        """Make the backend under test."""
        return MPIBackend()
