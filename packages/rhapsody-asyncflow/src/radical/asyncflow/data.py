"""Files, under their module's name in radical.asyncflow."""

from __future__ import annotations

from rhapsody import InputFile, OutputFile

__all__ = ["InputFile", "OutputFile"]
