"""The backend `mpi` for Rhapsody: `plugin` declares it, `backend` is it, `worker` runs tasks.

Nothing is imported here, so that listing backends stays quick and starts no MPI.
"""
