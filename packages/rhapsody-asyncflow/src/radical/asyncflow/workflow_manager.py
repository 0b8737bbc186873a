"""The engine, under its module's name in radical.asyncflow."""

from __future__ import annotations

from rhapsody_asyncflow.engine import WorkflowEngine

TASK = "task"
BLOCK = "block"
FUNCTION = "function"
EXECUTABLE = "executable"
PROMPT = "prompt"

__all__ = ["BLOCK", "EXECUTABLE", "FUNCTION", "PROMPT", "TASK", "WorkflowEngine"]
