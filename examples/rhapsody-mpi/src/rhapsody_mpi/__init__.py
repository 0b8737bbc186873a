"""Backend `mpi` for Rhapsody: declared in `plugin`, implemented in `backend` and `worker`.

This module imports nothing, so that listing backends is fast and does not start MPI.
"""
