"""`RadicalExecutionBackend`, which comes with `rhapsody-radical`."""

try:
    from rhapsody_radical import RadicalExecutionBackend, service_ready_callback
except ImportError as error:
    from rhapsody._exports import missing_plugin

    raise missing_plugin("RadicalExecutionBackend", "rhapsody-radical", error) from error

__all__ = ["RadicalExecutionBackend", "service_ready_callback"]
