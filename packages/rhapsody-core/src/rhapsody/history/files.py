"""Files that commands write about a run: only their user can read them, as the record itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rhapsody.errors import RhapsodyError
from rhapsody.fsutil import as_path, open_directory, private_directory


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the path of a file or directory to create, which then replaces `path`.

    Only the user can read what the block creates. Nothing is written through a link that another
    user may have created at `path`. A pipe or device is not replaced. The block sets the umask of
    the process, so use it in commands, and not while other threads create files.

    Args:
        path: The path of the file or directory.

    Yields:
        The path to write, in a temporary directory next to `path`.

    Raises:
        RhapsodyError: The path is a link, or the file cannot be written.
    """
    if path.is_symlink():
        raise RhapsodyError(
            f"{path} is a link, and nothing is written through links; remove it, or choose another "
            "path with -o"
        )
    former = os.umask(0o077)
    try:
        if path.exists() and not path.is_file():
            file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                yield as_path(file, path)
            finally:
                os.close(file)
            return
        name = f".rhapsody-{os.urandom(4).hex()}"
        with (
            open_directory(path.parent) as parent,
            private_directory(name, parent) as private,
        ):
            yield as_path(private, path.with_name(name)) / path.name
            os.replace(path.name, path.name, src_dir_fd=private, dst_dir_fd=parent)
    except OSError as error:
        raise RhapsodyError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        os.umask(former)
