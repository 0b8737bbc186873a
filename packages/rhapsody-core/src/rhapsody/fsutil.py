"""Operations on whole files and directories, and checks for exhausted resources.

Files are copied, replaced, removed and locked. The checks find out whether a task failed because a
disk was full, or because descriptors, processes or threads ran out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import resource
import shutil
import socket
import stat
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Literal

from rhapsody.copying import copy_file
from rhapsody.data import OUTPUT_FILES
from rhapsody.errors import DataError

log: logging.Logger = logging.getLogger(__name__)

_OCCUPIED_ERRORS = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}


def files_in(directory: str, below: str = "") -> Iterator[str]:
    """Yield the relative paths of all files in a directory and its subdirectories.

    Sockets, pipes, devices and dangling links are omitted.

    Args:
        directory: The directory.
        below: The subdirectory to begin with.
    """
    try:
        with os.scandir(os.path.join(directory, below)) as entries:
            found = list(entries)
    except OSError:  # it was removed, or cannot be read
        return
    for entry in found:
        path = os.path.join(below, entry.name)
        if entry.is_dir(follow_symlinks=False):
            yield from files_in(directory, path)
        elif os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file():
            yield path


class RealPaths:
    """Cache of real paths, in which each existing directory is resolved once."""

    def __init__(self) -> None:
        self._directories: dict[str, str] = {}

    def of(self, path: str) -> str:
        """Return an absolute path with all links resolved."""
        directory, name = os.path.split(path)
        real = self._directories.get(directory)
        if real is None:
            real = os.path.realpath(directory)
            if os.path.isdir(real):  # a missing directory may be created as a link later
                self._directories[directory] = real
        path = os.path.join(real, name)
        return os.path.realpath(path) if os.path.islink(path) else path


class _StoppedError(Exception):
    """The copy is no longer needed."""


def copy_directory(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    stop: threading.Event | None = None,
) -> list[str]:
    """Copy a directory with its content.

    Links within the directory stay links. Links to other entries of the parent directory, which is
    the sandbox of the task that wrote the directory, are replaced with copies of their targets.
    Entries that have no content, such as sockets and dangling links, are skipped.

    Args:
        source: The directory.
        target: The path of the copy, which must not exist.
        stop: If this event is set during the call, copying stops and the copy is removed.

    Returns:
        The relative paths of the skipped entries, each with its kind: `"'run.sock' (a socket)"`.

    Raises:
        DataError: A link leads out of the parent directory or to a directory that contains the
            link, or an entry cannot be copied.
        OSError: The directory cannot be read, or the copy cannot be created.
    """
    real = os.path.realpath(source)
    tree = _Tree(real, os.path.realpath(os.path.dirname(os.path.abspath(source))), stop)
    try:
        tree.copy(real, os.fspath(target), (real,))
    except _StoppedError:
        pass
    finally:
        if stop is not None and stop.is_set():
            shutil.rmtree(target, ignore_errors=True)
    return tree.skipped


class _Tree:
    """Copy of one directory tree; see `copy_directory`.

    Args:
        top: The real path of the directory.
        root: The real path of the directory that must contain the targets of links.
        stop: The event that stops the copy.

    Attributes:
        skipped: The skipped entries.
    """

    def __init__(self, top: str, root: str, stop: threading.Event | None) -> None:
        self._top = top
        self._root = root
        self._stop = stop
        self.skipped: list[str] = []

    def copy(self, source: str, target: str, roots: tuple[str, ...]) -> None:
        """Copy a directory.

        Args:
            source: The real path of the directory.
            target: The path of the copy.
            roots: The real paths of the top directory and of the directories to which the links
                above `source` lead, innermost last.

        Raises:
            _StoppedError: The event that stops the copy was set.
        """
        os.mkdir(target, 0o700)
        with os.scandir(source) as entries:
            found = list(entries)
        for entry in found:
            if self._stop is not None and self._stop.is_set():
                raise _StoppedError
            copy = os.path.join(target, entry.name)
            try:
                if entry.is_symlink():
                    self._copy_link(entry.path, copy, roots)
                elif entry.is_dir():
                    self.copy(entry.path, copy, roots)
                else:
                    self._copy_file(entry.path, entry.path, copy)
            except OSError as error:
                raise self._error(entry.path, error.strerror or error) from error
        shutil.copystat(source, target)

    def _copy_link(self, path: str, copy: str, roots: tuple[str, ...]) -> None:
        real = os.path.realpath(path)
        if not os.path.exists(real):
            self._skip(path, f"a dangling link to {os.readlink(path)!r}")
        elif _is_below(real, roots[-1]):
            os.symlink(os.path.relpath(real, os.path.dirname(path)), copy)
        elif not _is_below(real, self._root):
            raise self._error(
                path,
                f"it is a link to {real!r}, outside the sandbox; replace the link with the file "
                "itself",
            )
        elif not os.path.isdir(real):
            self._copy_file(path, real, copy)
        elif any(_is_below(root, real) for root in roots):
            raise self._error(path, f"it is a link to {real!r}, which contains the link")
        else:
            self.copy(real, copy, (*roots, real))

    def _copy_file(self, path: str, real: str, copy: str) -> None:
        kind = kind_of(os.lstat(real).st_mode)
        if kind is None:
            copy_file(real, copy)
        else:
            self._skip(path, kind)

    def _skip(self, path: str, kind: str) -> None:
        self.skipped.append(f"{os.path.relpath(path, self._top)!r} ({kind})")

    def _error(self, path: str, why: object) -> DataError:
        return DataError(f"{os.path.relpath(path, self._top)!r} in it: {why}")


def _is_below(path: str, directory: str) -> bool:
    """Return True if a real path is a directory or is in it."""
    return f"{path}/".startswith(f"{directory}/")


_KINDS = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


def kind_of(mode: int) -> str | None:
    """Return the kind of a file without content, such as `"a socket"`; `None` for other files."""
    return _KINDS.get(stat.S_IFMT(mode))


def open_file(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file for reading, which another user may have replaced.

    Returns:
        The open file, which the caller closes.

    Raises:
        OSError: The file cannot be opened, or it is a named pipe or a device, from which reading
            could block or never end.
    """
    file = open(  # noqa: SIM115 - the caller closes it
        path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
    )
    kind = kind_of(os.fstat(file.fileno()).st_mode)
    if kind is not None:
        file.close()
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", os.fspath(path))
    return file


def replace_links(directory: str, kept: Collection[str]) -> None:
    """Replace links in a sandbox with their targets before the rest of the sandbox is removed.

    Afterwards, the links among the kept entries and in them lead only to kept entries and to files
    outside all sandboxes.

    Args:
        directory: The sandbox. Its parent directory contains the other sandboxes.
        kept: The names of the entries that are not removed.

    Raises:
        DataError: A target cannot be copied.
        OSError: A link cannot be replaced.
    """
    root = os.fspath(directory)
    links: _Links | None = None  # needs the real path of the sandbox, which takes many calls
    waiting = [os.path.join(root, name) for name in kept]
    while waiting:
        path = waiting.pop()
        mode = _mode_of(path)
        if stat.S_ISLNK(mode):
            links = links or _Links(os.path.realpath(root), kept)
            links.replace(os.path.join(links.root, os.path.relpath(path, root)))
            mode = _mode_of(path)
        if stat.S_ISDIR(mode):
            with os.scandir(path) as entries:
                waiting += [entry.path for entry in entries if entry.is_symlink() or entry.is_dir()]


def _mode_of(path: str) -> int:
    """Return the mode of a file, without following links; 0 if it does not exist."""
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


class _Links:
    """Links in one sandbox; see `replace_links`."""

    def __init__(self, root: str, kept: Collection[str]) -> None:
        self.root: str = root
        self._kept = kept
        self._work_dir = os.path.dirname(root)
        self._copies: dict[str, str] = {}  # paths of copied directories, by their real paths

    def replace(self, path: str) -> None:
        """Replace a link with a copy of its target, or with a direct link to a kept target."""
        real = os.path.realpath(path)
        if not (os.path.exists(real) and self._is_in_sandbox(real)):
            return
        target = self._copies.get(real, real)
        if self._is_kept(target):
            text = os.path.relpath(target, os.path.dirname(path))
            if text != os.readlink(path):
                _replace_with(path, partial(os.symlink, text))
        elif os.path.isdir(real):
            self._copies[real] = path
            _replace_with(path, partial(self._copy_directory, real))
        else:
            _replace_with(path, partial(self._copy_file, real))

    def _is_in_sandbox(self, real: str) -> bool:
        place = os.path.relpath(real, self._work_dir)
        return os.sep in place and not place.startswith(os.pardir)

    def _is_kept(self, real: str) -> bool:
        name, *_ = os.path.relpath(real, self.root).split(os.sep)
        return name in self._kept

    def _copy_directory(self, real: str, copy: str) -> None:
        """Copy a directory with links to its subdirectories, which `replace_links` replaces."""
        os.mkdir(copy)
        with os.scandir(real) as entries:
            for entry in entries:
                real, path = os.path.realpath(entry.path), os.path.join(copy, entry.name)
                if entry.is_symlink() or entry.is_dir():
                    os.symlink(real, path)
                else:
                    self._copy_file(real, path)

    def _copy_file(self, real: str, copy: str) -> None:
        if _is_below(real, self.root):  # the other name will be removed
            with contextlib.suppress(OSError):  # the file system has no hard links
                os.link(real, copy)
                return
        copy_file(real, copy)


def _replace_with(path: str, make: Callable[[str], object]) -> None:
    """Replace a link with what `make` creates at the path that it is called with."""
    new = f"{os.path.dirname(path)}/.{uuid.uuid4().hex}.part"
    try:
        make(new)
        if os.path.isdir(new) and not os.path.islink(new):
            os.unlink(path)
        os.rename(new, path)
    except BaseException:
        remove(new)
        raise


def save_directory(
    source: str, path: Path, part: str, stop: threading.Event | None = None
) -> list[str]:
    """Copy a directory to a destination, replacing an existing directory.

    The copy is made in a private directory next to the destination, and all directories are used
    through descriptors, so that no other user who can write to the parent directory can redirect
    the copy or a removal with a link.

    The old directory is moved aside first and removed afterwards. Readers see the old directory,
    then briefly no directory, then the new one, but never a mixture.

    Args:
        source: The directory.
        path: The destination.
        part: The name of the private directory, which must not exist.
        stop: If this event is set during the call, the destination is not replaced.

    Returns:
        The skipped entries, as `copy_directory` does.

    Raises:
        OSError: The directory cannot be copied or renamed; the old one has been restored.
        NotADirectoryError: `path` is an existing file.
        PermissionError: Another user has replaced the private directory.
    """
    with open_directory(path.parent) as parent, private_directory(part, parent) as private:
        skipped = copy_directory(source, as_path(private, path.with_name(part)) / COPY, stop)
        if stop is None or not stop.is_set():
            _replace_directory(private, parent, path)
    return skipped


@contextlib.contextmanager
def private_directory(name: str, base: int) -> Iterator[int]:
    """Create a private directory in an open directory, and remove it afterwards.

    Yields:
        Its descriptor. Use the directory only through it, because others may be able to rename the
        directory.

    Raises:
        OSError: The directory cannot be created.
        PermissionError: Another user has replaced it.
    """
    os.mkdir(name, 0o700, dir_fd=base)
    with open_directory(name, base) as private:
        if os.fstat(private).st_uid != os.geteuid() or os.listdir(private):
            raise PermissionError(errno.EPERM, "another user has replaced it", name)
        try:
            yield private
        finally:
            remove_content(private)
            with contextlib.suppress(OSError):  # another user has replaced it
                os.rmdir(name, dir_fd=base)


def as_path(opened: int, path: Path) -> Path:
    """Return a path that leads to an open file or directory, even if others rename it.

    Args:
        opened: The descriptor.
        path: Its path, which is returned on systems other than Linux.
    """
    place = Path(f"/proc/self/fd/{opened}")
    return place if os.path.lexists(place) else path


def path_text(argument: str, value: object, accepted: str = "a path") -> str:
    """Return a path that the user has passed as text.

    Args:
        argument: The name of the argument, for errors.
        value: The value of the argument.
        accepted: What the argument accepts, for errors.

    Raises:
        TypeError: The value is not a path, or is a `bytes` path.
        ValueError: The path begins with `~`.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"{argument} must be {accepted}, got {value!r}")
    if text.split("/")[0] == "~":
        raise ValueError(
            f"{argument}: '~' in {text!r} is not expanded; write os.path.expanduser({text!r})"
        )
    return text


def open_own(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file of this user for writing, and create it if it does not exist.

    Returns:
        The descriptor.

    Raises:
        OSError: The file cannot be opened.
        PermissionError: The file belongs to another user, who could read and change its content.
    """
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(path, flags & ~os.O_TRUNC, 0o600)
    try:
        found = os.fstat(file)
        require_own(found, path)
        if flags & os.O_TRUNC and stat.S_ISREG(found.st_mode):
            os.ftruncate(file, 0)
    except BaseException:
        os.close(file)
        raise
    return file


def lock_file(file: int) -> None:
    """Lock an open regular file until it is closed, if its file system has locks.

    Raises:
        BlockingIOError: The file is locked, by this process or another one.
    """
    if stat.S_ISREG(os.fstat(file).st_mode):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # not supported
            pass


def require_own(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    """Raise an error if a regular file belongs to another user.

    Raises:
        PermissionError: The file belongs to another user.
    """
    if stat.S_ISREG(found.st_mode) and found.st_uid != os.geteuid():
        raise PermissionError(
            errno.EPERM,
            f"it belongs to another user (uid {found.st_uid}), who could read and change it; "
            "remove it, or choose another path",
            os.fspath(path),
        )


COPY = "rhapsody-copy"
"""Name of an incomplete copy in its private directory."""


def _replace_directory(private: int, parent: int, path: Path) -> None:
    """Move the copy in an open private directory to its destination in an open directory."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file of that name exists", str(path))
    mode = stat.S_IMODE(os.lstat(COPY, dir_fd=private).st_mode)
    os.chmod(COPY, mode | 0o700, dir_fd=private)  # a directory that is moved must be writable
    with contextlib.ExitStack() as stack:
        new = stack.enter_context(open_directory(COPY, private))
        old: int | None = None
        with contextlib.suppress(OSError):  # it is a link, or does not exist
            old = stack.enter_context(open_directory(path.name, parent))
        aside = f".{path.name[:40]}.{uuid.uuid4().hex}.old"
        try:
            os.rename(COPY, path.name, src_dir_fd=private, dst_dir_fd=parent)
        except OSError as error:
            if error.errno not in _OCCUPIED_ERRORS:
                raise
            os.rename(path.name, aside, src_dir_fd=parent, dst_dir_fd=parent)
            try:
                os.rename(COPY, path.name, src_dir_fd=private, dst_dir_fd=parent)
            except BaseException:
                os.rename(aside, path.name, src_dir_fd=parent, dst_dir_fd=parent)
                raise
        else:
            aside = ""
        os.fchmod(new, mode)
        if not aside:
            return
        try:
            if old is None:
                os.unlink(aside, dir_fd=parent)
            else:
                remove_content(old)
                os.rmdir(aside, dir_fd=parent)
        except OSError as error:
            log.warning(
                "directory %s: its old content, now %s, cannot be removed: %s",
                path, path.with_name(aside), error,
            )  # fmt: skip


@contextlib.contextmanager
def open_directory(path: str | os.PathLike[str], base: int | None = None) -> Iterator[int]:
    """Open a directory. Below an open directory `base`, fail if `path` is a link."""
    follow = os.O_NOFOLLOW if base is None else 0
    directory = os.open(path, DIRECTORY & ~follow, dir_fd=base)
    try:
        yield directory
    finally:
        os.close(directory)


def remove_content(directory: int) -> None:
    """Remove the content of an open directory, without following links.

    Raises:
        OSError: An entry cannot be removed.
    """
    with contextlib.suppress(PermissionError):  # it belongs to another user
        os.fchmod(directory, 0o700)
    for name in os.listdir(directory):
        remove_below(directory, name)


def remove(path: str | os.PathLike[str]) -> None:
    """Remove a file, a directory with its content, or a link; ignore a path that does not exist.

    Raises:
        OSError: The path cannot be removed.
    """
    if os.path.isdir(path) and not os.path.islink(path):
        remove_directory(path)
    else:
        Path(path).unlink(missing_ok=True)


def remove_below(directory: int, path: str) -> None:
    """Remove a path relative to an open directory, with its content, without following links.

    Raises:
        OSError: The path cannot be removed, or one of the directories in it is a link.
    """
    *above, name = path.split(os.sep)
    with contextlib.ExitStack() as stack:
        for part in above:
            directory = os.open(part, DIRECTORY, dir_fd=directory)
            stack.callback(os.close, directory)
        if not stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
            os.unlink(name, dir_fd=directory)
            return
        try:
            shutil.rmtree(name, dir_fd=directory)
        except PermissionError:
            _open_up(name, directory)
            shutil.rmtree(name, dir_fd=directory)


def _open_up(name: str, base: int) -> None:
    """Make a directory and its subdirectories writable, without following links."""
    flags = getattr(os, "O_PATH", 0) | DIRECTORY  # `O_PATH` of Linux needs no permission
    held = os.open(name, flags, dir_fd=base)
    try:
        place = f"/proc/self/fd/{held}"
        os.chmod(place if os.path.isdir(place) else held, 0o700)
        with open_directory(os.curdir, held) as directory, os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    _open_up(entry.name, directory)
    finally:
        os.close(held)


DIRECTORY: int = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags that open a directory, and fail for a link."""


def make_shared_directory(path: str | os.PathLike[str]) -> None:
    """Create a directory that only the user can access, unless it exists.

    In a directory of a group, which is writable by the group and has the setgid bit, the group can
    access it as well. Its sticky bit keeps the members from replacing the entries of others.

    Raises:
        OSError: The directory cannot be created.
        FileExistsError: There is a file at the path.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if os.path.isdir(path):
            return
        raise
    mode = os.stat(os.path.dirname(os.path.abspath(path))).st_mode
    if is_groups(mode):
        os.chmod(path, mode & 0o770 | stat.S_ISGID | stat.S_ISVTX)


def is_groups(mode: int) -> bool:
    """Return True if a directory of this mode is shared by a group, and by no other users."""
    return bool(mode & stat.S_ISGID and mode & stat.S_IWGRP and not mode & stat.S_IWOTH)


def remove_directory(path: str | os.PathLike[str], kept: Collection[str] = ()) -> None:
    """Remove a directory, even if it is write-protected.

    With `kept`, the directory and the entries with these names are not removed.

    Raises:
        OSError: The directory or an entry cannot be removed.
    """
    try:
        _clear(path, kept)
    except PermissionError:
        _make_writable(path)
        _clear(path, kept)


def _clear(path: str | os.PathLike[str], kept: Collection[str]) -> None:
    """Remove a directory, or only its entries except `kept`."""
    # For a directory without subdirectories, this takes fewer system calls than `shutil.rmtree`.
    if os.path.islink(path):
        raise NotADirectoryError(errno.ENOTDIR, "it is a link", os.fspath(path))
    if not kept and _clear_output(path):
        return
    with os.scandir(path) as entries:
        others = [entry for entry in entries if entry.name not in kept]
    for entry in others:
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    if not kept:
        os.rmdir(path)


def _clear_output(path: str | os.PathLike[str]) -> bool:
    """Remove a sandbox that contains only captured output; return False if it remains."""
    try:
        for name in OUTPUT_FILES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(path, name))
        os.rmdir(path)
    except OSError:
        return False
    return True


def _make_writable(path: str | os.PathLike[str]) -> None:
    """Make a directory and its subdirectories writable; some programs leave them read-only."""
    os.chmod(path, 0o700)
    for directory, names, _ in os.walk(path):
        for name in names:
            inner = os.path.join(directory, name)
            if not os.path.islink(inner):
                os.chmod(inner, 0o700)


LockState = Literal["free", "held", "left", "unknown"]
"""State of a lock: not held, held, left by a killed process, or possibly held on another host."""

_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class FileLock:
    """Lock on a file, held until `release`.

    The lock ends with the process that holds it. `release` removes the file, so a file that
    exists but is not locked was left by a process that was killed.

    Args:
        path: The path of the file, which is created if it does not exist.
        directory: The descriptor of the open directory to which the path is relative, which must
            stay open until `release`; `None` for the current directory.

    Attributes:
        path: The path of the file.
        problem: The error if the file could not be locked because the file system does not support
            locks; otherwise `None`.

    Raises:
        BlockingIOError: Another process or engine holds the lock.
        OSError: The file cannot be created.
    """

    def __init__(self, path: str | os.PathLike[str], directory: int | None = None) -> None:
        self.path: str = os.fspath(path)
        self._directory = directory
        self.problem: OSError | None = None
        self._file = self._locked()
        _locks.add(self)
        with contextlib.suppress(OSError):  # the disk may be full
            os.truncate(self._file, 0)
            os.pwrite(self._file, socket.gethostname().encode(), 0)

    def _locked(self) -> int:
        while True:
            file = os.open(self.path, _FLAGS | os.O_CREAT, 0o600, dir_fd=self._directory)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                raise
            except OSError as error:
                self.problem = error
                return file
            with contextlib.suppress(FileNotFoundError):
                there = os.stat(self.path, dir_fd=self._directory)
                if os.path.samestat(os.fstat(file), there):
                    return file
            os.close(file)  # the former owner has removed the file meanwhile

    def release(self) -> None:
        """Release the lock and remove the file. In a forked child, this has no effect."""
        if self._file < 0:
            return
        with contextlib.suppress(OSError):  # it was removed
            os.unlink(self.path, dir_fd=self._directory)
        self.let_go()

    def let_go(self) -> None:
        """Close the file without removing it. In a forked child, the parent keeps its lock."""
        file, self._file = self._file, -1
        with contextlib.suppress(OSError):
            os.close(file)


_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _let_go_in_child() -> None:
    """Close the locks that a forked child has inherited: it may outlive the program."""
    for lock in _locks:
        lock.let_go()


os.register_at_fork(after_in_child=_let_go_in_child)


def state_of(path: str | os.PathLike[str]) -> LockState:
    """Return the state of the lock on a file, without creating or changing the file."""
    try:
        file = os.open(path, _FLAGS)
    except FileNotFoundError:
        return "free"
    except OSError:
        return "unknown"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        host = os.pread(file, 256, 0)
    except BlockingIOError:
        return "held"
    except OSError:  # the file system has no locks
        return "unknown"
    finally:
        os.close(file)
    # Some network file systems do not show the locks of one host to other hosts.
    return "left" if host in (b"", socket.gethostname().encode()) else "unknown"


MIN_FREE_BYTES = 65536
"""Number of free bytes below which a file system is regarded as full: programs write in blocks."""

_ERRORS = (errno.ENOSPC, errno.EDQUOT)


def full_disk(sandbox: str | None, error: BaseException | None = None) -> str | None:
    """Find the full disk that made a task fail.

    Args:
        sandbox: The task's sandbox.
        error: The task's exception. If it reports a lack of space, the file that it names, the
            current directory and the directory for temporary files are checked as well.

    Returns:
        A phrase with the mount point; `None` if no full disk was found.
    """
    for path in _places(sandbox, error):
        with contextlib.suppress(OSError, ValueError):
            if _is_full(path):
                return f"no space left on device: {mount_of(path)} is full"
    return None


def disk_use(directory: str | os.PathLike[str], seconds: float = 0.5) -> int:
    """Return the size in bytes of the files in a directory, as far as found within `seconds`."""
    size, end = 0, time.monotonic() + seconds
    for place, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                size += os.lstat(os.path.join(place, name)).st_size
        if time.monotonic() > end:
            break
    return size


def used_up(error: BaseException, *, program: bool) -> str | None:
    """Check whether a task failed because descriptors, processes or threads ran out.

    Args:
        error: The task's exception.
        program: True if the exception was raised by the start of a program.

    Returns:
        A note that names the resource and the fix; `None` if the error has another cause.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EMFILE:
        what, flag, limit = "open files", "-n", resource.RLIMIT_NOFILE
    elif (program and number == errno.EAGAIN) or _no_thread(error):
        what, flag, limit = "processes and threads", "-u", resource.RLIMIT_NPROC
    else:
        return None
    most = resource.getrlimit(limit)[0]
    allowed = what if most == resource.RLIM_INFINITY else f"{most} {what}"
    return (
        f"the limit of {allowed} was reached: raise it with `ulimit {flag}` before the "
        "program starts, or pass resources={'cores': N} to the backend to run fewer tasks at once"
    )


def _no_thread(error: BaseException) -> bool:
    """Return True if an error means that no thread can be started."""
    return type(error) is RuntimeError and error.args == ("can't start new thread",)


def _places(sandbox: str | None, error: BaseException | None) -> Iterator[str]:
    if sandbox is not None:
        yield sandbox
    if error is None or not isinstance(error, OSError) or error.errno not in _ERRORS:
        return
    named = error.filename
    if type(named) is str:
        yield named if os.path.exists(named) else os.path.dirname(os.path.abspath(named))
    yield os.curdir
    yield tempfile.gettempdir()


def _is_full(path: str) -> bool:
    system = os.statvfs(path)
    if system.f_blocks == 0 or system.f_flag & os.ST_RDONLY:  # the sizes mean nothing
        return False
    no_files = system.f_files > 0 and system.f_favail == 0
    return no_files or system.f_bavail * system.f_frsize < MIN_FREE_BYTES


def mount_of(path: str) -> str:
    """Return the mount point of the file system that contains a path."""
    place = os.path.realpath(path)
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    return place


NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.juicefs",
     "fuse.s3fs", "fuse.sshfs", "gfs2", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
     "orangefs", "panfs", "pvfs2", "smb2", "smb3", "smbfs", "virtiofs", "wekafs"}
)  # fmt: skip
"""File system types, as in Linux's list of mounts, whose files other hosts may change."""


def on_network(directory: Path) -> bool:
    """Return True if other hosts may also have mounted the file system of a directory."""
    return file_system(os.fspath(directory)) in NETWORK


def file_system(path: str) -> str:
    """Return the type of a path's file system, or an empty string if it is unknown."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # not Linux
        return ""
    place, found = os.path.realpath(path), ("", "")
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        point = point.encode("latin-1", "ignore").decode("unicode_escape", "ignore")
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found[0]):
            found = point, kind
    return found[1]
