"""Where an input file comes from: a dependency, the disk or a URL."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from rhapsody.data import InputFile, without_secrets
from rhapsody.errors import DataError
from rhapsody.task import Outcome, TaskDescription


class Origin(NamedTuple):
    """Where an input comes from; exactly one is set."""

    producer: Outcome | None = None
    path: str | None = None
    url: str | None = None

    def __str__(self) -> str:
        if self.producer is not None:
            return f"the file that {self.producer.uid} wrote"
        return without_secrets(self.url) if self.url is not None else repr(self.path)


def origin_of(task: TaskDescription, file: InputFile, sources: Sequence[Outcome]) -> Origin:
    """Where a task's input comes from, of what it declares and what its dependencies wrote.

    Raises:
        DataError: There is none, or two of the dependencies wrote it.
    """
    name = file.filename
    if file.remote_url is not None:
        return Origin(url=file.remote_url)
    expected = str(file.expected_at)
    if not os.path.isabs(file.local_file or ""):
        producers = [source for source in sources if name in source.output_files]
        if len(producers) > 1:
            raise DataError(
                f"task {task['name']!r}: input file {name!r} is written by two of its "
                f"dependencies, {producers[0].uid} and {producers[1].uid}; rename one of the files"
            )
        if producers:
            return Origin(producer=producers[0])
    if os.path.exists(expected):
        return Origin(path=expected)
    raise DataError(
        f"task {task['name']!r}: missing input file {name!r}: none of its dependencies writes it, "
        f"and there is no file {expected!r}; pass the future of the task that writes it, or "
        "correct the path"
    )
