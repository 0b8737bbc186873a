"""Main module of the processes that `multiprocessing` starts under `rhapsody run`.

With the start methods `spawn` and `forkserver`, a process receives the name of each function that
it calls. It imports a function of the script from the module under which `rhapsody run` has
imported the script. Such a process runs this module; no other module may import it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from types import ModuleType

from rhapsody.tracebacks import SCRIPT_MODULE

__all__ = ["ScriptFinder"]


class ScriptFinder(MetaPathFinder):
    """Finder of the script, whose path is in `sys.argv`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the script, or `None` for another module."""
        if fullname != SCRIPT_MODULE:
            return None
        file = sys.argv[0]
        return spec_from_file_location(fullname, file, loader=SourceFileLoader(fullname, file))


if __name__ == "__mp_main__":
    sys.meta_path.append(ScriptFinder())
