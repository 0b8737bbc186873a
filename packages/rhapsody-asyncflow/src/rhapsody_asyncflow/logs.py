"""Functions that configure logging, under their names in the related projects."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

_FORMAT = "%(asctime)s | %(levelname)-8s | [%(name)s] | %(message)s"


def init_default_logger(
    log_level: int | str = logging.INFO,
    *,
    output_file: str | os.PathLike[str] | None = None,
    file_log_level: int | str | None = None,
    clear_handlers: bool = False,
    logger_name: str | None = None,
    **ignored: Any,
) -> logging.Logger:
    """Write log records to standard output, and to a file if one is given.

    Args:
        log_level: The lowest level to write to standard output.
        output_file: A file to which records are also appended.
        file_log_level: The lowest level to write to the file. Default: `log_level`.
        clear_handlers: True to remove the logger's handlers first.
        logger_name: The logger's name. Default: the root logger.
        **ignored: Options for colors, styles and JSON, which have no effect.

    Returns:
        The logger.
    """
    name = logger_name
    logger = logging.getLogger(name)
    if clear_handlers:
        logger.handlers.clear()
    handlers: list[tuple[logging.Handler, int | str]] = [
        (logging.StreamHandler(sys.stdout), log_level)
    ]
    if output_file is not None:
        os.makedirs(os.path.dirname(os.path.abspath(output_file)), exist_ok=True)
        handlers.append((logging.FileHandler(output_file), file_log_level or log_level))
    for handler, level in handlers:
        handler.setLevel(level)
        handler.setFormatter(logging.Formatter(_FORMAT))
        logger.addHandler(handler)
    logger.setLevel(min(handler.level for handler, _ in handlers))
    logging.captureWarnings(True)
    return logger


def enable_logging(
    level: int | str = logging.INFO,
    format_string: str | None = _FORMAT,
    stream: Any = None,
    force: bool = True,
) -> None:
    """Write log records to a stream.

    Args:
        level: The lowest level to write.
        format_string: The format of a record; `None` for the default.
        stream: The stream. Default: standard error.
        force: True to replace the handlers of the root logger.
    """
    logging.basicConfig(level=level, format=format_string or _FORMAT, stream=stream, force=force)
