"""Functions on several ranks, without an MPI. Tests of backends run them with one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rhapsody import CapabilityError, TaskDescription
from rhapsody.sdk import call_spec, finish, pack, require_mpi4py, unpack

FAKE = """
class MPI:
    class COMM_WORLD:
        rank, size = 0, 1
        @classmethod
        def Dup(cls): return cls
        @staticmethod
        def gather(value): return [value, value]
        @staticmethod
        def Abort(code): raise SystemExit(code)
    Is_finalized = staticmethod(lambda: True)
    Get_library_version = staticmethod(lambda: "Fake MPI 1.0\\nmore")
"""
"""A module that looks like mpi4py's, for one process."""


def outcome(place: Path, module: str, ranks: int, function: Any) -> tuple[TaskDescription, Any]:
    """Run a function as a rank, with a file for mpi4py, and return its description and error."""
    (place / "mpi4py.py").write_text(module)
    call = {"function": function, "args": (4,), "kwargs": {}}
    description: Any = {"uid": "a", "name": "a task", **call}
    order = call_spec(description, modules=None)._replace(capture=False)
    (place / "call").write_bytes(pack(description, order))
    program = f"from rhapsody.sdk import run_rank; run_rank('call', 'result', {ranks})"
    subprocess.run([sys.executable, "-c", program], cwd=place, check=False, timeout=60)
    assert not list(place.glob("result.*"))
    return description, finish(description, unpack((place / "result").read_bytes()))


def test_the_value_is_a_list(tmp_path: Path) -> None:
    task, error = outcome(tmp_path, FAKE, 1, lambda number: {number})
    assert error is None
    assert task["return_value"] == [{4}, {4}]


def test_an_exception_names_its_rank(tmp_path: Path) -> None:
    _, error = outcome(tmp_path, FAKE, 1, lambda number: number / 0)
    assert type(error) is ZeroDivisionError
    assert "raised on rank 0 of 1" in error.__notes__


@pytest.mark.parametrize(
    ("module", "ranks", "reason"),
    [
        (FAKE, 3, r"COMM_WORLD has 1 ranks instead of 3.*mpi4py \(Fake MPI 1.0\)"),
        ("raise ImportError('no libmpi')", 3, "cannot be imported .no libmpi.: install it"),
    ],
    ids=["another size", "no library"],
)
def test_a_rank_without_its_mpi_says_so(
    tmp_path: Path, module: str, ranks: int, reason: str
) -> None:
    _, error = outcome(tmp_path, module, ranks, print)
    with pytest.raises(CapabilityError, match=reason):
        raise error


def test_mpi4py_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CapabilityError, match=r"'a task'.* pip install mpi4py"):
        require_mpi4py({"name": "a task"})  # type: ignore[typeddict-item]
