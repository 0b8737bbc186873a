"""`python -m rhapsody`, the same as the command `rhapsody`."""

import sys

from rhapsody_guard.command import main

if __name__ == "__main__":
    sys.exit(main())
