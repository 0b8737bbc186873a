"""Records of runs: what ran, when, where, and with which outcome.

`recorder` is an observer that writes the record of a run while it happens, `lines` defines the form
of each line, `reader` reads records, also during the run, and `selection` finds runs and tasks by
the names that users type. docs/reference/run-record.md describes the format.
"""

from __future__ import annotations

FORMAT: int = 1
"""Version of the format, increased by changes after which older readers would be wrong."""
