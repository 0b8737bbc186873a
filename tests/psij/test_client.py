"""The client: its correction of the output of `squeue`, and the end of its input."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from rhapsody_psij.job import read_outcome
from tests._support.machine import alive

PROGRAM = """
from psij import JobExecutor
from psij.executors.batch.batch_scheduler_executor import BatchSchedulerExecutorConfig
from rhapsody_psij.client import _parse_queue

config = BatchSchedulerExecutorConfig()
parse = JobExecutor.get_instance("slurm", config=config).parse_status_output
text = '''ARRAY_JOB_ID        ST                  REASON
1                   PD                  ReqNodeNotAvail, Unav
2                   F                   RaisedSignal:9(Killed
3                   R                   None
'''
for job, status in _parse_queue(parse, 0, text, waiting=print).items():
    print(job, status.state.name, status.message)
print(_parse_queue(parse, 1, "slurm_load_jobs error: Invalid job id specified", waiting=print))
try:
    _parse_queue(parse, 1, "no controller", waiting=print)
except RuntimeError as error:
    print("no controller" in str(error))
"""

SETTINGS = {"executor": "local", "poll_interval": 1.0, "detach": False}


def client(directory: Path) -> subprocess.Popen[str]:
    """Start a client."""
    words = [sys.executable, "-m", "rhapsody_psij.client", str(directory)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_unknown_reasons_do_not_spoil_the_queue() -> None:
    # In a separate process, because PSI/J changes signal handlers and starts threads.
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "{'1': 'ReqNodeNotAvail, Unav'}",
        "1 QUEUED None",
        "2 FAILED F RaisedSignal:9(Killed",
        "3 ACTIVE None",
        "{}",
        "True",
    ], done.stderr


def test_jobs_end_if_the_program_is_killed_while_it_sends_a_message(tmp_path: Path) -> None:
    pid, mask = tmp_path / "pid", tmp_path / "mask"
    pid.touch()
    spec: dict[str, Any] = {
        "id": "1",
        "executable": "/bin/sh",
        "arguments": ["-c", f"grep SigIgn /proc/$$/status >{mask}; echo $$ >{pid}; sleep 300"],
        "resources": {},
        "attributes": {"duration": None},
        "options": [],
    }
    lines = [SETTINGS, {"submit": [spec]}]
    with client(tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("".join(json.dumps(line) + "\n" for line in lines))
        process.stdin.flush()
        assert process.stdout.readline() == "{}\n"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # if all run in one job
            process.send_signal(number)
        while '"ACTIVE"' not in (line := process.stdout.readline()):
            assert line, "the client has ended"
        process.stdin.write('{"submit": [{"id":')
        process.stdin.close()
        assert process.wait(60) == 0
    text = pid.read_text()
    assert not text or not alive(int(text))
    assert not text or not int(mask.read_text().split()[1], 16) & 1 << signal.SIGTERM - 1


def test_a_job_that_is_started_again_repeats_nothing(tmp_path: Path) -> None:
    log, reports, order = tmp_path / "log", tmp_path / "reports", tmp_path / "1"
    reports.mkdir()
    command = {"executable": f"echo line >>{log}", "arguments": None, "sandbox": str(tmp_path)}
    entry = {"task": {"uid": "a", "name": "a", **command}, "call": None, "cores": 1}
    order.write_bytes(pickle.dumps({"reports": str(reports), "tasks": [entry]}))
    job = [sys.executable, "-m", "rhapsody_psij.job", str(order)]
    subprocess.run(job, check=True)
    (reports / "a.ended").rename(tmp_path / "a.ended")  # the program has read it
    _, _, outcome = (tmp_path / "a.ended").read_bytes().partition(b"\n")
    assert read_outcome("ended", outcome)["exit_code"] == 0
    subprocess.run(job, check=True)
    assert log.read_text() == "line\n"


def test_a_canceled_job_that_its_batch_system_overlooks_ends(tmp_path: Path) -> None:
    order = tmp_path / "1"
    order.write_bytes(b"")
    with client(tmp_path) as process:
        said, _ = process.communicate(json.dumps(SETTINGS) + '\n{"cancel": ["1"]}\n', 60)
    assert said == "{}\n"
    assert not order.exists()
    job = [sys.executable, "-m", "rhapsody_psij.job", str(order)]
    assert subprocess.run(job, check=True, capture_output=True).stderr == b""
