"""Plugin that shows the progress of a run and its summary: the engine option `progress`.

`observer` follows the tasks of an engine, `display` draws the live table, and `account` composes
the summary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rhapsody.plugins.specs import EngineOption, StartedRun, hookimpl

if TYPE_CHECKING:
    from rhapsody.builtin.progress.observer import Progress

_waiting: list[Progress] | None = None
"""Observers whose summaries are printed at the end of `rhapsody run`; `None` to print each summary
when its engine ends."""


def _checked(value: object) -> bool | Literal["lines"]:
    if isinstance(value, bool) or value == "lines":
        return value
    raise TypeError(f'progress must be True, False or "lines", got {value!r}')


@hookimpl
def rhapsody_engine_options() -> Sequence[EngineOption]:
    """Declare the option `progress`."""
    return [
        EngineOption(
            name="progress",
            default=False,
            help="Show progress on standard error, and a summary at the end. Progress is a live "
            "table on a terminal or in a notebook, and a line every ten seconds elsewhere or with "
            '`"lines"`. The output of a task appears above the table when the task ends; with '
            "lines, functions print immediately.",
            check=_checked,
            in_runs=True,
            instead_of_flag="it is shown by default; use -q to hide it, or -v for lines instead of "
            "a table",
        )
    ]


@hookimpl
def rhapsody_observers(engine_options: Mapping[str, Any]) -> Sequence[object] | None:
    """Add progress to an engine with the option."""
    shown = engine_options["progress"]
    if not shown:
        return None
    from rhapsody.builtin.progress.observer import Progress

    progress = Progress(lines=shown == "lines", account=_waiting is None)
    if _waiting is not None:
        _waiting.append(progress)
    return [progress]


@hookimpl
def rhapsody_run_started(run: StartedRun) -> None:
    """Print summaries after the traceback of the program, which comes after the engine's end."""
    global _waiting
    _waiting = [] if run.calls_function else None


@hookimpl(tryfirst=True)
def rhapsody_run_ended() -> None:
    """Print the summaries."""
    global _waiting
    progress, _waiting = _waiting, None
    for each in progress or ():
        each.print_account()
