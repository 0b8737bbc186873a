"""The workflow engine: a graph of tasks, run on backends, on one event loop.

The modules of this package, from the lowest layer to the highest (a test checks that each
imports only from those before it):
`states`, `background`, `signals`, `arguments`, `settings`, `closures`, `loop_objects`,
`task_function`, `options`, `profiles`, `defaults`, `backend_handles`, `record`, `error_messages`,
`task_calls`, `events`, `results`, `pushdown`, `scheduler`, `services`, `blocks`, `sequences`,
`submission`, `stage_out`, `memoization`, `task_builder`, `dispatch`, `runtime`, `engine`.

The engine runs on the loop. Other threads belong to backends and to synchronous blocks; a task call
or a cancellation on such a thread is passed to the loop, and the thread waits for the outcome.
Nothing polls: an idle engine has no timers, and the loop sleeps.

The order of steps and hooks is fixed. Once the dependencies of a task have finished, the engine
calls the hooks that prepare tasks and select a backend, finds the input files, looks up the result,
links the files and submits the task. Once the task has succeeded, the engine processes its output
files, calls the hook that records results, sets the future and notifies the dependents.

A new step that follows a successful task belongs in `results` if it must happen before the result
is recorded, or in `stage_out` if, in addition, it must not block the loop. In all other cases,
write an observer plugin.
"""

from rhapsody.engine.arguments import literal
from rhapsody.engine.blocks import wait
from rhapsody.engine.engine import WorkflowEngine, run
from rhapsody.engine.task_function import TaskFunction
from rhapsody.plugins.specs import Stats, Summary

__all__ = ["Stats", "Summary", "TaskFunction", "WorkflowEngine", "literal", "run", "wait"]
