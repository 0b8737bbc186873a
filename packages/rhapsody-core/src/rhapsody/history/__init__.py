"""Records of runs: what ran, when, where, and with which outcome.

This is a public package for programs and plugins that read records. Its names are imported on first
use. A record is a file of JSON lines; docs/reference/run-record.md describes the format, whose
version is `FORMAT`.

`reader` reads records, also during the run, and `selection` finds runs and tasks by the names that
users type. `statistics`, `timeline` and `graph` derive figures from the content, `values` formats
them, and `files` creates the files of commands. `outputs` reads long outputs, and `written` lists
the records that this process writes. The writer is a plugin, `rhapsody.builtin.record`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rhapsody._exports import lazy

if TYPE_CHECKING:
    from rhapsody.history.files import new_file
    from rhapsody.history.graph import Graph, Node, graph_of
    from rhapsody.history.reader import (
        FORMAT,
        Attempt,
        BackendRecord,
        EngineRecord,
        ErrorRecord,
        FileRecord,
        RecordError,
        RecordReader,
        RunHistory,
        RunRecord,
        TaskRun,
        list_runs,
        no_collection,
        other_owner,
        read_run,
    )
    from rhapsody.history.selection import (
        SelectionError,
        open_run,
        runs_directory,
        select_run,
        select_task,
    )
    from rhapsody.history.statistics import (
        Durations,
        NameStatistics,
        Step,
        TimeShares,
        by_name,
        critical_path,
        failure_key,
        most_unused_memory,
        time_shares,
    )
    from rhapsody.history.timeline import (
        BLOCKS,
        Busy,
        Lane,
        Slice,
        lanes,
        last_time,
        origin,
        utilization,
    )
    from rhapsody.history.values import (
        RUN_HELP,
        call_of,
        clock,
        counts_from,
        counts_of,
        counts_text,
        duration,
        may_run,
        percent,
        program_of,
        resources_text,
        size,
        warnings_of,
        where,
    )
    from rhapsody.history.written import open_records

    __all__ = [
        "BLOCKS", "FORMAT", "RUN_HELP", "Attempt", "BackendRecord", "Busy", "Durations",
        "EngineRecord", "ErrorRecord", "FileRecord", "Graph", "Lane", "NameStatistics", "Node",
        "RecordError", "RecordReader", "RunHistory", "RunRecord", "SelectionError", "Slice", "Step",
        "TaskRun", "TimeShares", "by_name", "call_of", "clock", "counts_from", "counts_of",
        "counts_text", "critical_path", "duration", "failure_key", "graph_of", "lanes", "last_time",
        "list_runs", "may_run", "most_unused_memory", "new_file", "no_collection", "open_records",
        "open_run", "origin", "other_owner", "percent", "program_of", "read_run", "resources_text",
        "runs_directory", "select_run", "select_task", "size", "time_shares", "utilization",
        "warnings_of", "where",
    ]  # fmt: skip
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "rhapsody.history.files": "new_file",
            "rhapsody.history.graph": "Graph Node graph_of",
            "rhapsody.history.reader": (
                "FORMAT Attempt BackendRecord EngineRecord ErrorRecord FileRecord RecordError "
                "RecordReader RunHistory RunRecord TaskRun list_runs no_collection other_owner "
                "read_run"
            ),
            "rhapsody.history.selection": (
                "SelectionError open_run runs_directory select_run select_task"
            ),
            "rhapsody.history.statistics": (
                "Durations NameStatistics Step TimeShares by_name critical_path failure_key "
                "most_unused_memory time_shares"
            ),
            "rhapsody.history.timeline": (
                "BLOCKS Busy Lane Slice lanes last_time origin utilization"
            ),
            "rhapsody.history.values": (
                "RUN_HELP call_of clock counts_from counts_of counts_text duration may_run percent "
                "program_of resources_text size warnings_of where"
            ),
            "rhapsody.history.written": "open_records",
        },
    )
