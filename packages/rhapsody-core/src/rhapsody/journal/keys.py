"""The key of a task: the digest of all that its result depends on, as far as that can be known.

What backend runs it does not count, nor what it may use there, how long it may take and how often
it is tried.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rhapsody.journal.code import Ingredients, Program
from rhapsody.journal.values import SIZE

SURROUNDINGS: tuple[str, ...] = ("environment", "named_env", "container", "pre_exec", "pre_launch")
"""Settings in backends' own words that say what programs find around them: RADICAL-Pilot's, and
`container` of whoever has it."""


@dataclass(frozen=True, slots=True)
class Key:
    """What a task's result depends on.

    Attributes:
        digest: Of all of it.
        parts: The digests of all but what a function's code uses, by what people call them, as
            JSON.
        code: The digest of the function's code and all that it uses, see `Keys.codes`; `None` for
            a command, and for a task with a `version`.
        paths: The strings and paths in the arguments that may name files: each with the digest
            of its file, `None` where there is no file.
    """

    digest: bytes
    parts: str
    code: bytes | None
    paths: Mapping[str, bytes | None]


@dataclass(slots=True)
class Keys:
    """Makes keys of tasks.

    Args:
        program: What is the same for all functions of a run.

    Attributes:
        codes: What functions' code uses, as JSON, by its digest.
    """

    program: Program
    codes: dict[bytes, str] = field(default_factory=dict)
    _functions: dict[int, tuple[Any, bytes]] = field(default_factory=dict)

    def of(
        self,
        task: Mapping[str, Any],
        settings: Mapping[str, Any],
        inputs: Mapping[str, str | None],
    ) -> Key:
        """The key of a task.

        Args:
            task: Its description.
            settings: Its `version`.
            inputs: Where its input files are, by their names.

        Raises:
            NoDigestError: An argument has no digest, or an input file cannot be read.
        """
        found = Ingredients(self.program, task.get("sandbox") or "")
        parts = {"name": task["name"]}
        if task["function"] is None:
            self._command(task, found, parts)
        else:
            for number, value in enumerate(task["args"], 1):
                parts[f"argument {number}"] = found.value(value).hex()
            for name, value in task["kwargs"].items():
                parts[f"argument {name}"] = found.value(value).hex()
        version, code = settings.get("version"), None
        if version is not None:
            parts["version"] = str(version)
        elif task["function"] is not None:
            code = self._code(task["function"])
        for name, path in inputs.items():
            parts[f"input file {name}"] = self.program.content(name, path).hex()
        for name in ("environment", "cwd", "stdin"):
            if task.get(name):
                parts[name] = found.value(task[name]).hex()
        specific = task["task_backend_specific_kwargs"]
        for name in SURROUNDINGS if specific else ():
            if specific.get(name):
                parts[f"task_description {name}"] = found.value(specific[name]).hex()
        parts |= found.parts
        text = json.dumps(parts, sort_keys=True)
        made = hashlib.blake2b(code or b"", digest_size=SIZE)
        made.update(text.encode())
        return Key(made.digest(), text, code, found.paths)

    def _command(self, task: Mapping[str, Any], found: Ingredients, parts: dict[str, str]) -> None:
        """A command, in which the sandbox is told by its name there."""
        sandbox = task.get("sandbox") or "\0"
        words = [task.get("executable"), *task.get("arguments", ())]
        plain = [str(word).replace(sandbox, ".") for word in words]
        parts["command"] = found.value((plain, "arguments" in task)).hex()

    def is_current(self, key: Key) -> bool:
        """Whether the files that arguments name are as they were when the key was made."""
        return all(self.program.file(path) == digest for path, digest in key.paths.items())

    def _code(self, function: Any) -> bytes:
        """What a function's code uses, looked at once in a run."""
        known = self._functions.get(id(function))
        if known is None:
            found = Ingredients(self.program)
            found.function(function)
            text = json.dumps(found.parts, sort_keys=True).encode()
            digest = hashlib.blake2b(text, digest_size=SIZE).digest()
            known = self._functions[id(function)] = function, digest
            self.codes[digest] = json.dumps({"parts": found.parts, "lines": found.lines})
        return known[1]
