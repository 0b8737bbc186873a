"""Where journals are: for each program and its arguments one, and none that others may write."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from rhapsody.errors import JournalError
from rhapsody.staging.runs import BASE, program

DIRECTORY = "journals"
"""Where they are in a `.rhapsody`."""

SUFFIXES = ("", "-wal", "-shm", "-journal")
"""What SQLite adds to a database's name for the files that it takes into account beside it."""

NETWORK = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.ceph",
        "fuse.glusterfs",
        "fuse.juicefs",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs2",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "panfs",
        "pvfs2",
        "smb2",
        "smb3",
        "smbfs",
        "virtiofs",
        "wekafs",
    }
)
"""Types of file systems that other hosts may change, as in Linux's list of mounts."""


def journal_of_program(
    arguments: Sequence[str] | None = None, *, function: str | None = None
) -> Path:
    """The journal of what this process runs, for `journal=True` and for `rhapsody run`.

    The same program with the same arguments has the same one, wherever its directory is moved to.

    Args:
        arguments: The program, and what it was started with; default: `sys.argv`.
        function: The function that is called of it, where it is not `main`.

    Raises:
        FileNotFoundError: The current directory was removed.
    """
    here = os.getcwd()
    started, *others = sys.argv if arguments is None else arguments
    path = os.path.realpath(started) if started else ""
    words = [os.path.relpath(path, here) if path.startswith(here + os.sep) else path, *others]
    made = hashlib.blake2b(digest_size=4)
    for word in [*words, *([f":{function}"] if function not in (None, "main") else [])]:
        data = os.fsencode(word)
        made.update(b"%d:%b" % (len(data), data))
    return Path(here, BASE, DIRECTORY, f"{program()}-{made.hexdigest()}.sqlite")


def require_private(path: Path) -> None:
    """Raises where somebody else could write into a journal, or beside it: it holds pickles.

    Raises:
        JournalError: It says what to do.
    """
    try:
        above = os.stat(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise JournalError(f"journal {path} cannot be read: {error.strerror}") from error
    if above.st_mode & stat.S_IWOTH:
        meant = above.st_mode & stat.S_ISVTX or above.st_uid != os.geteuid()  # as /tmp is
        hint = "" if meant else f", or if nobody has: chmod o-w {path.parent}"
        raise JournalError(
            f"journal {path} is in a directory where everybody may put files, and what is in them "
            f"could be code; name another{hint}"
        )
    if above.st_uid != os.geteuid() and not os.access(path.parent, os.W_OK | os.X_OK):
        raise NotYoursError(f"journal {path} would be in a directory of another user's")
    for suffix in SUFFIXES:
        _require_own(Path(f"{path}{suffix}"))


def _require_own(path: Path) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise JournalError(f"journal {path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise JournalError(f"journal {path} is no file, or is a link; name another")
    if found.st_uid != os.geteuid():
        raise NotYoursError(
            f"journal {path} is another user's, and what is in it could be code; name another"
        )
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise JournalError(
            f"journal {path} can be written by others, and what is in it could be code; if nobody "
            f"has: chmod 600 {path}"
        )


class NotYoursError(JournalError):
    """The journal is another user's."""


def on_network(directory: Path) -> bool:
    """Return whether other hosts may also have mounted the file system of a directory."""
    return file_system(os.fspath(directory)) in NETWORK


def file_system(path: str) -> str:
    """Return the type of the file system that contains a path, empty if it is unknown."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # no Linux
        return ""
    place, found = os.path.realpath(path), ("", "")
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        point = point.encode("latin-1", "ignore").decode("unicode_escape", "ignore")
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found[0]):
            found = point, kind
    return found[1]
