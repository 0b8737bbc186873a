"""Code that runs on Dask's workers, and in part on its scheduler.

Rhapsody need not be installed on the workers: `rhapsody_dask.shipping` sends this package and core
to them. Modules of this package may therefore import only the standard library, cloudpickle,
distributed and `rhapsody`.
"""
