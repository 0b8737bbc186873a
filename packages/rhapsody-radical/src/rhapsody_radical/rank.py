"""Program of each rank of a function task, which RADICAL-Pilot's launcher starts."""

from __future__ import annotations

import sys

from rhapsody.sdk import run_rank
from rhapsody_radical.call import RaptorRunner

if __name__ == "__main__":
    run_rank(sys.argv[1], sys.argv[2], int(sys.argv[3]), RaptorRunner())
