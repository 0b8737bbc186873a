"""The workflow engine: a graph of tasks, run on backends, on one event loop.

Its modules, from the inside out; each imports only from those before it, which a test checks:
`states`, `background`, `arguments`, `settings`, `task_function`, `options`, `backend_handles`,
`record`, `error_messages`, `events`, `results`, `pushdown`, `scheduler`, `services`, `blocks`,
`submission`, `stage_out`, `memoization`, `task_builder`, `dispatch`, `runtime`, `signals`,
`engine`.

Everything happens on the loop. Other threads belong to backends and to synchronous blocks; a task
call or a cancellation on such a thread is passed to the loop and waits for the answer. Nothing
polls: an idle engine has no timers, and the loop sleeps.

The order of hooks is fixed: dependencies resolved, `prepare`, `select`, input files found,
`lookup`, files linked, submitted; then state events, result recorded and set, dependents. To add a
step after a successful task, extend `results` if it comes before the result is recorded,
`stage_out` if it must not block the loop, and an observer if it may come afterwards.
"""

from rhapsody.engine.arguments import literal
from rhapsody.engine.blocks import wait
from rhapsody.engine.engine import WorkflowEngine, run
from rhapsody.engine.task_function import TaskFunction
from rhapsody.plugins.specs import Stats, Summary

__all__ = ["Stats", "Summary", "TaskFunction", "WorkflowEngine", "literal", "run", "wait"]
