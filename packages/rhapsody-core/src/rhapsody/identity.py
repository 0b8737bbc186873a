"""Identities of calls and of their attempts, and the only code that writes and reads their texts.

Descriptions, reports and records contain the texts, because they are sent to other processes. Code
that needs the engine, the call or the number of an attempt reads the text with `AttemptId.of`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Prefix = Literal["task", "block"]


def label(number: int | str, kind: Prefix = "task") -> str:
    """Return the text of a call within its engine, the uid of its future: `task.000001`."""
    return f"{kind}.{str(number).zfill(6)}"  # faster than a format specification


def attempt_text(engine: str, number: int, attempt: int) -> str:
    """Return the text of an attempt, its uid: `<engine uid>.task.000001.1`."""
    return f"{engine}.task.{str(number).zfill(6)}.{attempt}"


def without_engine(text: str) -> str:
    """Return the text of a call without its engine: `task.000001` for `main.task.000001`."""
    return ".".join(text.split(".")[-2:])


def call_text(uid: str) -> str:
    """Return the text of a call, the same for all of its attempts, given the uid of an attempt.

    This takes a fraction of the time of `AttemptId.of`. The result is the text of its `task`.
    """
    return uid.rpartition(".")[0]


def split_label(label: str) -> tuple[str, str]:
    """Return the kind and the number in the text of a call: `("task", "000001")`."""
    kind, _, number = label.rpartition(".")
    return kind, number


class TaskId(NamedTuple):
    """Identity of the call of a task, the same for all of its attempts.

    Attributes:
        engine: The uid of the engine.
        number: The number of the call in the engine, starting at 1.
    """

    engine: str
    number: int

    @property
    def label(self) -> str:
        """The text within the engine, such as `task.000001`."""
        return label(self.number)

    def __str__(self) -> str:
        return f"{self.engine}.{self.label}"


class AttemptId(NamedTuple):
    """Identity of one attempt at a task, which backends receive as text in `uid`.

    Attributes:
        task: The identity of the call.
        number: The number of the attempt, starting at 1.
    """

    task: TaskId
    number: int

    @classmethod
    def of(cls, uid: str) -> AttemptId:
        """Return the identity of an attempt, given its uid.

        Raises:
            ValueError: The text is not the uid of an attempt.
        """
        try:
            engine, kind, number, attempt = uid.rsplit(".", 3)
            if kind == "task":
                return cls(TaskId(engine, int(number)), int(attempt))
        except ValueError:
            pass
        raise ValueError(f"expected a uid such as 'main.task.000001.1', got {uid!r}")

    def __str__(self) -> str:
        return attempt_text(*self.task, self.number)
