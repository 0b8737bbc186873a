"""The README's table of capabilities and the declared options, compared with the backend."""

from __future__ import annotations

import re
from typing import Any

from rhapsody_dask import DaskExecutionBackend
from rhapsody_dask.options import OWN_OPTIONS, RESERVED, _keywords
from rhapsody_dask.plugin import CLUSTER, OPTIONS
from tests._support.declared_options import check_options
from tests._support.pages import readme

DEPRECATED = {
    "diagnostics_port", "memory_pause_fraction", "memory_spill_fraction", "memory_target_fraction",
}  # fmt: skip
"""Keywords of Dask's classes that later versions have removed."""


def test_the_readme_lists_the_declared_capabilities() -> None:
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| ([^|]+) \|", readme("rhapsody-dask")))
    assert rows == {name: _in_words(value) for name, value in CLUSTER.as_dict().items()}


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else ", ".join(value) or "none"


def test_the_options_are_those_that_the_backend_and_dask_accept() -> None:
    keys = RESERVED.union(OWN_OPTIONS, *_keywords({"n_workers": 1}))
    objects = ("cluster", "client", "worker_class", "WorkerStateClass")
    check_options(OPTIONS, DaskExecutionBackend, keys - DEPRECATED, objects=objects)
