"""Code that runs on Dask's workers, and in part on its scheduler.

Workers need no installation of Rhapsody: `rhapsody_dask.shipping` sends this package and core to
them. Nothing here may therefore import anything other than the standard library, cloudpickle,
distributed and `rhapsody`.
"""
