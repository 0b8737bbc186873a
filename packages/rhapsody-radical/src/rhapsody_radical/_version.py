"""The version of this distribution, read from its metadata when asked for."""

from __future__ import annotations

from importlib.metadata import version

__version__: str = version("rhapsody-radical")
