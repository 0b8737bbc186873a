"""The workflow engine: a graph of tasks, run on backends, on one event loop."""

from rhapsody.engine.arguments import literal
from rhapsody.engine.blocks import wait
from rhapsody.engine.program import run
from rhapsody.engine.tasks import Task
from rhapsody.engine.workflow import WorkflowEngine
from rhapsody.plugins.specs import Stats, Summary

__all__ = ["Stats", "Summary", "Task", "WorkflowEngine", "literal", "run", "wait"]
