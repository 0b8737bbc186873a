"""Undeclared files: what a task left in its sandbox, as its dependents receive it.

Each dependent receives its own copy, so that it can write to the files without a change of
what other tasks see. Programs with fixed file names, which are common in simulation, need this.

Copies share their blocks with the original where the file system supports it (Btrfs, XFS, ...).
Elsewhere the largest files are linked instead if all files together exceed `COPY_LIMIT`. Nothing
keeps a program from writing through a link, so the engine compares the originals afterwards; see
`rhapsody.staging.inheritance`.

A link that leads out of the sandbox, such as that to an input of the task, is not data of the task:
it is copied as a link.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator

from rhapsody.copying import clone, copy_file
from rhapsody.data import RESERVED, make_sandbox
from rhapsody.errors import DataError

COPY_LIMIT = 1 << 30
"""Number of bytes of one dependency's files that are copied where blocks cannot be shared."""


def left_in(sandbox: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Return the entries of a sandbox, sorted by name, except the backends' own files.

    These are files whose names begin with `.rhapsody.`, or with the name of the sandbox and a dot.
    The list is empty if the sandbox does not exist on this machine.
    """
    own = (RESERVED, f"{os.path.basename(sandbox)}.")
    try:
        with os.scandir(sandbox) as entries:
            found = [entry for entry in entries if not entry.name.startswith(own)]
    except OSError:
        return []
    return sorted(found, key=lambda entry: entry.name)


def copy_all(
    source: str | os.PathLike[str],
    sandbox: str | os.PathLike[str],
    leave_out: Collection[str] = (),
) -> list[str]:
    """Copy the content of one sandbox into another, which is created if necessary.

    Backends call this in `link_implicit_data_deps`. Entries whose names exist in the target are
    skipped, and so are the backends' own files, sockets, pipes and devices. Links stay links. The
    largest files are linked instead if all files together exceed 1 GiB and the file system cannot
    share blocks between files. The source need not exist.

    Args:
        source: The sandbox to copy from.
        sandbox: The sandbox to copy into.
        leave_out: Names of entries that are not copied.

    Returns:
        The names of the copied and linked entries.

    Raises:
        DataError: An entry cannot be copied.
    """
    root = os.path.abspath(source)
    entries = [entry for entry in left_in(root) if entry.name not in leave_out]
    if not entries:
        return []
    target_root = make_sandbox(sandbox)
    large = too_large(entries)
    copied = []
    for entry in entries:
        target = os.path.join(target_root, entry.name)
        if os.path.lexists(target):
            continue
        try:
            if _copy(entry.path, target, root, large):
                copied.append(entry.name)
        except OSError as error:
            raise DataError(
                f"cannot copy {entry.name!r} from {root!r} to {target_root!r}: {error}"
            ) from error
    return copied


def too_large(entries: Iterable[os.DirEntry[str]]) -> dict[str, os.stat_result]:
    """Return the files that exceed `COPY_LIMIT`, by path: the largest ones, until the rest fits."""
    files = sorted(_files(entries), key=lambda file: (-file[1].st_size, file[0]))
    total = sum(found.st_size for _, found in files)
    large = {}
    for path, found in files:
        if total <= COPY_LIMIT:
            break
        large[path] = found
        total -= found.st_size
    return large


def _files(entries: Iterable[os.DirEntry[str]]) -> Iterator[tuple[str, os.stat_result]]:
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            with os.scandir(entry.path) as inner:
                yield from _files(list(inner))
        elif entry.is_file(follow_symlinks=False):
            yield entry.path, entry.stat(follow_symlinks=False)


def _copy(path: str, target: str, root: str, large: Collection[str]) -> bool:
    """Copy a file, link or directory; return False for anything else."""
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        os.symlink(_target_in_copy(path, root), target)
    elif stat.S_ISDIR(mode):
        os.mkdir(target, 0o700)
        for name in os.listdir(path):
            _copy(os.path.join(path, name), os.path.join(target, name), root, large)
        shutil.copystat(path, target)
    elif stat.S_ISREG(mode):
        if path not in large:
            copy_file(path, target)
        elif not _cloned(path, target):
            os.symlink(path, target)
            return True
        shutil.copystat(path, target)  # an unchanged copy is recognized by its time
    else:
        return False
    return True


def _cloned(path: str, target: str) -> bool:
    with open(path, "rb", 0) as original, open(target, "xb", 0) as copy:
        cloned = clone(original.fileno(), copy.fileno())
    if not cloned:
        os.unlink(target)
    return cloned


def outside(path: str, root: str) -> str | None:
    """Return the absolute path to which a link leads, or `None` if it stays in a directory."""
    target = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    return None if _inside(target, root) is not None else target


def _target_in_copy(path: str, root: str) -> str:
    """Return the target of the copy of a link.

    The copy of a link in the directory leads to the copy of its target. Other links lead to the
    target itself: in a long chain of tasks, links to links would exceed the system's limit.
    """
    place = os.path.dirname(path)
    target = os.path.normpath(os.path.join(place, os.readlink(path)))
    base = _inside(target, root)
    if base is None:
        return target
    return os.path.relpath(os.path.relpath(target, base), os.path.relpath(place, root))


def _inside(path: str, root: str) -> str | None:
    """Return the path of a directory, with or without links, below which another path is."""
    bases = (root, os.path.realpath(root))
    return next((base for base in bases if f"{path}/".startswith(f"{base}/")), None)
