"""Handler that exports Python's log records as OpenTelemetry's, in the context of their spans."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

from opentelemetry._logs import LoggerProvider, SeverityNumber
from opentelemetry.context import Context

from rhapsody.sdk import describe_error, made_in_time, mask, text_of

_OWN = ("opentelemetry", "urllib3")
"""Loggers that exporters use. Exporting their records would create further records."""


class SpanLogs(logging.Handler):
    """Handler for the root logger.

    A record of the local backend's worker processes, or about a task, has an attribute `task_uid`
    and is exported in the context of that task. Other records are exported in the current context:
    for a function that runs on a thread, that of its attempt. Secrets are masked as in the log of a
    run.

    Args:
        provider: The provider of OpenTelemetry's loggers.
        context_of: Function that returns the context of a task, or `None` if it is unknown.
    """

    def __init__(
        self, provider: LoggerProvider, context_of: Callable[[str], Context | None]
    ) -> None:
        super().__init__()
        self._provider = provider
        self._context_of = context_of

    def emit(self, record: logging.LogRecord) -> None:
        """Export a record."""
        if record.name.startswith(_OWN):
            return
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and not self._has_others(record.name):
            last.handle(record)  # as `logging` does if there is no handler
        try:
            uid = getattr(record, "task_uid", None)
            attributes: dict[str, str | int] = {
                "code.file.path": record.pathname,
                "code.function.name": record.funcName,
                "code.line.number": record.lineno,
            }
            if uid is not None:
                attributes["rhapsody.task.uid"] = uid
            if record.exc_info and record.exc_info[1] is not None:
                attributes.update(described(record.exc_info[1], mask))
            self._provider.get_logger(record.name).emit(
                timestamp=int(record.created * 1e9),
                context=None if uid is None else self._context_of(uid),
                severity_number=SeverityNumber(min(max(record.levelno // 10 * 4 + 1, 1), 21)),
                severity_text=record.levelname,
                body=mask(record.getMessage()),
                attributes=attributes,
            )
        except Exception:
            self.handleError(record)

    def _has_others(self, name: str) -> bool:
        """Return True if another handler receives the records of a logger."""
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False


def described(error: BaseException, masked: Callable[[str], str]) -> dict[str, str]:
    """Return the attributes of an exception, without secrets.

    Args:
        error: The exception.
        masked: Function that masks secrets in text.
    """
    kind = type(error)
    own = kind.__module__ == "builtins"
    try:
        trace = made_in_time(lambda: "".join(traceback.format_exception(error)), kind)
    except TimeoutError:
        trace = "".join([*traceback.format_tb(error.__traceback__), describe_error(error)])
    return {
        "exception.type": kind.__qualname__ if own else f"{kind.__module__}.{kind.__qualname__}",
        "exception.message": masked(text_of(error)),
        "exception.stacktrace": masked(trace),
    }
