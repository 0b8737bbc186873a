"""Dashboard: the report of a run in a browser while the run is in progress.

`process` starts and ends the server, which is a separate process, and `server` is that process.
"""

from __future__ import annotations
