"""The script that counts calls to the file system per task."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import metadata

ROOT = Path(__file__).parents[3]
BEGIN = f'1 access("{metadata.BEGIN}", F_OK) = -1 ENOENT (No such file or directory)'
END = f'1 access("{metadata.END}", F_OK) = -1 ENOENT (No such file or directory)'


def counted(*lines: str) -> tuple[float, float]:
    """Count the calls of these lines, between marks, below the directory `/p`."""
    return metadata.count([BEGIN, *lines, END], "/p")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('1 mkdir("/p/a", 0700) = 0', (1, 0)),
        ('1 mkdir("/p/a", 0700 <unfinished ...>', (1, 0)),
        ("1 <... mkdir resumed>) = 0", (0, 0)),
        ('1 mkdir("/pq/a", 0700) = 0', (0, 0)),
        ('1 renameat(AT_FDCWD</p>, "a", AT_FDCWD</p>, "b") = 0', (1, 0)),
        ('1 openat(AT_FDCWD</p>, "a", O_RDWR|O_CREAT|O_CLOEXEC, 0600) = 3</p/a>', (1, 0)),
        ('1 openat(AT_FDCWD</p>, "/p", O_RDWR|O_TMPFILE, 0600) = 3</p/#7 (deleted)>', (0, 1)),
        ('1 openat(AT_FDCWD</p>, "/dev/null", O_RDWR) = 3</dev/null>', (0, 0)),
        ('1 newfstatat(3</p/#7 (deleted)>, "", {st_size=0}, AT_EMPTY_PATH) = 0', (0, 1)),
        ('1 newfstatat(AT_FDCWD</>, "p/a", {st_size=0}, 0) = 0', (0, 1)),
        ("1 getdents64(3</p>, 0x7f96cc000bd0 /* 4 entries */, 32768) = 128", (0, 1)),
        ('1 chdir("/p/a") = 0', (0, 1)),
        ('1 statx(AT_FDCWD</p>, "a\\"b", 0, STATX_ALL, {}) = 0', (0, 1)),
        ("1 +++ exited with 0 +++", (0, 0)),
    ],
)
def test_calls_below_the_directory_are_changes_or_others(
    line: str, expected: tuple[int, int]
) -> None:
    assert counted(line) == expected


def test_calls_before_and_after_the_marks_are_not_counted() -> None:
    lines = ['1 mkdir("/p/a", 0700) = 0', BEGIN, '1 rmdir("/p/a") = 0', END, '1 chdir("/p") = 0']
    assert metadata.count(lines, "/p") == (1, 0)


def test_calls_of_commands_and_of_their_children_are_not_counted() -> None:
    assert counted(
        '2 chdir("/p/a") = 0',  # before the command: ours
        '2 execve("/bin/sh", ["sh"], 0x7f96d97c9920 /* 41 vars */) = 0',
        '2 mkdir("/p/a/b", 0700) = 0',
        "2 clone(child_stack=NULL, flags=SIGCHLD <unfinished ...>",
        "2 <... clone resumed>, child_tidptr=0x7f) = 3",
        '3 mkdir("/p/a/c", 0700) = 0',
        "1 clone3({flags=CLONE_VM}, 88) = 4",  # a thread
        '4 rmdir("/p/a") = 0',
    ) == (1, 1)


def test_a_helper_that_runs_before_the_tasks_is_counted() -> None:
    helper = '2 execve("/usr/bin/python3", ["python3"], 0x7f96d97c9920 /* 41 vars */) = 0'
    assert metadata.count([helper, BEGIN, '2 mkdir("/p/a", 0700) = 0', END], "/p") == (1, 0)


def traceable() -> bool:
    """Return True if strace is installed and may trace processes."""
    if shutil.which("strace") is None:
        return False
    return not subprocess.run([*metadata.STRACE, "true"], capture_output=True).returncode


@pytest.mark.one_python
def test_functions_without_files_do_not_call_the_file_system() -> None:
    if not traceable():
        pytest.skip("strace cannot be used here")
    changes, others = metadata.calls(ROOT, "function", 30)
    assert changes == 0
    assert others <= 0.1  # one of the engine's threads may make a call meanwhile
