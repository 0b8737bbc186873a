"""`RadicalExecutionBackend`, which comes with `rhapsody-radical`."""

try:
    from rhapsody_radical import (  # type: ignore[import-not-found,unused-ignore]
        RadicalExecutionBackend,
        service_ready_callback,
    )
except ImportError as _error:
    from rhapsody.plugins.manager import missing_plugin

    raise missing_plugin("RadicalExecutionBackend", "rhapsody-radical", _error) from _error

__all__ = ["RadicalExecutionBackend", "service_ready_callback"]
