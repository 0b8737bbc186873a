"""First module that the fork server imports: detaches the server from the terminal.

The server and its workers are not in the terminal's foreground process group and ignore Ctrl-C, so
that the main program decides when they stop. This is a separate module, because its side effect
must not occur in the program.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

with suppress(OSError):
    os.setsid()
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
