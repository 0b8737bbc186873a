"""Records of runs for tests: written line by line, or by a program in another process."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shlex
import socket
import struct
import subprocess
import sys
import termios
from contextlib import AbstractContextManager, chdir, suppress
from pathlib import Path
from typing import Any

from rhapsody.sdk.runs import RECORD
from tests._support.programs import PATIENCE

BEGIN = 1_700_000_000.0
"""The start of each written run."""


def call(number: int, name: str, *, after: float = 0.0, **more: Any) -> dict[str, Any]:
    """The line for a call, this many seconds after the start of the run."""
    uid = f"task.{number:06d}"
    text = f"{name}({number})"
    return {
        "event": "call", "uid": uid, "name": name, "call": text, "time": BEGIN + after, **more
    }  # fmt: skip


def end(
    number: int, submitted: float | None, started: float | None, ended: float, **more: Any
) -> dict[str, Any]:
    """The line for the end of an attempt; the times are seconds after the start of the run."""
    line = {
        "event": "end", "uid": f"task.{number:06d}", "state": "DONE", "backend": "local",
        "worker": "worker-1", "ended": BEGIN + ended,
    }  # fmt: skip
    times = {"submitted": submitted, "started": started}
    known = {name: BEGIN + when for name, when in times.items() if when is not None}
    return line | known | more


def start(number: int, after: float, **more: Any) -> dict[str, Any]:
    """The line for an attempt that runs."""
    return {
        "event": "start", "uid": f"task.{number:06d}", "backend": "local", "worker": "worker-1",
        "submitted": BEGIN + after, "started": BEGIN + after, **more,
    }  # fmt: skip


def submit(*numbers: int, after: float = 0.0) -> dict[str, Any]:
    """The line for tasks that were submitted and do not run."""
    uids = [f"task.{number:06d}" for number in numbers]
    return {"event": "submit", "backend": "local", "time": BEGIN + after, "uids": uids}


def finish(after: float, outcome: str = "done", **stats: int) -> list[dict[str, Any]]:
    """The last lines of a run that has ended."""
    when = {"time": BEGIN + after, "outcome": outcome, "stats": stats}
    return [
        {"event": "engine_end", "uid": "engine.1", "seconds": after, **when},
        {"event": "run_end", "backends": ["local"], **when},
    ]


def many(count: int) -> list[dict[str, Any]]:
    """The lines for tasks on 200 workers, with two dependencies each."""
    lines = []
    for number in range(1, count + 1):
        before = [f"task.{each:06d}" for each in (number - 200, number - 199) if each > 0]
        began = number // 200 * 1.25
        lines.append(call(number, f"stage_{number // 2000}", dependencies=before))
        lines.append(end(number, began, began, began + 1.2, worker=f"worker-{number % 200}"))
    return lines


class Records(AbstractContextManager["Records"]):
    """Directory with recorded runs. As a context manager, it is the current directory meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.base = path / ".rhapsody"
        self._there = chdir(path)

    def __enter__(self) -> Records:
        self._there.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._there.__exit__(None, None, None)

    def write(self, name: str, *lines: dict[str, Any] | str, tail: str = "", **run: Any) -> Path:
        """Write a record.

        Args:
            name: The name of the run's directory.
            lines: The lines after those for the run and its engine. Text is written as it is.
            tail: The incomplete last line.
            run: Other keys of the first line.
        """
        first = {
            "event": "run", "format": 1, "program": str(self.path / "align.py"), "pid": 1,
            "host": socket.gethostname(), "started": BEGIN,
            "command": ["python", "bin/rhapsody", "run", "align.py"], "cwd": str(self.path),
        }  # fmt: skip
        engine = {
            "event": "engine", "uid": "engine.1", "time": BEGIN,
            "backends": [{"name": "local", "cores": 2}],
        }  # fmt: skip
        texts = [
            line if isinstance(line, str) else json.dumps(line)
            for line in (first | run, engine, *lines)
        ]
        directory = self.base / name
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / RECORD
        path.write_text("".join(f"{text}\n" for text in texts) + tail)
        return path

    def write_unreadable(self) -> None:
        """Write `bad.jsonl`, which is not a record, and `future.jsonl` in a newer format."""
        (self.path / "bad.jsonl").write_text("nonsense\n")
        (self.path / "future.jsonl").write_text('{"event":"run","format":99}\n')


def started(program: str, directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `rhapsody run` in a separate process group, with the text of a program."""
    (directory / "wf.py").write_text(program)
    return subprocess.Popen(
        [sys.executable, "-m", "rhapsody", "run", "-q", "wf.py", *arguments],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def first_byte(*arguments: str) -> tuple[str, str]:
    """The first byte of a command's output, and its errors and exit code after the pipe closed."""
    command = shlex.join([sys.executable, "-m", "rhapsody", *arguments])
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -c 1; echo ${{PIPESTATUS[0]}} >&2"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return done.stdout, done.stderr


def on_terminal(*arguments: str) -> str:
    """The output of a successful command on a terminal of 80 columns, in the current directory."""
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "rhapsody", *arguments]
    with subprocess.Popen(command, stdin=terminal, stdout=terminal) as process:
        os.close(terminal)
        text = b""
        with suppress(OSError):  # the process has ended
            while found := os.read(ours, 65536):
                text += found
    os.close(ours)
    assert process.returncode == 0
    return text.decode()
