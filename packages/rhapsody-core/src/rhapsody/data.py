"""Files that tasks read and write, as users name them and as tasks receive them.

`InputFile`, `OutputFile` and `OutputDir` only identify files. The functions in this module are for
backends, which create sandboxes, link files into them and read the output of tasks there. The
engine finds the dependency that writes a file, fetches URLs, and decides when a sandbox is removed.
"""

from __future__ import annotations

import contextlib
import filecmp
import logging
import os
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, Self, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

from rhapsody.copying import copy_file
from rhapsody.errors import DataError

log: logging.Logger = logging.getLogger("rhapsody.engine")

__all__ = [
    "OUTPUT_FILES",
    "RESERVED",
    "STDERR_TAIL",
    "File",
    "InputFile",
    "InputFiles",
    "Output",
    "OutputDir",
    "OutputFile",
    "SavedFile",
    "copy_into",
    "end_of_file",
    "is_data_url",
    "link_into",
    "make_sandbox",
    "moved",
    "name_in_sandbox",
    "output_of",
    "plain_name",
    "stderr_tail",
    "stdout_tail",
    "without_secrets",
]

RESERVED = ".rhapsody."
"""Prefix of the names that backends use in every sandbox."""

OUTPUT_FILES = (f"{RESERVED}stdout", f"{RESERVED}stderr")
"""Names of the files in a sandbox that contain a task's output.

They are not copied into the sandboxes of dependent tasks.
"""

STDERR_TAIL = 2000
"""Maximum number of characters that a task's error contains from the end of each output stream."""


def plain_name(name: str) -> str:
    """Return a name, after checking that it can be the name of a file directly in a sandbox.

    Raises:
        DataError: The name is empty, has a directory part, contains a null character, or is `.` or
            `..`.
    """
    if not name or name in (".", "..") or "/" in name or "\0" in name or os.sep in name:
        raise DataError(
            f"{name!r} is not a plain file name: use a name without directories, not '.' or '..'"
        )
    return name


def name_in_sandbox(name: str) -> str:
    """Return a name, after checking that it can be the relative path of a file in a sandbox.

    Raises:
        DataError: A part of the path cannot be a name; see `plain_name`.
    """
    if "/" not in name:
        return plain_name(name)
    try:
        for part in name.split("/"):
            plain_name(part)
    except DataError as error:
        raise DataError(f"{name!r} is not a relative path in a sandbox: {error}") from None
    return name


def make_sandbox(sandbox: str | os.PathLike[str]) -> str:
    """Create a sandbox directory that only the user can access, unless it already exists.

    Returns:
        The absolute path.

    Raises:
        DataError: The path exists and is not a directory (a link to a directory is refused as
            well), or the directory belongs to another user and is writable by its group or by all
            users.
        OSError: The directory cannot be created.
        FileNotFoundError: The parent directory was removed repeatedly during the call.
    """
    path = os.path.abspath(sandbox)
    for tries_left in (2, 1, 0):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            _require_sandbox(path)
        except FileNotFoundError:
            # Another engine may remove an empty parent directory at the same time.
            if not tries_left:
                raise
            os.makedirs(os.path.dirname(path), exist_ok=True)
            continue
        break
    return path


def _require_sandbox(path: str) -> None:
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise DataError(f"sandbox {path!r} is not a directory")
    if found.st_uid != os.geteuid() and stat.S_IMODE(found.st_mode) & 0o022:
        raise DataError(
            f"sandbox {path!r} belongs to another user and is writable by its group or by all "
            "users; choose a work_dir that only you can write to"
        )


def moved(text: str, former: str, sandbox: str) -> str:
    """Return text, such as a command, with the sandbox path `former` replaced with `sandbox`."""
    # Sandboxes are named after uids, which end in numbers.
    return re.sub(re.escape(former) + r"(?![0-9~])", lambda _: sandbox, text)


def stderr_tail(task: Mapping[str, Any]) -> str:
    """Return the end of a task's standard error, from its file if output is captured in files."""
    return _tail(task, "stderr")


def stdout_tail(task: Mapping[str, Any]) -> str:
    """Return the end of a task's standard output, from its file if output is captured in files."""
    return _tail(task, "stdout")


def _tail(task: Mapping[str, Any], stream: str) -> str:
    text = task.get(stream)
    if not isinstance(text, str):
        return ""
    if task.get("capture") == "files":
        text = end_of_file(text, STDERR_TAIL)
    return text[-STDERR_TAIL:]


def end_of_file(path: str, count: int) -> str:
    """Return the last `count` bytes of an output file as text, without blocking.

    The text is empty if the file does not exist on this host or is not a regular file: a task may
    have replaced the file with a link or a FIFO.
    """
    with _output_file(path) as file:
        if file is None:
            return ""
        file.seek(max(0, file.seek(0, os.SEEK_END) - count))
        return file.read().decode(errors="replace")


MAX_OUTPUT = 64 << 20
"""Maximum number of bytes of an output file that are read as a whole."""

KEPT_OUTPUT = 1 << 20
"""Number of bytes that are read from the end of a longer output file."""


def output_of(path: str) -> str:
    """Return the text of an output file, or a note and the last MiB if it exceeds 64 MiB.

    Like `end_of_file`, this does not block, and the text is empty if there is no regular file.
    """
    with _output_file(path) as file:
        if file is None:
            return ""
        return read_output(file.fileno(), path, os.fstat(file.fileno()).st_size)


def read_output(descriptor: int, path: str, size: int) -> str:
    """Return the text of an open output file, as `output_of` does.

    Args:
        descriptor: The descriptor of the file, to which processes may still be writing.
        path: The path of the file, for messages.
        size: The number of bytes after which the text ends.
    """
    start = 0 if size <= MAX_OUTPUT else size - KEPT_OUTPUT
    data = bytearray()
    while missing := size - start - len(data):
        piece = os.pread(descriptor, missing, start + len(data))
        if not piece:  # the file was truncated
            break
        data += piece
    if not start:
        return data.decode(errors="replace")
    note = (
        f"the output has {size} bytes, of which only the last {KEPT_OUTPUT} are returned; all of "
        f'them are in {path} until the sandbox is removed; capture="files" returns this path'
    )
    log.warning("%s", note)
    return f"[truncated: {note}]\n{data.decode(errors='replace')}"


@contextlib.contextmanager
def _output_file(path: str) -> Iterator[IO[bytes] | None]:
    """Open an output file for the `with` block; `None` if it is not a regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield None
        return
    with open(descriptor, "rb") as file:
        yield file if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def link_into(sandbox: str | os.PathLike[str], name: str, source: str | os.PathLike[str]) -> None:
    """Link a file or directory into a sandbox, which is created if necessary.

    Backends call this in `link_explicit_data_deps`. It creates a symbolic link, or a copy on a file
    system without links. Repeating a call has no effect.

    Args:
        sandbox: The sandbox of the task that needs the file.
        name: The name in the sandbox, or a relative path such as `2/in.txt`; its directories are
            created.
        source: The path of the file.

    Raises:
        DataError: The name leads out of the sandbox, another file has this name in the sandbox, or
            `source` does not exist.
    """
    origin = os.path.abspath(source)
    if not os.path.exists(origin):
        raise DataError(
            f"cannot link {name!r} into {os.fspath(sandbox)!r}: {origin!r} does not exist"
        )
    target = _target(sandbox, name)
    if not _link(origin, target) and not _same(origin, target):
        raise DataError(f"cannot link {origin!r} to {target!r}: another file exists there")


def copy_into(sandbox: str | os.PathLike[str], name: str, source: str | os.PathLike[str]) -> None:
    """Copy a file or directory into a sandbox for a task that may change it.

    Backends call this in `link_explicit_data_deps` if `copy` is true. The copy shares blocks with
    the original if the file system supports this. The user can write to it, whatever the mode of
    the original. In a directory, links are replaced with copies of their targets.

    Args:
        sandbox: The sandbox of the task that needs the file, which is created if necessary.
        name: The name in the sandbox; see `link_into`.
        source: The path of the file.

    Raises:
        DataError: The name leads out of the sandbox, or the file cannot be copied, for example
            because a file of that name exists.
    """
    target = _target(sandbox, name)
    try:
        if os.path.isdir(source):
            shutil.copytree(source, target, copy_function=_copy_writable)
        else:
            _copy_writable(source, target)
    except (OSError, DataError) as error:
        raise DataError(f"cannot copy {os.fspath(source)!r} to {target!r}: {error}") from error


def _copy_writable(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    copy_file(source, target)
    os.chmod(target, stat.S_IMODE(os.stat(target).st_mode) | 0o600)


def _target(sandbox: str | os.PathLike[str], name: str) -> str:
    """Return the path of a file in a sandbox, after creating the directories above it."""
    *directories, last = name_in_sandbox(name).split("/")
    path = make_sandbox(sandbox)
    for directory in directories:
        path = make_sandbox(os.path.join(path, directory))  # refuses links, which lead elsewhere
    return os.path.join(path, last)


def _link(origin: str, target: str) -> bool:
    """Link a file, or copy it if links are not supported; return False if the target exists."""
    try:
        os.symlink(origin, target)
    except FileExistsError:
        return False
    except OSError:
        return _copy(origin, target)
    return True


def _copy(origin: str, target: str) -> bool:
    if os.path.lexists(target):
        return False
    # Copied aside and renamed, so that an incomplete file is never visible.
    aside = tempfile.mkdtemp(prefix=".linking-", dir=os.path.dirname(target))
    try:
        part = os.path.join(aside, "part")
        if os.path.isdir(origin):
            shutil.copytree(origin, part, symlinks=True)
        else:
            shutil.copy2(origin, part)
        os.rename(part, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


def _same(origin: str, target: str) -> bool:
    """Return True if linking would change nothing: the target is the same file or a copy."""
    with contextlib.suppress(OSError):
        if os.path.samefile(origin, target):
            return True
        return not os.path.islink(target) and filecmp.cmp(origin, target)
    return False


_URL = re.compile(r"[a-z][a-z0-9+.:-]*://", re.IGNORECASE)
PATTERN: re.Pattern[str] = re.compile(r"[*?[]")
"""Matches the special characters of patterns (`fnmatch`)."""
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(;[^;,/]+)*,", re.IGNORECASE)
_NO_NAME = re.compile(r"^[-~]|[\x00-\x1f\x7f;&|<>(){}\[\]$`\\\"'*?!#]")
"""Parts that are replaced in the name of a fetched file.

The name must not look like an option or contain characters that are special to a shell.
"""

AnyFile = TypeVar("AnyFile", bound="File")


def not_an_option(path: str) -> str:
    """Return a path that does not begin with a dash."""
    return f"./{path}" if path.startswith("-") else path


@dataclass(frozen=True, slots=True, init=False)
class File:
    """Common base of input and output files. Immutable.

    Attributes:
        filename: The file's name in the sandbox of a task that uses it.
        filepath: The file's path, or `None` if it is not known yet.
    """

    filename: str
    filepath: Path | None
    _by_path: bool = field(compare=False)
    _producer: Any = field(compare=False)  # the future of the task that writes the file, if known

    def bound_to(self, sandbox: str | os.PathLike[str], *, by_path: bool = True) -> Self:
        """Return a copy for a task, with the absolute path in the task's sandbox as `filepath`.

        Args:
            sandbox: The task's sandbox.
            by_path: True if `str()` of the copy returns that path; otherwise it returns the file's
                name, for commands that run in the sandbox.
        """
        path = Path(os.path.abspath(sandbox), self.filename)
        return _changed(self, filepath=path, _by_path=by_path, _producer=None)

    def __str__(self) -> str:
        """Return the file's path.

        Outside tasks, and in commands that run in the sandbox, return the file's name instead. If
        it begins with a dash, `./` is put before it, so that it does not look like an option.
        """
        return str(self.filepath) if self._by_path else not_an_option(self.filename)

    def __fspath__(self) -> str:
        if self.filepath is None:
            raise TypeError(
                f"{self!r} has no path before a task runs: pass it to a task as an "
                "argument, and use the path that the task receives"
            )
        return str(self.filepath)

    def resolve(self, *, strict: bool = False) -> Path:
        """Return the absolute path without links, as `pathlib.Path.resolve` does.

        `numpy.memmap`, and therefore `numpy.load(file, mmap_mode="r")`, calls this method of paths.

        Args:
            strict: True to raise `FileNotFoundError` if the file does not exist.

        Returns:
            The path.

        Raises:
            TypeError: The file has no path before a task runs.
        """
        return Path(self).resolve(strict=strict)


@dataclass(frozen=True, slots=True, init=False, repr=False)
class InputFile(File):
    """A file that a task reads; passed to the task as an argument.

    If the file is a directory that a dependency declared as `OutputDir`, or the pattern of an
    `OutputFile(..., many=True)`, the task receives an `InputFiles` object instead.

    Exactly one of `remote_url`, `local_file` and `other_task_file` is set.

    A path, which is a name with a directory such as `data/a.csv` or `./a.csv`, refers to the output
    with this destination if an earlier call declared it, and otherwise to the file at this path. A
    plain name such as `a.csv` refers to the first of the following that exists:

    1. a declared output of the call's own dependencies (arguments and `after=`),
    2. the output that the same coroutine, block or thread declared last before the call,
    3. the output with this name, if exactly one call of the engine has declared it,
    4. the file in the directory in which the engine was created.

    An output with a destination has a plain name only if the destination was given as `save=`, as
    in `OutputFile("a.csv", save="results/")`.

    A task depends on the call that writes its input. If a plain name could refer to the outputs of
    several calls of other coroutines, or to one of these and a file on disk, the call raises
    `DataError`; `future.file(name)` selects the output of one call. Relative paths are relative to
    the directory in which the engine was created, even if the current directory was changed.

    Args:
        spec: A URL (including `data:` URLs), a local path (a directory is linked as a whole), or
            the name of a file or directory that another task writes. Another `InputFile`, such as
            `future.file("out.txt")`, stands for the same file.
        name: The name under which the task sees the file, without directories. Default: the base
            name. If several inputs of a call have the same name, the second one is in the
            directory `2` of the sandbox, the third one in `3`, and so on.
        copy: True to give each attempt of the task its own copy, which it may change. A task that
            changes another input fails.

    Raises:
        DataError: `spec` is empty, is an invalid URL, begins with `~`, or has no base name, such as
            `/`; or `name` is not a plain file name.
        TypeError: `spec` is neither a string nor a path, `name` is not a string, or `copy` is not a
            bool.

    Attributes:
        filename: The base name. In a task with a sandbox, the path of the file relative to the
            sandbox: the base name, `name`, or a path such as `2/in.txt`.
        filepath: In a task, the absolute path: in the task's sandbox, or the original path for a
            function without a sandbox. Outside tasks, the absolute path of a file that exists in
            the current directory, the name of another file as it was given, or `None` for a URL,
            which is fetched when a task is about to run.
        name: The name that was given for the sandbox, or `None`.
        copy: True if the task receives a copy.
        remote_url: The URL.
        local_file: The path as it was given, if it exists when this object is created.
        other_task_file: The name as it was given, if it does not exist yet.
    """

    name: str | None
    copy: bool
    remote_url: str | None
    local_file: str | None
    other_task_file: str | None

    def __init__(
        self,
        spec: str | os.PathLike[str],
        *,
        name: str | None = None,
        copy: bool = False,
    ) -> None:
        if not isinstance(copy, bool):
            raise TypeError(f"InputFile: copy must be True or False, got {copy!r}")
        if isinstance(spec, InputFile):
            for field_name in type(self).__match_args__:
                object.__setattr__(self, field_name, getattr(spec, field_name))
            if name is not None:
                object.__setattr__(self, "name", _staged_name(spec, name))
            object.__setattr__(self, "copy", copy or spec.copy)
            return
        given = _text("InputFile", spec)
        url = local = other = None
        path: Path | None = None
        if _URL.match(given) or is_data_url(given):
            url, base = given, _name_in_url(given)
        else:
            _require_no_tilde("InputFile", given)
            base = os.path.basename(given.rstrip("/"))
            if base in ("", ".", ".."):
                base = os.path.basename(os.path.abspath(given))
            if os.path.exists(given):
                if ".." in given and _leads_elsewhere(given):
                    given = os.path.realpath(given)
                local, path = given, Path(os.path.abspath(given))
                if not base:
                    raise DataError(
                        f"InputFile({given!r}) has no base name; use the path of a file or of a "
                        "directory other than '/'"
                    )
            else:
                if base in ("", ".", "..") or "\0" in given:
                    raise DataError(
                        f"InputFile({given!r}) does not name a file; use a URL, or the path of a "
                        "file or directory"
                    )
                other, path = given, Path(given)
        _set(
            self,
            filename=base,
            filepath=path,
            _by_path=False,
            _producer=None,
            name=None if name is None else _staged_name(given, name),
            copy=copy,
            remote_url=url,
            local_file=local,
            other_task_file=other,
        )

    def __repr__(self) -> str:
        spec = self.local_file or self.other_task_file or without_secrets(self.remote_url or "")
        name = "" if self.name is None else f", name={self.name!r}"
        copy = ", copy=True" if self.copy else ""
        return f"InputFile({spec!r}{name}{copy})"


def _staged_name(spec: object, name: object) -> str:
    """Check the user's `name` argument of an input."""
    if not isinstance(name, str):
        raise TypeError(f"InputFile: name must be a string, got {name!r}")
    try:
        plain_name(name)
    except DataError as error:
        shown = without_secrets(spec) if isinstance(spec, str) else str(spec)
        raise DataError(f"InputFile({shown!r}): name={error}") from None
    if name.startswith(RESERVED):
        raise DataError(
            f"InputFile: name={name!r} cannot be used: names that begin with {RESERVED!r} are "
            "reserved for backends; choose another name"
        )
    return name


def staged_as(file: InputFile, filename: str) -> InputFile:
    """Return a copy of an input with the path, relative to a task's sandbox, as its `filename`."""
    return _changed(file, filename=filename)


def given_path(file: InputFile) -> str:
    """Return the path or name of an input as the user gave it; empty for a URL."""
    return file.local_file or file.other_task_file or ""


def output_name(file: InputFile) -> str | None:
    """Return the plain name by which an input may refer to an output; `None` for a path or URL."""
    name = given_path(file).rstrip("/")
    return None if "/" in name or name in ("", ".", "..") else name


def found_at(file: InputFile, path: str) -> InputFile:
    """Return a copy of an `InputFile` object with the path at which a function reads the file.

    The file itself is not copied.
    """
    return _changed(file, filepath=Path(path), _by_path=True, _producer=None)


def input_from(producer: object, name: str) -> InputFile:
    """Return an input that refers to a file of another task.

    Args:
        producer: The future of the task that writes the file.
        name: The name of the file.
    """
    file = object.__new__(InputFile)
    _set(
        file,
        filename=name,
        filepath=Path(name),
        _by_path=False,
        _producer=producer,
        name=None,
        copy=False,
        remote_url=None,
        local_file=None,
        other_task_file=name,
    )
    return file


@dataclass(frozen=True, slots=True, init=False, repr=False)
class OutputFile(File):
    """Declared output file, passed to a task, which must write the file into its sandbox.

    A task that does not write the file fails. A file with a destination is saved when the task is
    done and before its result is available: the file is copied to the destination, where the copy
    replaces an existing file atomically. A task whose file cannot be saved fails.

    Args:
        name: The file's name. Leading directories are the destination, relative to the engine's
            `results_dir`: the task writes `all.png` for `results/all.png`.
        many: True if the name is a pattern (`fnmatch`), such as `*.csv`. The pattern stands for all
            matching files directly in the sandbox. At least one file must match. Hidden files
            (unless the pattern begins with a dot), absolute links out of the sandbox, and inputs do
            not match. A relative link out of the sandbox fails the task.
        save: The destination as a separate argument. A path that ends in `/` or is an existing
            directory is the directory to save to. Any other path is the path of the saved file, and
            is an error with `many`. A relative path starts at `results_dir` and must stay inside
            it. `True` stands for `results_dir` itself. With `False`, the file stays in the sandbox.
        temporary: True to remove the file once every task that reads it, among the tasks called so
            far, has succeeded. Tasks that are called after the removal must not read it. Only for a
            single file without a destination.

    Raises:
        DataError: The name is empty, is reserved, is a directory, or leads out of the sandbox (an
            absolute path, `..`); `save` leads out of `results_dir` or begins with `~`; the
            directories contain a pattern although `many` is True; or `temporary` is given with a
            destination or `many`.
        TypeError: `name` is neither a string nor a path, `save` is neither of these nor a bool, or
            `many` or `temporary` is not a bool.

    Attributes:
        filename: The base name.
        filepath: In a task, the absolute path to write to; `None` outside tasks.
        save: The destination; a path that ends in `/` is a directory. `None` if none was given,
            `False` if the file stays in the sandbox.
        many: True if the name is a pattern.
        temporary: True if the file is removed after the last task that reads it has succeeded.
    """

    save: str | Literal[False] | None
    many: bool
    temporary: bool
    _plain: bool = field(compare=False)  # the name was given without directories

    def __init__(
        self,
        name: str | os.PathLike[str],
        *,
        many: bool = False,
        save: str | os.PathLike[str] | bool | None = None,
        temporary: bool = False,
    ) -> None:
        given = _text("OutputFile", name)
        filename = _declared("OutputFile", given)
        for option, value in (("many", many), ("temporary", temporary)):
            if not isinstance(value, bool):
                raise TypeError(f"OutputFile: {option} must be True or False, got {value!r}")
        directories = given.removesuffix(filename)
        if many and PATTERN.search(directories):
            raise DataError(
                f"OutputFile({given!r}, many=True): the directory part is the destination and "
                "cannot contain a pattern; for files in subdirectories of the sandbox, use "
                "OutputDir(...)"
            )
        place = _place("OutputFile", directories or None if save is None else save)
        if temporary and (place or many):
            raise DataError(
                f"OutputFile({given!r}, temporary=True): a temporary file must be a single file "
                f"without a destination; use OutputFile({filename!r}, temporary=True)"
            )
        _set(
            self,
            filename=filename,
            filepath=None,
            _by_path=False,
            _producer=None,
            save=place,
            many=many,
            temporary=temporary,
            _plain="/" not in given,
        )

    def __repr__(self) -> str:
        many = ", many=True" if self.many else ""
        temporary = ", temporary=True" if self.temporary else ""
        return f"OutputFile({self.filename!r}{many}{_save_text(self.save)}{temporary})"


@dataclass(frozen=True, slots=True, init=False, repr=False)
class OutputDir(File):
    """Declared output directory, passed to a task, which must create it in its sandbox.

    As with `OutputFile`, a task that does not create the directory fails, and the directory is
    copied to its destination when the task is done. The copy replaces an existing directory of
    that name, including its content. Other programs see the old directory, then briefly no
    directory, then the complete new one.

    Args:
        name: The directory's name; a trailing `/` has no effect. Leading directories are the
            destination, relative to the engine's `results_dir`: the task writes `plots` for
            `results/plots/`.
        save: The parent of the saved directory, as a separate argument; created if it does not
            exist. A relative path starts at `results_dir` and must stay inside it. `True` stands
            for `results_dir` itself. With `False`, the directory stays in the sandbox.

    Raises:
        DataError: The name is empty, is reserved, or leads out of the sandbox (an absolute path,
            `.`, `..`); or `save` leads out of `results_dir` or begins with `~`.
        TypeError: `name` is neither a string nor a path, or `save` is neither of these nor a bool.

    Attributes:
        filename: The base name.
        filepath: In a task, the absolute path of the directory to create; `None` outside tasks.
        save: The parent of the saved directory, with a trailing `/`; `None` if none was given,
            `False` if the directory stays in the sandbox.
    """

    many: ClassVar[bool] = False
    temporary: ClassVar[bool] = False

    save: str | Literal[False] | None
    _plain: bool = field(compare=False)  # the name was given without directories

    def __init__(
        self, name: str | os.PathLike[str], *, save: str | os.PathLike[str] | bool | None = None
    ) -> None:
        given = _text("OutputDir", name)
        given = given.rstrip("/") or given
        filename = _declared("OutputDir", given)
        place = _place("OutputDir", given.removesuffix(filename) or None if save is None else save)
        if place and not place.endswith("/"):
            place = f"{place}/"
        _set(
            self,
            filename=filename,
            filepath=None,
            _by_path=False,
            _producer=None,
            save=place,
            _plain="/" not in given,
        )

    def __repr__(self) -> str:
        return f"OutputDir({self.filename!r}{_save_text(self.save)})"


Output: TypeAlias = OutputFile | OutputDir
"""A declared output of a task."""


class InputFiles(list[Path]):
    """Sorted paths of the files that a task receives for a directory or a pattern.

    For a directory that a dependency declared, these are the files in it, at any depth; for the
    pattern of an `OutputFile(..., many=True)`, those that match. They are paths in the task's
    sandbox, or the original paths for a function without a sandbox.

    `str()` returns the directory, or the files quoted for a shell: their names in commands, their
    paths in functions. As an item of a list command, the object stands for the directory or for one
    argument per file. `os.fspath` returns the directory's path, and raises `TypeError` for a
    pattern.

    Attributes:
        file: The `InputFile` that was passed, with its path in the task.
        directory: True for a directory, False for the files that match a pattern.
    """

    __slots__ = ("directory", "file")

    def __init__(self, file: InputFile, names: Iterable[str], *, directory: bool) -> None:
        """Create the list from file names, which are relative to the parent of the bound input."""
        assert file.filepath is not None
        parent = file.filepath.parent
        super().__init__(sorted(parent / name for name in names))
        self.file: InputFile = file
        self.directory: bool = directory

    def __str__(self) -> str:
        """Return the directory, or the files quoted for a shell; see `File.__str__`."""
        return str(self.file) if self.directory else shlex.join(self.words())

    def words(self) -> list[str]:
        """Return the arguments for a list command: the directory, or each of the files."""
        if self.directory:
            return [str(self.file)]
        assert self.file.filepath is not None
        directory, parent = os.path.dirname(self.file.filename), self.file.filepath.parent
        names = [os.path.join(directory, os.path.relpath(path, parent)) for path in self]
        return [
            str(_changed(self.file, filename=name, filepath=path))
            for name, path in zip(names, self, strict=True)
        ]

    def __fspath__(self) -> str:
        if not self.directory:
            raise TypeError(
                f"{self.file.filename!r} is a pattern that matched {len(self)} "
                "files: use the path of each"
            )
        return os.fspath(self.file)

    def __reduce__(self) -> tuple[Any, ...]:
        # The file is packed separately, because backends may bind it to another sandbox.
        sandbox = os.path.dirname(str(self.file.filepath))
        names = [os.path.relpath(path, sandbox) for path in self]
        return _unpacked, (self.file, names, self.directory)


def _unpacked(file: InputFile, names: list[str], directory: bool) -> InputFiles:
    return InputFiles(file, names, directory=directory)


@dataclass(frozen=True, slots=True)
class SavedFile:
    """A file or directory that a task wrote and that remains after the run.

    Attributes:
        path: The absolute path.
        task: The name of the task.
        uid: The uid of the task's future.
        intermediate: True if another task of the run has read the file.
    """

    path: Path
    task: str
    uid: str
    intermediate: bool = False


def is_data_url(text: str) -> bool:
    """Return True if a string is a URL that contains its data, such as `data:text/plain,...`."""
    return _DATA_URL.match(text) is not None


def without_secrets(url: str) -> str:
    """Return a URL without user, password, query, fragment or data, for messages."""
    data = _DATA_URL.match(url)
    if data is not None:
        return f"{data[0]}..."
    bare, query, _ = re.sub(r"//[^/?#]*@", "//", url).partition("#")[0].partition("?")
    return bare + ("?..." if query else "")


def _changed(file: AnyFile, **values: Any) -> AnyFile:
    """Return a copy of a file with some attributes replaced, without calling `__init__`."""
    copy = object.__new__(type(file))
    for name in type(file).__match_args__:
        object.__setattr__(copy, name, values[name] if name in values else getattr(file, name))
    return copy


def _set(file: File, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(file, name, value)


def _name_in_url(url: str) -> str:
    try:
        name = "" if is_data_url(url) else os.path.basename(unquote(urlsplit(url).path))
    except ValueError as error:
        raise DataError(f"InputFile({without_secrets(url)!r}): invalid URL: {error}") from None
    unusable = name in ("", ".", "..") or "\0" in name or name.startswith(RESERVED)
    return "downloaded_file" if unusable else _NO_NAME.sub("_", name)


def _leads_elsewhere(path: str) -> bool:
    """Return True if a path has a `..` after a link, so that its text leads to another file."""
    plain = os.path.abspath(path)
    return not (os.path.exists(plain) and os.path.samefile(plain, path))


def _text(kind: str, given: object) -> str:
    text = given if isinstance(given, str) else None
    if text is None and isinstance(given, os.PathLike):
        text = os.fspath(given)
    if not isinstance(text, str):
        raise TypeError(f"{kind} takes a string or a path, got {given!r}")
    if not text:
        raise DataError(f"{kind} takes a non-empty string or a path, got {text!r}")
    return text


def _save_text(save: str | Literal[False] | None) -> str:
    return "" if save is None else f", save={save!r}"


def _place(kind: str, save: object) -> str | Literal[False] | None:
    """Check the user's `save` argument, and convert it to the value of the `save` attribute."""
    if save is None or save is False:
        return save
    if save is True:
        return "./"
    text = _text(f"{kind}: save", save)
    _require_no_tilde(kind, text, "save=")
    if "\0" in text or (not os.path.isabs(text) and os.path.normpath(text).split("/")[0] == ".."):
        raise DataError(
            f"{kind}: save={text!r} is outside the engine's results_dir; use an "
            "absolute path, or set WorkflowEngine.create(results_dir=...)"
        )
    return text


def _require_no_tilde(kind: str, given: str, option: str = "") -> None:
    if given.split("/")[0] == "~":
        raise DataError(
            f"{kind}: '~' in {given!r} is not expanded; write {option}"
            f'f"{{Path.home()}}{given[1:]}"'
        )


def _declared(kind: str, given: str) -> str:
    """Return the base name of a declared output."""
    name = _base_name(kind, given)
    if name.startswith(RESERVED):
        raise DataError(
            f"{kind}: {name!r} cannot be declared: names that begin with "
            f"{RESERVED!r} are reserved for backends; choose another name"
        )
    return name


_FIXES = {
    "OutputFile": "is a directory; use the name of a file in it, or OutputDir('plots/')",
    "OutputDir": "has no name; use one such as OutputDir('plots/')",
}


def _base_name(kind: str, given: str) -> str:
    """Return the base name of a file in a sandbox, from a relative path that the user gave."""
    *directories, name = given.split("/")
    if os.path.isabs(given) or ".." in directories or name == ".." or "\0" in given:
        cure = "use a plain file name such as 'result.txt'"
        if os.path.isabs(given) and name not in ("", ".", ".."):
            place = given.removesuffix(name)
            cure = f"to save the output under this path, use {kind}({name!r}, save={place!r})"
        raise DataError(f"{kind}({given!r}): a task must write into its sandbox; {cure}")
    if name in ("", "."):
        raise DataError(f"{kind}({given!r}) {_FIXES[kind]}")
    return name


def leads_into(value: object, sandbox: str | None) -> bool:
    """Return True if a result is a path into a sandbox, or a collection that contains one."""
    if sandbox is None:
        return False
    try:
        if isinstance(value, Mapping):
            value = tuple(value.values())
        if isinstance(value, list | tuple | set | frozenset):
            return any(_is_path_into(item, sandbox) for item in value)
        return _is_path_into(value, sandbox)
    except BaseException:  # any error raised by the result's own code
        return False


def _is_path_into(value: object, sandbox: str) -> bool:
    if isinstance(value, File):
        value = value.filepath
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        return False
    return value.rstrip("\n") == sandbox or value.startswith(sandbox + os.sep)
