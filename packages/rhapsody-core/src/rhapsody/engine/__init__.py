"""The workflow engine: a graph of tasks, run on backends, on one event loop.

The groups of modules, from the lowest layer to the highest: `configuration`, `functions`, `core`,
`calls`, `attempts`, `runtime`, `engine`. The docstring of each group lists its modules in the same
order. A module imports only from those before it; a test checks this.

The engine runs on the loop. Other threads belong to backends and to synchronous blocks; a task call
or a cancellation on such a thread is passed to the loop, and the thread waits for the outcome.
Nothing polls: an idle engine has no timers, and the loop sleeps.

The order of steps and hooks is fixed. Once the dependencies of a task have finished, the engine
calls the hooks that prepare tasks and select a backend, finds the input files, looks up the result,
links the files and submits the task. Once the task has succeeded, the engine processes its output
files, calls the hook that records results, sets the future and notifies the dependents.

A new step that follows a successful task belongs in `core/results.py` if it must happen before the
result is recorded, or in `attempts/stage_out.py` if, in addition, it must not block the loop. In
all other cases, write an observer plugin.
"""

from rhapsody.engine.calls.blocks import wait
from rhapsody.engine.engine import WorkflowEngine, run
from rhapsody.engine.functions.arguments import literal
from rhapsody.engine.functions.task_function import TaskFunction
from rhapsody.plugins.specs import Stats, Summary

__all__ = ["Stats", "Summary", "TaskFunction", "WorkflowEngine", "literal", "run", "wait"]
