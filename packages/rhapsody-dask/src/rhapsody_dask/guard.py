"""Finds a main program that worker processes would run again, before they are started.

Dask starts its processes as Python's `multiprocessing` does: each imports the main
program. One that starts its workflow without `if __name__ == "__main__":` would do
so in every process, and none would become a worker.
"""

from __future__ import annotations

import ast
import sys
import threading
from pathlib import Path


def from_standard_input() -> bool:
    """Whether the main program has no file that worker processes could import."""
    return getattr(sys.modules.get("__main__"), "__file__", None) == "<stdin>"


def unguarded() -> str | None:
    """The path of the main program where what it does now, its copies would do, too."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if not isinstance(path, str):
        return None  # a notebook, a prompt or `python -c`: nothing is imported
    name = getattr(getattr(main, "__spec__", None), "name", "")
    if name == "__main__" or name.endswith(".__main__"):
        return None  # `python -m package`, `python directory`: not imported either
    line = _line(vars(main))
    if line is None:
        return None
    try:
        program = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):  # not there, or no source
        return None
    return None if _guarded(program, line) else path


def _line(namespace: dict[str, object]) -> int | None:
    """The line that the main program is at, `None` where it has been read to its end."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals is namespace:
            return frame.f_lineno
        frame = frame.f_back
    return None


def _guarded(program: ast.Module, line: int) -> bool:
    """Whether a line is under some condition, or comes after one that looks at `__name__`."""
    for node in ast.walk(program):
        if not isinstance(node, ast.If) or node.lineno > line:
            continue
        if line <= (node.end_lineno or line) or "__name__" in ast.unparse(node.test):
            return True
    return False
