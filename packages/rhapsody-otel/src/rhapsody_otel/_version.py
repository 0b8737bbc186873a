"""Version of this distribution. A test compares it with `pyproject.toml`."""

from __future__ import annotations

__all__ = ["__version__"]

__version__: str = "0.1.0"
