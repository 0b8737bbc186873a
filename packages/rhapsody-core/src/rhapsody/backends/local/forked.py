"""Makes the fork server deaf to the terminal. Imported by it alone, before all else.

The server and its workers are no part of the terminal's foreground group, and
ignore Ctrl-C: it is for the program to say what happens to them.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

with suppress(OSError):
    os.setsid()
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
