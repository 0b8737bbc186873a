"""Options of Dask's client and LocalCluster, and of the backend itself."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, WorkflowEngine
from rhapsody_dask import DaskExecutionBackend

ONE: dict[str, Any] = {"n_workers": 1, "threads": 1}


async def _pid(backend: DaskExecutionBackend, **settings: Any) -> int:
    async with WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task(**settings)
        def where() -> int:
            return os.getpid()

        return await where(task_description={"resources": {"FPGA": 1}})


@pytest.mark.asyncio
async def test_options_of_the_client_are_passed_on(cluster: Any) -> None:
    from distributed import default_client

    given = {
        "name": "mine",
        "set_as_default": True,
        "serializers": ["dask", "pickle"],
        "deserializers": ["dask", "pickle", "error"],
        "extensions": {},
    }
    async with asyncio.timeout(60):
        address = cluster.scheduler_address
        async with DaskExecutionBackend({"address": address, **given}) as backend:
            assert "-mine-" in backend.client.id
            assert default_client() is backend.client
            async with WorkflowEngine.create(backend=backend) as flow:
                assert await flow.function_task(os.getpid)() != os.getpid()
    with pytest.raises(ValueError, match="No client"):
        default_client()


@pytest.mark.asyncio
async def test_the_engine_uses_the_name_of_the_backend(cluster: Any) -> None:
    async with asyncio.timeout(60):
        backend = DaskExecutionBackend({"address": cluster.scheduler_address}, name="big")
        async with WorkflowEngine.create(backend=[LocalExecutionBackend(), backend]) as flow:
            future = flow.function_task(backend="big")(os.getpid)()
            assert await future != os.getpid()
            assert future.backend == "big"


@pytest.mark.asyncio
async def test_options_of_the_local_cluster_and_its_workers_are_passed_on() -> None:
    from distributed import Nanny

    given = {
        "resources": {"FPGA": 1},
        "worker_class": Nanny,
        "blocked_handlers": [],
        "ip": "127.0.0.1",
        "scheduler_sync_interval": 2,
        "lifetime_stagger": "1 s",
        "preload_nanny": [],
    }
    async with asyncio.timeout(60):
        backend = await DaskExecutionBackend({**ONE, **given})
        assert await _pid(backend, resources={"memory": "1 MiB"}) != os.getpid()


@pytest.mark.asyncio
async def test_workers_without_a_nanny_run_in_this_process() -> None:
    from distributed import Worker

    class Marked(Worker):
        def __init__(self, *args: Any, mark: str, resources: Any, **kwargs: Any) -> None:
            super().__init__(*args, resources={**resources, mark: 1}, **kwargs)

    given = {"worker_class": Marked, "mark": "FPGA"}
    async with asyncio.timeout(60):
        backend = await DaskExecutionBackend({**ONE, **given})
        assert await _pid(backend) == os.getpid()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"asynchronous": False}, "asynchronous client"),
        ({"loop": None}, "event loops"),
        ({"start": True}, "awaited"),
        ({"nthreads": 2}, "use threads_per_worker"),
        ({"dashboard": True}, "use dashboard_address"),
        ({"worker_class": "Nanny"}, "must be a class"),
        ({"blocked_handler": []}, "did you mean 'blocked_handlers'"),
        ({"lifetime_staggered": 1}, "did you mean 'lifetime_stagger'"),
        ({"worker_kwargs": {}}, "unknown key"),
        ({"cluster_class": 3}, "cluster_class must be a class or its path such as"),
        ({"cluster_class": "a.B", "cluster_kwargs": 3}, "cluster_kwargs must be a dict"),
    ],
)
def test_unsupported_options_are_rejected_with_a_reason(given: dict[str, Any], why: str) -> None:
    with pytest.raises(TypeError, match=why):
        DaskExecutionBackend(given)


@pytest.mark.parametrize(
    ("given", "error", "why"),
    [
        ({"gpus": -1}, ValueError, "gpus must be an integer of at least 0, got -1"),
        ({"gpus": "2"}, ValueError, "gpus must be"),
        ({"n_workers": True}, ValueError, "n_workers must be an integer"),
        ({"n_workers": "2"}, ValueError, "n_workers must be an integer"),
    ],
)
def test_invalid_numbers_are_reported_with_their_key(
    given: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        DaskExecutionBackend(given)


@pytest.mark.parametrize("key", ["cluster_kwargs", "adapt_kwargs"])
def test_keyword_arguments_of_a_class_need_the_class(key: str) -> None:
    for others in ({}, {"address": "tcp://127.0.0.1:1"}):
        with pytest.raises(ValueError, match=f"{key} needs cluster_class"):
            DaskExecutionBackend({key: {}, **others})


def test_options_of_a_new_cluster_are_rejected_for_an_existing_one() -> None:
    with pytest.raises(ValueError, match="blocked_handlers cannot be combined with address"):
        DaskExecutionBackend({"blocked_handlers": []}, address="tcp://h:1")
    with pytest.raises(ValueError, match="alias of host"):
        DaskExecutionBackend({"ip": "127.0.0.1", "host": "127.0.0.1"})


def test_conflicting_options_are_rejected() -> None:
    with pytest.raises(ValueError, match="address and scheduler_file cannot be combined"):
        DaskExecutionBackend({"scheduler_file": "s.json"}, address="tcp://h:1")
    with pytest.raises(ValueError, match="n_workers cannot be combined with address"):
        DaskExecutionBackend({"n_workers": 2}, address="tcp://h:1")
    with pytest.raises(ValueError, match="both in resources and as an argument"):
        DaskExecutionBackend({"address": "tcp://h:1"}, address="tcp://h:2")
    with pytest.raises(ValueError, match="put all TLS settings in security"):
        DaskExecutionBackend({"tls_ca_file": "x"}, security=True)


def test_unknown_options_are_rejected_with_a_list_of_valid_ones() -> None:
    with pytest.raises(
        TypeError, match=r"'n_worker'; accepted: adapt_kwargs, .*; did you mean 'n_workers'\?"
    ):
        DaskExecutionBackend({"n_worker": 2})
    with pytest.raises(TypeError, match="must be a dict"):
        DaskExecutionBackend(["n_workers"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        DaskExecutionBackend({"n_workers": 0})
