"""The version of the installed `rhapsody-core`, read from its metadata when asked for."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("rhapsody-core")
