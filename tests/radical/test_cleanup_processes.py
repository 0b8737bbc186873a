"""Finding and ending of a session's processes, identified by their environment."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody_radical import cleanup
from rhapsody_radical.cleanup import MARK, PILOT, end, find
from rhapsody_radical.cleanup import TASK as BY_TASK
from rhapsody_radical.connection import variables
from tests._support.machine import alive, gone
from tests.radical.marked import MINE, children, running

TASK: dict[str, Any] = {"RP_SESSION_ID": MINE, "RP_PILOT_ID": "pilot.0000"}


def pids(session: str) -> set[int]:
    return {process.pid for process in find(session)}


def test_processes_are_identified_only_by_their_environment(tmp_path: Path) -> None:
    with (
        running(RADICAL_RHAPSODY=MINE) as component,
        running(RP_SESSION_ID=MINE) as task,
        running(RADICAL_RHAPSODY=f"{MINE}.2"),
        running(RADICAL_RHAPSODY=f"not.{MINE}", cwd=tmp_path),
        running(OTHER=f"RADICAL_RHAPSODY={MINE}"),
    ):
        assert pids(MINE) == {component.pid, task.pid}
        assert pids(".*") == set()


def test_a_process_is_found_immediately_after_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a new process may be empty for a while."""
    with running(RADICAL_RHAPSODY=MINE) as component:
        assert pids(MINE) == {component.pid}
        reads, read = [b"", b""], cleanup._proc

        def late(pid: int, name: str) -> bytes:
            if name == "environ":
                return reads.pop(0) if reads else read(pid, name)
            fields = [b"1"] * 48 + [b"0" if reads else b"1"]
            return b"7 (sleep) " + b" ".join(fields)

        monkeypatch.setattr(psutil, "pids", lambda: [component.pid])
        monkeypatch.setattr(cleanup, "_proc", late)
        assert pids(MINE) == {component.pid}
        assert reads == []


def test_this_process_and_ended_processes_are_not_found() -> None:
    program = (
        "import psutil, subprocess\nfrom rhapsody_radical.cleanup import find\n"
        "ended, goes_on = (subprocess.Popen(['sleep', s]) for s in ('0', '600'))\n"
        "while psutil.Process(ended.pid).status() != 'zombie': pass\n"
        f"print([each.pid for each in find({MINE!r})] == [goes_on.pid])\n"
        "goes_on.kill()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), MARK: MINE},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts processes of other users")
def test_processes_of_other_users_are_not_examined() -> None:
    with running(RADICAL_RHAPSODY=MINE, user=65534) as theirs:
        assert end(MINE) == 0
        assert theirs.poll() is None


def test_ending_a_session_ends_all_of_its_processes(tmp_path: Path) -> None:
    script = "setsid sleep 600 & nohup sleep 600 & (setsid sleep 600 &); exec sleep 600"
    with (
        running("sh", "-c", script, RADICAL_RHAPSODY=MINE) as first,
        running(cwd=tmp_path) as bystander,
    ):
        children(first.pid, 2)
        until = time.monotonic() + 30
        while len(find(MINE)) < 4:
            assert time.monotonic() < until
        found = pids(MINE)
        assert end(MINE) == 4
        assert gone(found)
        assert bystander.poll() is None


def test_a_terminated_script_releases_its_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    script = f"trap 'rm {lock}' EXIT; touch {lock}; while :; do sleep 0.1; done"
    with running("bash", "-c", script, RADICAL_RHAPSODY=MINE) as shell:
        until = time.monotonic() + 30
        while not lock.exists():
            assert time.monotonic() < until
        end(MINE)
        assert gone([shell.pid])
        assert not lock.exists()


def test_processes_that_are_ending_are_awaited() -> None:
    with running("sleep", "0.3", RADICAL_RHAPSODY=MINE):
        assert end(MINE, patience=30.0) == 0


def test_processes_started_during_the_cleanup_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(RADICAL_RHAPSODY=MINE) as first:
        kill = cleanup._kill
        started: list[int] = []

        def late(found: list[psutil.Process]) -> None:
            kill(found)
            if not started:
                started.append(subprocess.Popen(["sleep", "600"], env={MARK: MINE}).pid)

        monkeypatch.setattr(cleanup, "_kill", late)
        assert end(MINE) == 2
        assert gone([first.pid, *started])
        os.waitpid(started[0], 0)


def test_a_process_with_a_reused_id_is_not_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running() as later:
        former = psutil.Process(later.pid)
        monkeypatch.setattr(former, "_ident", (later.pid, 0.0))
        cleanup._kill([former])
        assert later.poll() is None


def test_the_processes_of_each_task_are_found() -> None:
    with (
        running(RP_TASK_ID="task.1", **TASK) as first,
        running(RP_TASK_ID="task.1", **TASK) as second,
        running(RP_TASK_ID="task.2", **TASK),
        running(RP_TASK_ID="task.1", RP_SESSION_ID="theirs"),
        running(RP_TASK_ID="task.10", **TASK),
    ):
        found = find(MINE, BY_TASK, ["task.1", "task.3"])
    assert {each.pid for each in found} == {first.pid, second.pid}


def test_ending_a_task_does_not_end_other_tasks() -> None:
    script = "setsid sleep 600 & sleep 600 & exec sleep 600"
    with (
        running("sh", "-c", script, RP_TASK_ID="task.1", **TASK) as cancelled,
        running(RP_TASK_ID="task.2", **TASK) as other,
        running(RADICAL_RHAPSODY=MINE) as component,
    ):
        started = [each.pid for each in children(cancelled.pid, 2)]
        assert end(MINE, BY_TASK, ["task.1"]) == 3
        assert gone([cancelled.pid, *started])
        assert alive(other.pid)
        assert alive(component.pid)


def test_a_process_group_is_ended_with_its_leader() -> None:
    script = "env -i sleep 600 & exec sleep 600"
    with running("sh", "-c", script, RP_TASK_ID="task.1", **TASK) as cancelled:
        (nameless,) = children(cancelled.pid, 1)
        assert end(MINE, BY_TASK, ["task.1"]) == 1
        assert gone([cancelled.pid, nameless.pid])


def test_a_process_group_with_another_leader_is_not_ended() -> None:
    script = f"RP_SESSION_ID={MINE} RP_TASK_ID=task.1 sleep 600 & exec sleep 600"
    with running("sh", "-c", script) as leader:
        (one,) = children(leader.pid, 1)
        assert end(MINE, BY_TASK, ["task.1"]) == 1
        assert gone([one.pid])
        assert alive(leader.pid)


def test_ending_a_pilot_does_not_end_other_pilots() -> None:
    with (
        running(RADICAL_RHAPSODY=MINE, RP_PILOT_ID="pilot.0000") as agent,
        running(RP_TASK_ID="task.1", **TASK) as task,
        running(RADICAL_RHAPSODY=MINE, RP_PILOT_ID="pilot.0001") as other,
        running(RADICAL_RHAPSODY="theirs", RP_PILOT_ID="pilot.0000") as theirs,
        running(RADICAL_RHAPSODY=MINE) as component,
    ):
        assert end(MINE, PILOT, ["pilot.0000"]) == 2
        assert gone([agent.pid, task.pid])
        assert all(alive(each.pid) for each in (other, theirs, component))


def test_a_process_that_sets_its_title_is_still_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("setproctitle")
    program = (
        "import setproctitle, sys; setproctitle.setproctitle('rp.agent.0'); "
        "print(flush=True); sys.stdin.read()"
    )
    monkeypatch.setenv("RP_PILOT_ID", "the.outer.one")
    given = variables(tmp_path, MINE, verbose=False)
    assert "RP_PILOT_ID" not in given
    with subprocess.Popen(
        [sys.executable, "-c", program, "x" * 50],
        env=given,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert pids(MINE) == {process.pid}
        process.communicate()
