"""Version of the plugin interface that the kit checks, and the check that core has this version.

`rhapsody_testing` imports this module first, because the other modules use the interface.
"""

from __future__ import annotations

from rhapsody.plugins import API_VERSION as CORE_VERSION

API_VERSION: int = 1
"""The version of the plugin interface that the kit checks.

It is also the first number of the version of rhapsody-testing.
"""

if CORE_VERSION != API_VERSION:
    _outdated = "rhapsody-testing" if API_VERSION < CORE_VERSION else "rhapsody-core"
    raise ImportError(
        f"rhapsody-testing checks version {API_VERSION} of the plugin interface, but rhapsody-core "
        f"has version {CORE_VERSION}: pip install --upgrade {_outdated}"
    )
