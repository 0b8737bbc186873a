"""The documented backend whose library starts processes conforms to the contract."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody_testing import BackendConformance
from tests._support.kits import run

pytestmark = pytest.mark.long

PAGE = Path(__file__).parents[2] / "docs/plugins/processes.md"
MODULE = "documented_pool"  # a module, because workers import the function that runs calls


@pytest.fixture(autouse=True, scope="module")
def _documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    directory = tmp_path_factory.mktemp("pool")
    blocks = (block.partition("\n```")[0] for block in PAGE.read_text().split("```python\n")[1:])
    (source,) = (block for block in blocks if "class PoolBackend(" in block)
    (directory / f"{MODULE}.py").write_text(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        yield
    sys.modules.pop(MODULE, None)


class OnDocumentedPool(BackendConformance):
    separate_processes = True
    names_workers = False
    time_limit = 60

    async def make_backend(self) -> Any:
        return importlib.import_module(MODULE).PoolBackend()


CHECKS = (
    "test_a_killed_worker_fails_only_its_task",
    "test_a_running_task_is_stopped[function]",
    "test_a_task_ends_with_a_killed_program[function]",
    "test_it_starts_and_stops[await]",
    "test_results_belong_to_their_tasks[function]",
    "test_shutdown_ends_work_in_flight",
    "test_shutdown_leaves_nothing_behind",
)


def test_its_workers_are_reused_replaced_killed_and_removed() -> None:
    outcome = run(OnDocumentedPool, *CHECKS)
    assert outcome.counts == {"passed": len(CHECKS)}, outcome.text
