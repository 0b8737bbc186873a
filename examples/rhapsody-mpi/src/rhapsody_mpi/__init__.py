"""The backend `mpi` for Rhapsody: declared in `plugin`, implemented in `backend` and `worker`.

Nothing is imported here, so that listing backends stays quick and starts no MPI.
"""
