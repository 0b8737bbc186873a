"""A log of words in a file, to which functions in several processes append."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def log_in(directory: Path) -> Callable[[str], None]:
    """Return a function that appends a word and the process id to a log."""

    def log(word: str) -> None:
        with open(directory / "log.txt", "a") as file:
            file.write(f"{word} {os.getpid()}\n")

    return log


def logged(directory: Path, word: str) -> list[str]:
    """Return the ids of the processes that have logged a word, in order."""
    path = directory / "log.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split()[1] for line in lines if line.split()[0] == word]
