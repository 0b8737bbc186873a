"""Paths that the user names: files that plugins write, and the script."""

from __future__ import annotations

import os
from pathlib import Path

from rhapsody.fsutil import path_text, require_own


def checked_path(argument: str, value: object, accepted: str = "a path", *, also: str = "") -> Path:
    """Return the path of a file that the engine will write.

    Args:
        argument: The name of the option, for errors.
        value: The value that the user has passed.
        accepted: What the option accepts, for errors.
        also: The path of another file that will be written; empty if there is none.

    Raises:
        TypeError: The value is not a path.
        ValueError: The path is a directory, is not writable, or is a file of another user.
    """
    path = Path(path_text(argument, value, accepted))
    if not path.name or path.is_dir():
        raise ValueError(f"{argument} must be the path of a file, got {str(value)!r}")
    require_directory(argument, path)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{argument}: no permission to write {str(path)!r}")
    for file in (path, *([Path(also)] if also else ())):
        try:
            require_own(os.lstat(file), file)
        except FileNotFoundError:
            continue
        except PermissionError as error:
            raise ValueError(f"{argument}={str(file)!r} is not used: {error.strerror}") from None
    return path


def require_directory(argument: str, path: Path) -> None:
    """Raise a `ValueError` if the directory of a file does not exist.

    Args:
        argument: The name of the option, for errors.
        path: The path of the file.

    Raises:
        ValueError: The directory does not exist.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{argument}: the directory of {str(path)!r} does not exist")


def directory_of_script(path: str) -> Path:
    """Return the directory of a script, as the user has named it.

    If the script itself is a link, this is the directory of the file that it points to.
    """
    named, real = os.path.dirname(os.path.abspath(path)), os.path.dirname(os.path.realpath(path))
    return Path(named if os.path.realpath(named) == real else real)
