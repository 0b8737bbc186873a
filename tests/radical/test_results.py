"""Output and errors of tasks that have ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhapsody.backends.execution.radical_pilot import RadicalExecutionBackend
from rhapsody.sdk import OUTPUT_FILES
from rhapsody_radical import results
from rhapsody_radical.functions import completed
from rhapsody_radical.pilots import PilotTask
from rhapsody_radical.results import error_of


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("", ""),
        ("\n", "\n"),
        ("own\nsrun: error: node1: task 0: Exited with exit code 3\n", "own\n"),
        ("srun: error: node1: tasks 0-2,4: Killed\nsrun: Terminating StepId=5.0", ""),
        (
            "a\n/p/t.1.exec.sh: line 64:  4262 Killed      /bin/sh -c 'x'\n"
            "srun: error: n: task 0: Killed\n",
            "a\n",
        ),
        ("srun: error: n: task 0: Killed\nown", "srun: error: n: task 0: Killed\nown"),
        ("srun: error: Unable to create step", "srun: error: Unable to create step"),
    ],
)
def test_messages_of_launchers_are_removed_from_the_standard_error(
    text: str, left: str, tmp_path: Path
) -> None:
    (tmp_path / OUTPUT_FILES[0]).touch()
    (tmp_path / OUTPUT_FILES[1]).write_text(text)
    pilot = RadicalExecutionBackend().pilots[0]
    job = PilotTask(completed("a", {"executable": "true", "sandbox": str(tmp_path)}, None), pilot)
    results.collect_output(job)
    assert job.task["stderr"] == left


def test_errors_of_radical_pilot_are_added_to_the_standard_error() -> None:
    task = completed("task.000001", {"executable": "true", "stderr": "said\n"}, None)
    error = error_of(task, "RuntimeError('no launcher')", "no launcher")
    assert "no launcher" in str(error)
    assert task["stderr"] == "said\nRuntimeError('no launcher')"
