"""Log records that are made in worker processes, handled in the program as it configured that."""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections.abc import Callable, Mapping
from logging.handlers import QueueHandler
from typing import Any

from rhapsody.context import running_task
from rhapsody.sdk.capture import keep

_ATTEMPT = re.compile(r".+\.(task\.[0-9]+)\.[0-9]+", re.DOTALL)
"""The uid of an engine's attempt; the group is that of the future."""


def levels() -> dict[str, int]:
    """The levels that the program has set, by the names of its loggers; `""` is the root's."""
    loggers = {name: logging.getLogger(name) for name in list(logging.root.manager.loggerDict)}
    return {"": logging.root.level} | {
        name: logger.level for name, logger in loggers.items() if logger.level
    }


def forward(send: Callable[[bytes], object], program: Mapping[str, int]) -> None:
    """In a worker: sends what is logged to the program.

    Args:
        send: Sends a packed record.
        program: The levels that the program has set.
    """
    for name, level in program.items():
        logging.getLogger(name).setLevel(level)
    logging.root.addHandler(_Forwarder(send))


def handle(record: bytes | memoryview) -> None:
    """In the program: handles a record that `forward` has sent.

    What its handlers raise, or its own values when they are unpickled, is told as `logging` tells
    of it, and harms nobody: the outcome of the task comes behind it.
    """
    made = logging.makeLogRecord({"msg": "a log record of a worker process"})
    try:
        made = logging.makeLogRecord(pickle.loads(record))  # noqa: S301 - from our own worker
        logger = logging.getLogger(made.name)
        if logger.isEnabledFor(made.levelno):
            logger.handle(made)
    except Exception:
        _reporter.handleError(made)


_reporter = logging.Handler()


class _Forwarder(QueueHandler):
    """Packs records whose text is made here, since their arguments may not travel."""

    def __init__(self, send: Callable[[bytes], object]) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self._send = send
        self._pid = os.getpid()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Sends a record with the task that it is from."""
        if os.getpid() != self._pid:  # the task has forked
            if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                logging.lastResort.handle(record)
            return
        attributes: dict[str, Any] = dict(vars(record))
        task = running_task()
        if task is not None:
            attempt = _ATTEMPT.fullmatch(task.uid)
            attributes.setdefault("task_uid", attempt[1] if attempt else task.uid)
            attributes.setdefault("task_name", task.name)
        if record.levelno >= logging.WARNING:
            keep("stderr", f"{record.message}\n")
        self._send(_packed(attributes))


def _packed(attributes: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps(attributes)
    except Exception:  # what the program has added to a record may be anything
        plain = (str, int, float, type(None))
        return pickle.dumps(
            {
                name: value if type(value) in plain else repr(value)
                for name, value in attributes.items()
            }
        )
