"""Claims of calls on the paths that they write, and on those that they read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rhapsody import OutputDir, OutputFile
from rhapsody.data import Output
from rhapsody.errors import DataError
from rhapsody.identity import attempt_text
from rhapsody.staging.claims import PathClaims


def task(call: int, attempt: int = 1) -> Any:
    """Return the part of an attempt's description that claims need."""
    return {"uid": attempt_text("main", call, attempt), "name": f"call{call}"}


@pytest.mark.parametrize("inside_first", [True, False])
def test_a_path_and_a_path_inside_it_are_not_claimed_by_two_calls(
    tmp_path: Path, inside_first: bool
) -> None:
    claims = PathClaims(tmp_path)
    outputs = [OutputFile("x", save="new/x"), OutputFile("new", save="new")]
    first, second = outputs if inside_first else reversed(outputs)
    claims.claim(task(1), [first])
    with pytest.raises(DataError, match=r"task 'call1' \(task.000001\) is also about to write"):
        claims.claim(task(2), [second])
    claims.release(task(1))
    claims.claim(task(2), [second])


def test_a_refused_call_has_claimed_nothing(tmp_path: Path) -> None:
    claims = PathClaims(tmp_path)
    claims.claim(task(1), [OutputFile("b", save="b")])
    with pytest.raises(DataError, match="'b'"):
        claims.claim(task(2), [OutputFile("a", save="a"), OutputFile("b", save="b")])
    claims.claim(task(3), [OutputFile("a", save="a")])


OUTPUTS: list[tuple[Output, str]] = [
    *((OutputFile("x", save=path), path) for path in ("a/x", "a/y", "d/x", "n", "n/x", "n/y/z")),
    (OutputFile("x", save="link/x"), "a/x"),
    (OutputFile("y", save="a/"), "a/y"),
    (OutputDir("n", save="."), "n"),
    (OutputDir("y", save="n"), "n/y"),
    (OutputDir("deep", save="a"), "a/deep"),
    (OutputFile("*.t", many=True, save="a/"), "a/*"),
    (OutputFile("*.t", many=True, save="n/"), "n/*"),
    (OutputFile("*.u", many=True, save="d/"), "d/*"),
]
"""Outputs with their destinations, in which a star is different for each call."""

FILES = ["a/x", "link/x", "a/deep/z", "d/x", "n/x", "n/y/z"]
CALLS = st.integers(min_value=1, max_value=5)


def overlap(one: str, other: str) -> bool:
    """Return True if two paths are equal, or one is inside the other."""
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


class Model(RuleBasedStateMachine):
    """A model without indexes: each question is answered by comparing all pairs of paths."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.root = Path(self.directory.name).resolve()
        for name in ("a", "d"):
            (self.root / name).mkdir()
        (self.root / "link").symlink_to("a")
        self.claims = PathClaims(self.root)
        self.claimed: dict[int, set[str]] = {}
        self.attempts: dict[int, int] = {}
        self.read: set[str] = set()
        self.written: set[str] = set()

    def teardown(self) -> None:
        """Remove the directory."""
        self.directory.cleanup()

    def others(self, call: int) -> Iterator[str]:
        """The paths that other calls have claimed."""
        return (path for each, paths in self.claimed.items() if each != call for path in paths)

    def may_claim(self, call: int, path: str, directory: bool) -> bool:
        """Return True if a call may claim a path."""
        read = path in self.read or (
            directory and any(each.startswith(f"{path}/") for each in self.read)
        )
        return not read and not any(overlap(path, other) for other in self.others(call))

    @rule(call=CALLS, chosen=st.lists(st.sampled_from(OUTPUTS), min_size=1, max_size=2))
    def claim(self, call: int, chosen: list[tuple[Output, str]]) -> None:
        """Start an attempt of a call that has ended or was never called; it may be refused."""
        if call in self.claimed:
            return
        paths = [(path.replace("*", f"*{call}"), output) for output, path in chosen]
        apart = len(paths) < 2 or not overlap(paths[0][0], paths[1][0])
        apart = apart and len({output.filename for _, output in paths}) == len(paths)
        if not apart:
            return  # one call with one destination for two outputs is another error
        attempt = self.attempts[call] = self.attempts.get(call, 0) + 1
        allowed = all(self.may_claim(call, p, isinstance(o, OutputDir)) for p, o in paths)
        if allowed:
            self.claims.claim(task(call, attempt), [output for _, output in paths])
            self.claimed[call] = {path for path, _ in paths}
        else:
            with pytest.raises(DataError):
                self.claims.claim(task(call, attempt), [output for _, output in paths])
            self.claims.release(task(call, attempt))

    @rule(call=CALLS)
    def save(self, call: int) -> None:
        """A call that succeeded saves its files, and ends."""
        paths = {path for path in self.claimed.pop(call, ()) if "*" not in path}
        now = task(call, self.attempts.get(call, 1))
        self.claims.take(now, {self.root / path: os.path.basename(path) for path in paths})
        self.written |= paths
        self.claims.release(now)

    @rule(call=CALLS)
    def end(self, call: int) -> None:
        """A call fails or is canceled; a second end has no effect."""
        self.claimed.pop(call, None)
        self.claims.release(task(call, self.attempts.get(call, 1)))

    @rule(call=CALLS, file=st.sampled_from(FILES))
    def reads(self, call: int, file: str) -> None:
        """A call reads a file that no other call is about to write."""
        path = file.replace("link/", "a/")
        now = task(call, self.attempts.get(call, 1))
        if any(overlap(path, other) for other in self.others(call)):
            with pytest.raises(DataError):
                self.claims.reads(now, str(self.root / file))
            return
        self.claims.reads(now, str(self.root / file))
        above = {path, *(path[:end] for end in range(len(path)) if path[end] == "/")}
        if not above & self.written:
            self.read.add(path)

    @invariant()
    def what_was_written_is_known(self) -> None:
        """The registry knows the files that the run has saved."""
        for path in ("a/x", "n", "n/x", "n/y", "d/x"):
            assert self.claims.has_written(self.root / path) == (path in self.written)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
