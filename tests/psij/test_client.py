"""The client's correction of the output of `squeue`."""

from __future__ import annotations

import subprocess
import sys

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
for job, status in _parse_queue(parse, 0, text).items():
    print(job, status.state.name, status.message)
try:
    _parse_queue(parse, 1, "no controller")
except RuntimeError as error:
    print("no controller" in str(error))
"""


def test_unknown_reasons_do_not_spoil_the_queue() -> None:
    # In a separate process, because PSI/J changes signal handlers and starts threads.
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "1 QUEUED None",
        "2 FAILED F RaisedSignal:9(Killed",
        "3 ACTIVE None",
        "True",
    ], done.stderr
