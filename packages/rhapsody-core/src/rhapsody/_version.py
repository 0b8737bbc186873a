"""Version of the installed `rhapsody-core`; imported on first access to `__version__`."""

from __future__ import annotations

from importlib_metadata import version

__version__ = version("rhapsody-core")
