"""`DaskExecutionBackend`, which comes with `rhapsody-dask`."""

try:
    from rhapsody_dask import DaskExecutionBackend
except ImportError as error:
    from rhapsody._exports import missing_plugin

    raise missing_plugin("DaskExecutionBackend", "rhapsody-dask", error) from error

__all__ = ["DaskExecutionBackend"]
