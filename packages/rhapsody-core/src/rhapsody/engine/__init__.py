"""The workflow engine: a graph of tasks, run on backends, on one event loop."""

from rhapsody.engine.arguments import literal
from rhapsody.engine.blocks import wait
from rhapsody.engine.observe import Stats, Summary
from rhapsody.engine.tasks import Task
from rhapsody.engine.workflow import WorkflowEngine

__all__ = ["Stats", "Summary", "Task", "WorkflowEngine", "literal", "wait"]
