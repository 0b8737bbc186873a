"""Where the files of an attempt are: what it reads, before it begins, and what it is to make."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rhapsody.staging.destinations import Target
from rhapsody.task import AttemptInfo


class InputPlace(NamedTuple):
    """Where an input is, for the backend that links it and for who wants to read it.

    Attributes:
        path: The file, `None` where it cannot be read from here.
        producer: Whose sandbox on the same backend it is linked from, `None` for a path.
        gone: What is left of the task of an earlier run that made it, where it is gone.
    """

    path: str | None
    producer: AttemptInfo | None = None
    gone: AttemptInfo | None = None


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where the inputs of an attempt are; nothing is linked yet.

    Attributes:
        sources: What is left of its dependencies, each once.
        places: The inputs by their names.
        coming: The inputs that are fetched into the cache, by their names.
        targets: Where its outputs are to be saved, by their names.
        reads: Files of other tasks that it reads: their sandboxes and names.
        matches: The files that match each pattern of its outputs, once it has ended well.
    """

    sources: tuple[AttemptInfo, ...]
    places: dict[str, InputPlace]
    coming: Mapping[str, asyncio.Task[str]]
    targets: dict[str, Target]
    reads: tuple[tuple[str, str], ...]
    matches: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def gone(self) -> list[AttemptInfo]:
        """What is left of tasks of an earlier run whose files it reads, and which are gone."""
        found = {place.gone.uid: place.gone for place in self.places.values() if place.gone}
        return list(found.values())

    def paths(self) -> dict[str, str | None]:
        """The inputs' paths by their names, `None` for what cannot be read from here."""
        return {name: place.path for name, place in self.places.items()}


def left_by(producer: AttemptInfo, name: str) -> str | None:
    """The path of a file in the sandbox of an ended task, `None` where it cannot be read here."""
    path = producer.path_of(name)
    return path if producer.sandbox and os.path.exists(path) else None


def as_source(producer: AttemptInfo) -> dict[str, Any]:
    """As much of a description as backends need to link from."""
    return {
        "uid": producer.uid,
        "sandbox": producer.sandbox,
        "metadata": {
            "dependencies": [],
            "input_files": [],
            "output_files": list(producer.output_files),
        },
    }
