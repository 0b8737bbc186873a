"""Commands on a RAPTOR worker, without RADICAL-Pilot's channels."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from rhapsody.data import OUTPUT_FILES
from rhapsody_radical import translate
from rhapsody_radical.functions import as_text
from tests._support.machine import alive
from tests.radical import stand_ins
from tests.radical.test_raptor import CORES, LIMIT, call, cancel, exists, worker

__all__ = ["worker"]

pytestmark = pytest.mark.timeout(60)


class Site:
    """Directory with the sandboxes of commands, and with the script that starts their process."""

    def __init__(self, path: Path, *first: str) -> None:
        self._path = path
        restore = path / "restore.sh"
        restore.write_text("export RESTORED='of the program'\n")
        self._script = path / "commands.sh"
        self._script.write_text(translate.commands_script(str(restore), first))

    def order(self, number: int, command: Any, **more: Any) -> tuple[str, str, dict[str, str]]:
        """Describe a command: a text for a shell, or a list."""
        words = {"executable": command} if isinstance(command, str) else {
            "executable": command[0], "arguments": command[1:]
        }  # fmt: skip
        sandbox = str(self.sandbox(number))
        task = stand_ins.task(**words, sandbox=sandbox, **{**more, "uid": str(number)})
        pilot = stand_ins.pilot(sandbox=str(self._path))
        _, order = translate.describe_command(task, pilot, str(self._script))
        return str(number), as_text(order), {"script": order["script"]}

    def sandbox(self, number: int) -> Path:
        return self._path / f"sandbox.{number}"

    def output(self, number: int) -> list[str]:
        return [(self.sandbox(number) / name).read_text() for name in OUTPUT_FILES]

    def send(self, worker: Any, *commands: Any) -> None:
        """Send a group of commands; their uids are their numbers."""
        orders = [self.order(number, command) for number, command in enumerate(commands)]
        submit(worker, *orders)


def submit(worker: Any, *orders: Any) -> None:
    words = {"function": json.dumps(orders), "metadata": {"rhapsody": "calls"}}
    worker._request_cb([{"uid": "group", "description": words}])


def replies(worker: Any) -> list[Any]:
    """Return the exit codes of commands in order, or their errors, or `None` if canceled."""
    found: dict[int, Any] = {}
    for uid, text, error, cancelled in worker.results.get(timeout=LIMIT):
        code = error if text is None else json.loads(text).get("exit_code")
        found[int(uid)] = None if cancelled else code
    return [found[number] for number in sorted(found)]


def test_commands_have_the_exit_codes_of_a_shell(worker: Any, tmp_path: Path) -> None:
    site = Site(tmp_path)
    (tmp_path / "plain").write_text("")
    site.send(
        worker, "exit 3", ["true"], "kill -9 $$", ["no-such-command"], [str(tmp_path / "plain")]
    )
    assert replies(worker) == [3, 0, 137, 127, 126]
    assert "no-such-command" in site.output(3)[1]
    assert "plain" in site.output(4)[1]


def test_commands_receive_their_environment_input_and_directory(
    worker: Any, tmp_path: Path
) -> None:
    site = Site(tmp_path, "export FIRST=1 # a comment")
    (tmp_path / "there").mkdir()
    text = 'cat; pwd; echo "$RESTORED $FIRST $OWN $RP_TASK_ID $OMP_NUM_THREADS" >&2'
    more = {"cwd": str(tmp_path / "there"), "environment": {"OWN": "$a `b`"}, "stdin": "given\n"}
    one = site.order(0, text, **more, task_backend_specific_kwargs={"cores_per_rank": 2})
    two = site.order(1, ["sh", "-c", "echo said"], capture=False)
    submit(worker, one, two)
    assert replies(worker) == [0, 0]
    out = f"given\n{tmp_path / 'there'}\n"
    assert site.output(0) == [out, "of the program 1 $a `b` 0 2\n"]
    assert not (site.sandbox(1) / OUTPUT_FILES[0]).exists()


def test_no_more_commands_run_than_there_are_cores(worker: Any, tmp_path: Path) -> None:
    gate, marks = tmp_path / "gate", [tmp_path / f"mark.{number}" for number in range(6)]
    hold = f"until [ -e {gate} ]; do sleep 0.02; done"
    Site(tmp_path).send(worker, *(f"touch {mark}; {hold}" for mark in marks))
    assert exists(*marks[:CORES])
    assert not any(mark.exists() for mark in marks[CORES:])
    gate.touch()
    assert replies(worker) == [0] * 6
    assert all(mark.exists() for mark in marks)


def test_running_and_waiting_commands_are_canceled(worker: Any, tmp_path: Path) -> None:
    site, pid = Site(tmp_path), tmp_path / "pid"
    loop = f"sleep 600 & echo $! > {pid}.new; mv {pid}.new {pid}; wait"
    site.send(worker, loop, *[["sleep", "600"]] * 3)
    assert exists(pid)
    cancel(worker, 0, 1, 2, 3)
    assert replies(worker) == [None] * 4
    assert not alive(int(pid.read_text()))


def test_commands_are_lost_with_their_process_and_later_ones_run(
    worker: Any, tmp_path: Path
) -> None:
    site, pid = Site(tmp_path), tmp_path / "pid"
    site.send(worker, f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600")
    assert exists(pid)
    os.kill(worker._commands._process.pid, signal.SIGKILL)
    (error,) = replies(worker)
    assert error.startswith("ChildProcessError")
    submit(worker, site.order(1, ["true"]))
    assert replies(worker) == [0]
    assert not alive(int(pid.read_text()))


def test_the_reason_is_reported_if_commands_cannot_start(worker: Any, tmp_path: Path) -> None:
    Site(tmp_path, "echo no module >&2; false").send(worker, ["true"], ["true"])
    errors = replies(worker)
    assert all("no module" in error and "pre_exec failed" in error for error in errors)


def test_commands_and_calls_may_be_sent_together(worker: Any, tmp_path: Path) -> None:
    site = Site(tmp_path)
    calls = [call(number, abs, -number) for number in range(40)]
    commands = [site.order(number, ["sh", "-c", f"exit {number}"]) for number in range(40, 44)]
    submit(worker, *calls[:20], *commands, *calls[20:])
    found = {uid: text for uid, text, _, _ in worker.results.get(timeout=LIMIT)}
    assert len(found) == 44
    assert [json.loads(found[str(number)])["exit_code"] for number in range(40, 44)] == [
        *range(40, 44)
    ]
    with worker._change:
        assert worker._change.wait_for(lambda: not any(worker._resources["cores"]), LIMIT)
