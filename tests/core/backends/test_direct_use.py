"""A backend driven without an engine: short descriptions, and batches with mistakes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from rhapsody.backends.base import ManagedBackend
from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.backends.noop import NoopExecutionBackend
from rhapsody.errors import BackendError
from tests._support.direct import Direct
from tests._support.small_backend import SmallBackend

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


@pytest_asyncio.fixture(params=["noop", "thread", "process", "small"])
async def direct(request: pytest.FixtureRequest) -> AsyncIterator[Direct]:
    backend: ManagedBackend
    if request.param == "noop":
        backend = NoopExecutionBackend()
    elif request.param == "small":
        backend = SmallBackend()
    else:
        backend = LocalExecutionBackend(request.param)
    async with backend:
        yield Direct(backend)


def says(direct: Direct, value: Any) -> Any:
    return "Dummy Output" if direct.backend.name == "noop" else value


async def test_a_function_needs_a_uid_and_no_more(direct: Direct) -> None:
    async def later(x: int = 1) -> int:
        return x

    plain, with_args, coroutine = await direct.run(
        {"uid": "a", "function": int},
        {"uid": "b", "function": max, "args": [3, 4], "kwargs": None},
        {"uid": "c", "function": later, "kwargs": {"x": 5}},
    )
    ends = [plain, with_args, coroutine]
    assert [state for state, _ in ends] == ["DONE"] * 3
    assert [task["return_value"] for _, task in ends] == [says(direct, v) for v in (0, 4, 5)]
    assert plain[1]["name"] == "a"


async def test_an_executable_needs_a_uid_and_no_more(direct: Direct, tmp_path: Any) -> None:
    direct.backend.session.path = str(tmp_path)
    if direct.backend.name == "small":
        pytest.skip("makes no sandbox of its own")
    shell, words = await direct.run(
        {"uid": "a", "executable": "echo hi"},
        {"uid": "b", "executable": "/bin/echo", "arguments": ["x y"]},
    )
    assert (shell[0], shell[1]["stdout"]) == ("DONE", says(direct, "hi\n"))
    assert (words[0], words[1]["stdout"]) == ("DONE", says(direct, "x y\n"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"uid": "bad"}, "has no 'function'"),
        ({"uid": "bad", "executable": ["echo", "hi"]}, "'arguments'"),
        ({"uid": "bad", "function": "print"}, "must be callable"),
        ({"function": int}, "uid"),
        ({"uid": 7, "function": int}, "uid"),
    ],
)
async def test_a_description_that_makes_no_sense_fails_alone(
    direct: Direct, wrong: dict[str, Any], said: str
) -> None:
    await direct.backend.submit_tasks([])
    before, bad, after = {"uid": "a", "function": int}, wrong, {"uid": "z", "function": int}
    await direct.backend.submit_tasks([before, bad, after])  # type: ignore[list-item]
    await direct.run({"uid": "last", "function": int})
    state, task = direct.ends[wrong["uid"]]
    assert state == "FAILED"
    assert said in str(task["exception"])
    async with direct._changed:
        await direct._changed.wait_for(lambda: {"a", "z"} <= direct.ends.keys())
    assert direct.ends["a"][0] == direct.ends["z"][0] == "DONE"


async def test_two_tasks_of_one_uid_in_a_batch_are_refused_before_either_runs(
    direct: Direct,
) -> None:
    with pytest.raises(BackendError, match="'same'"):
        await direct.run(
            {"uid": "other", "function": int},
            {"uid": "same", "function": int},
            {"uid": "same", "function": int},
        )
    await direct.run({"uid": "same", "function": int})
    assert list(direct.ends) == ["same"]
    assert direct.doubled == []


@pytest.mark.parametrize("batch", [[3], {"uid": "a", "function": int}, [{"uid": "a"}, None]])
async def test_what_is_no_list_of_dicts_is_refused(direct: Direct, batch: Any) -> None:
    with pytest.raises(TypeError, match="list of dicts"):
        await direct.backend.submit_tasks(batch)
    assert direct.ends == {}


@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_resources_may_be_a_dict(executor: str) -> None:
    async with LocalExecutionBackend(executor, resources={"cores": 2}) as backend:
        direct = Direct(backend)
        fits, wrong = await direct.run(
            {"uid": "a", "function": int, "resources": {"cores": 2}},
            {"uid": "b", "function": int, "resources": {"core": 2}},
        )
    assert (fits[0], wrong[0]) == ("DONE", "FAILED")
    assert "'core'" in str(wrong[1]["exception"])


async def test_a_backend_may_put_its_systems_session_in_the_place_of_ours() -> None:
    class Own(SmallBackend):
        async def start(self) -> None:
            self.session = Theirs()  # type: ignore[assignment]

    class Theirs:
        uid = "theirs"
        path = "/"

    backend = await Own()
    await backend.shutdown()
    assert str(backend.state()) == "shutdown"
