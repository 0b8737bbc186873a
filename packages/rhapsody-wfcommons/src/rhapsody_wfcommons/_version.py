"""This distribution's version. A test holds it and `pyproject.toml` together."""

from __future__ import annotations

__all__ = ["__version__"]

__version__: str = "0.1.0"
