"""Check that another distribution has not overwritten Rhapsody's files.

The distribution `rhapsody-py` also installs files under `rhapsody/`, so the distribution that is
installed last replaces files of the other. This check is a separate package because a module of
`rhapsody` could itself be replaced, and would run only after `rhapsody/__init__.py`, which could
also be replaced. The package uses only the standard library. Backend packages call `check` when
they are imported, and the command `rhapsody` calls it before it imports anything else
(`rhapsody_guard.command`).
"""

from __future__ import annotations

import os
import re
import sys

__all__ = ["UNSUPPORTED", "ConflictError", "check", "conflict"]

UNSUPPORTED = (
    "Rhapsody does not support Windows; use the Windows Subsystem for Linux: "
    "https://learn.microsoft.com/windows/wsl/install"
)
"""Message for users of Windows."""

_OTHER = re.compile(
    r"rhapsody[-_.]py(?:-(?P<version>[^-]+?))?(?:-py[\d.]+)?\.(?:dist|egg)-info", re.I
)


class ConflictError(ImportError):
    """`rhapsody-py` is installed in addition to `rhapsody-core`.

    Args:
        reason: A description of the conflict, without a full stop at the end.

    Attributes:
        reason: The description of the conflict.
        remedy: The remedy, ending with two commands.
    """

    remedy = (
        "To remove it and restore rhapsody-core:\n"
        "  pip uninstall -y rhapsody-py\n"
        "  pip install --force-reinstall --no-deps rhapsody-core"
    )

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason}. {self.remedy}"


def conflict() -> str | None:
    """Return a message if `rhapsody-py` is installed, ending with the commands that remove it.

    This examines the names of files in the directories on `sys.path`, and reads no file.

    Returns:
        The message; `None` if there is no conflict.
    """
    error = _conflict()
    return None if error is None else str(error)


def _conflict() -> ConflictError | None:
    for directory in sys.path:
        try:
            names = os.listdir(directory or os.curdir)
        except OSError:  # zip files and directories that do not exist are fine in sys.path
            continue
        for name in names:
            found = _OTHER.fullmatch(name)
            if found:
                version = found["version"]
                other = f"rhapsody-py {version}" if version else "rhapsody-py"
                return ConflictError(
                    f"{other} is installed in {directory or os.curdir} together "
                    "with rhapsody-core. Both provide the import package "
                    "'rhapsody', so they have overwritten each other's files"
                )
    return None


def check() -> None:
    """Raise an error if `rhapsody-py` is installed or the platform is not supported.

    Raises:
        ImportError: The installation cannot be used; the message contains the remedy.
    """
    if sys.platform.startswith("win"):
        raise ImportError(UNSUPPORTED)
    clash = _conflict()
    if clash is not None:
        raise clash
