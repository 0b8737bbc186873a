"""Plugin that writes the record of a run: the engine option `record`.

`recorder` is the observer that writes the record while the run happens; `lines` defines the form of
each line, and `outputs` stores long outputs. `rhapsody.history` reads records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rhapsody.builtin.paths import checked_path
from rhapsody.fsutil import path_text
from rhapsody.plugins.specs import EngineOption, Outcome, StartedRun, hookimpl


def _checked(value: object) -> bool | Path:
    from rhapsody.history.outputs import outputs_path

    if isinstance(value, bool):
        return value
    text = path_text("record", value, "True, False or a path")
    return checked_path("record", text, also=outputs_path(text))


@hookimpl
def rhapsody_engine_options() -> Sequence[EngineOption]:
    """Declare the option `record`."""
    return [
        EngineOption(
            name="record",
            default=False,
            help="Record the run: `True` for the file `run.jsonl` in the run's directory, or the "
            "path of another file, which is replaced. The record lists calls, attempts, times, "
            "errors and used resources as JSON lines, and can be read during the run. Only its "
            "owner can read it. `rhapsody run` records every run.",
            check=_checked,
            is_path=True,
            in_runs=True,
        )
    ]


@hookimpl
def rhapsody_observers(engine_options: Mapping[str, Any]) -> Sequence[object] | None:
    """Add the recorder to an engine with the option."""
    record = engine_options["record"]
    if record is False or engine_options["dry_run"]:
        return None
    from rhapsody.builtin.record.recorder import RunRecorder

    return [RunRecorder(None if record is True else record)]


@hookimpl
def rhapsody_run_started(run: StartedRun) -> None:
    """Keep the records of this process open until the run ends."""
    if not run.dry_run:
        from rhapsody.builtin.record.recorder import hold_records

        hold_records()


@hookimpl
def rhapsody_run_ended(run: StartedRun, outcome: Outcome, exit_code: int) -> None:
    """End the records with the outcome of the run."""
    if not run.dry_run:
        from rhapsody.builtin.record.recorder import end_records

        end_records(outcome, exit_code)
