"""Version of this distribution, read from its installed metadata."""

from __future__ import annotations

from importlib.metadata import version

__version__: str = version("rhapsody-radical")
