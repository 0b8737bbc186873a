"""The names of radical.asyncflow, on Rhapsody's engine."""

from __future__ import annotations

from rhapsody import InputFile, LocalExecutionBackend, NoopExecutionBackend, OutputFile
from rhapsody_asyncflow import InferenceBackend, WorkflowEngine

__version__ = "0.6.0"
"""The version of radical.asyncflow with the same names."""

__all__ = [
    "InferenceBackend",
    "InputFile",
    "LocalExecutionBackend",
    "NoopExecutionBackend",
    "OutputFile",
    "WorkflowEngine",
]
