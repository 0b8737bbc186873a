"""Settings of the core tests."""

from __future__ import annotations

from hypothesis import settings

# How long one example takes says more about the machine than about the code: the time
# limits of the tests themselves are what finds a hang.
settings.register_profile("workspace", deadline=None, print_blob=True)
settings.load_profile("workspace")
