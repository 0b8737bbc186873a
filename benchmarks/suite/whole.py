"""Measures in which all contestants share a cluster or a pilot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator

Found = Iterator[tuple[str, str, list[float]]]
"""Contestants, columns and the values of all rounds."""

ROUNDS = 5
DASK, OURS = "by hand, as results come", "Rhapsody"
DASK_GATHER = "by hand, all results at once"
BY_HAND = "by hand"


def dask(smoke: bool) -> Found:
    """Yield the results of `benchmarks/dask.py`."""
    from distributed import LocalCluster

    from benchmarks import dask as work

    by_hand = dict.fromkeys((work.COMPLETED, work.CHAINED, work.FUTURES, work.SCATTER), DASK)
    names = {**by_hand, work.GATHER: DASK_GATHER, work.SCATTER_MAP: DASK_GATHER, work.OURS: OURS}
    names[work.PLAIN] = f"{OURS}, push_down=False"

    async def found(only: str) -> list[work.Comparison]:
        sizes = work.Sizes(smoke, 1, ROUNDS)
        async with contextlib.aclosing(work.compare(cluster, sizes, only)) as comparisons:
            return [each async for each in comparisons]

    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        for only in ("fan", "chain", "tree", "shared"):
            for each in asyncio.run(found(only)):
                for name, spent in each.spent.items():
                    seconds = [1e3 * one.seconds for one in spent]
                    yield names.get(name, name), each.title, seconds


def radical(smoke: bool) -> Found:
    """Yield the results of `benchmarks/radical_pilot.py`."""
    from benchmarks import radical_pilot as work

    size, rounds = (10, 1) if smoke else (500, 7)
    with tempfile.TemporaryDirectory() as directory:
        report = asyncio.run(work.run(size, rounds, os.path.realpath(directory)))
    titles = {"executables": "executables", "functions": "functions", "short_calls": "1 ms calls"}
    for kind, title in titles.items():
        for label, seconds in report[kind]["rounds"].items():
            name = OURS if label == "ours" else BY_HAND
            yield name, f"{size} {title}", [1e3 / size * each for each in seconds]
