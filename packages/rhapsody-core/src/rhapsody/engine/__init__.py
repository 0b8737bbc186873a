"""The workflow engine: a graph of tasks, run on backends, on one event loop."""

from rhapsody.engine.arguments import literal
from rhapsody.engine.blocks import wait
from rhapsody.engine.engine import WorkflowEngine, run
from rhapsody.engine.task_function import TaskFunction
from rhapsody.plugins.specs import Stats, Summary

__all__ = ["Stats", "Summary", "TaskFunction", "WorkflowEngine", "literal", "run", "wait"]
