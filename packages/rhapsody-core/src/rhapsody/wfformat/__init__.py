"""WfCommons instances: recorded workflows, read from their JSON files and written to them.

An instance says which tasks a workflow had, what each waited for, how long it took, and which
files it read and wrote. Nothing here runs one: that is `rhapsody replay`. The format is WfFormat
(https://github.com/wfcommons/WfFormat): versions 1.0 to 1.5 are read, 1.5 is written.
"""

from rhapsody.wfformat.instance import (
    Instance,
    RecordedFile,
    RecordedMachine,
    RecordedTask,
    parents_first,
)
from rhapsody.wfformat.reading import loads, read
from rhapsody.wfformat.values import InstanceError
from rhapsody.wfformat.writing import dumps, write

__all__ = [
    "Instance",
    "InstanceError",
    "RecordedFile",
    "RecordedMachine",
    "RecordedTask",
    "dumps",
    "loads",
    "parents_first",
    "read",
    "write",
]
