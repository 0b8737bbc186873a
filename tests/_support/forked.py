"""The command `rhapsody`, run in processes that have its modules already.

Most of a short command's processor time is spent on imports. One process imports them once, and
forks a child for each command: a process of its own with its own directory, environment and
standard streams, which ends as Python ends.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

SERVER = """
import json, os, runpy, sys
from contextlib import suppress
import rhapsody.backends.local, rhapsody.backends.noop, rhapsody.backends.plugin
import rhapsody.cli.dry_run, rhapsody.engine.engine, rhapsody_guard.command
with suppress(ImportError):  # in a test, they are in another distribution
    import rhapsody.builtin.journal.plugin, rhapsody.builtin.journal.program
    import rhapsody.builtin.progress.observer

sys.path.remove("")
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()

os.chdir(request["cwd"])
os.environ.clear()
os.environ.update(request["environment"])
sys.path[:0] = request["path"]
for descriptor, name in enumerate((os.devnull, request["stdout"], request["stderr"])):
    opened = os.open(name, os.O_RDWR)
    os.dup2(opened, descriptor)
    os.close(opened)
sys.stdin = open(0, closefd=False)
if journal := sys.modules.get("rhapsody.builtin.journal.program"):  # how a new process starts
    initial = dict(os.environb)
    journal.PROCESS_START = journal.process_start_time()
    journal._initial_environment = lambda: initial
sys.argv = ["-m", *request["arguments"]]
runpy.run_module("rhapsody", run_name="__main__", alter_sys=True)
"""


@cache
def _server() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SERVER]
    # Without a buffer, in which the second line might come with the first, unseen by `select`.
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    atexit.register(server.communicate)  # the end of its input ends it
    return server


def rhapsody(
    *arguments: str,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = 60,
    safe_path: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `rhapsody` with these arguments, as `python -m rhapsody` does.

    Args:
        arguments: The arguments.
        cwd: The current directory.
        environment: All variables, by default those of this process. Directories in `PYTHONPATH`
            are on the module path.
        timeout: Seconds after which the command is killed.
        safe_path: Whether to keep the current directory off the module path, as `python -P` does.
    """
    variables = dict(os.environ if environment is None else environment)
    more = variables.get("PYTHONPATH", "")
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as directory:
        streams = [Path(directory, name) for name in ("stdout", "stderr")]
        for stream in streams:
            stream.touch()
        request = {
            "arguments": arguments,
            "cwd": str(cwd),
            "environment": variables,
            "path": [*([] if safe_path else [str(cwd)]), *filter(None, more.split(os.pathsep))],
            "stdout": str(streams[0]),
            "stderr": str(streams[1]),
        }
        server.stdin.write(f"{json.dumps(request)}\n".encode())
        child = int(server.stdout.readline())
        ended, _, _ = select.select([server.stdout], [], [], timeout)
        if not ended:
            os.kill(child, signal.SIGKILL)
        code = int(server.stdout.readline())
        out, err = (stream.read_text() for stream in streams)
    if not ended:
        raise subprocess.TimeoutExpired(["rhapsody", *arguments], timeout, out, err)
    return subprocess.CompletedProcess(["rhapsody", *arguments], code, out, err)
