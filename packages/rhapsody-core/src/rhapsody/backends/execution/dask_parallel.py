"""`DaskExecutionBackend`, which comes with `rhapsody-dask`."""

try:
    from rhapsody_dask import (  # type: ignore[import-not-found,unused-ignore]
        DaskExecutionBackend,
    )
except ImportError as _error:
    from rhapsody.plugins.manager import missing_plugin

    raise missing_plugin("DaskExecutionBackend", "rhapsody-dask", _error) from _error

__all__ = ["DaskExecutionBackend"]
