"""Remote objects and functions in the client, on a real pilot."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from rhapsody.errors import BackendUnavailableError
from rhapsody_radical import RadicalExecutionBackend
from rhapsody_radical.remote import Remote
from rhapsody_testing import Driver
from tests.radical.pilots import backend

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(300)]


class Heard:
    """Callback that records its arguments and calls a function, as users' callbacks do.

    Args:
        then: Called with the object that the callback is about; what it returns is remembered.
    """

    def __init__(self, then: Any = lambda _: None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.returned: list[Any] = []
        self._then = then
        self._change = threading.Condition()

    def __call__(self, *args: Any) -> None:
        returned = self._then(args[0])
        with self._change:
            self.calls.append(args)
            self.returned.append(returned)
            self._change.notify_all()

    def states(self, uid: str) -> list[str]:
        """The states of one object, in order."""
        return [call[1] for call in self.calls if getattr(call[0], "uid", None) == uid]

    async def until(self, condition: Any) -> None:
        """Wait until a function returns true."""

        def wait() -> bool:
            with self._change:
                return bool(self._change.wait_for(condition, 90))

        assert await asyncio.to_thread(wait), self.calls


FINAL = ["DONE", "FAILED", "CANCELED"]
"""Tasks are waited for by name of their states: without, RADICAL-Pilot's `wait` never returns."""


def endless(place: Path) -> dict[str, Any]:
    """A command that does not end, for which `started` waits."""
    os.mkfifo(place / "started")
    return {"executable": "/bin/sh", "arguments": ["-c", f"echo > {place}/started; exec sleep 600"]}


async def started(place: Path) -> None:
    """Wait until the process of the command of `endless` runs.

    RADICAL-Pilot forgets a cancellation between the state AGENT_EXECUTING and the process.
    """
    await asyncio.to_thread((place / "started").read_text)


def submitted(made: RadicalExecutionBackend, **words: Any) -> Any:
    """Submit a task with RADICAL-Pilot's own interface."""
    return made.task_manager.submit_tasks(words)


# run_in_client.


async def test_a_function_receives_radical_pilots_objects(made: RadicalExecutionBackend) -> None:
    def look(objects: Any, word: str, *, ended: bool = False) -> Any:
        import radical.pilot

        own = isinstance(objects.session, radical.pilot.Session)
        same = (
            objects.task_manager is objects.task_managers[0]
            and objects.resource_pilot is objects.resource_pilots[0]
        )
        return own, same, word, os.getpid(), {"states": (objects.resource_pilot.state,)}

    own, same, word, pid, more = await made.run_in_client(look, "given")
    assert (own, same, word) == (True, True, "given")
    assert more == {"states": ("PMGR_ACTIVE",)}
    assert made._connection is not None
    assert pid == made._connection._process.pid


async def test_returned_objects_become_remote_objects(
    made: RadicalExecutionBackend,
) -> None:
    def look(objects: Any) -> Any:
        pilots = objects.resource_pilots
        return {"manager": objects.pilot_manager, "pilots": pilots, "set": set(pilots)}

    found = await made.run_in_client(look)
    first = made.resource_pilot
    assert found == {"manager": made.pilot_manager, "pilots": [first], "set": {first}}
    assert isinstance(found["manager"], Remote)
    assert found["pilots"][0] is made.resource_pilot


async def test_an_exception_keeps_its_type(made: RadicalExecutionBackend) -> None:
    class WrongError(Exception):
        def __init__(self, word: str) -> None:
            super().__init__(word)
            self.word = word

    def fail(_: Any) -> None:
        raise WrongError("as it happens")

    with pytest.raises(WrongError) as caught:
        await made.run_in_client(fail)
    assert caught.value.word == "as it happens"


async def test_stop_iteration_raises_runtime_error(made: RadicalExecutionBackend) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await made.run_in_client(lambda objects: next(iter(())))


async def test_an_exception_that_cannot_be_pickled_is_described(
    made: RadicalExecutionBackend,
) -> None:
    class WrongError(Exception):
        def __init__(self) -> None:
            super().__init__("with a lock")
            self.lock = threading.Lock()

    def fail(_: Any) -> None:
        raise WrongError

    with pytest.raises(RuntimeError, match="WrongError: with a lock"):
        await made.run_in_client(fail)


async def test_values_that_cannot_be_pickled_raise_type_error(
    made: RadicalExecutionBackend,
) -> None:
    with pytest.raises(TypeError, match=r"the result \(lock\) cannot be pickled"):
        await made.run_in_client(lambda _: threading.Lock())
    with pytest.raises(TypeError, match="cannot be pickled for RADICAL-Pilot's client"):
        await made.run_in_client(lambda *_: None, threading.Lock())
    assert await made.run_in_client(lambda _: "goes on") == "goes on"


async def test_a_function_that_exits_does_not_end_the_client(made: RadicalExecutionBackend) -> None:
    with pytest.raises(SystemExit):
        await made.run_in_client(lambda _: exec("raise SystemExit(3)"))
    assert await made.run_in_client(lambda _: "goes on") == "goes on"


async def test_functions_run_concurrently(made: RadicalExecutionBackend, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def wait(_: Any) -> str:
        while not mark.exists():
            threading.Event().wait(0.01)
        return "waited"

    waiting = asyncio.create_task(made.run_in_client(wait))
    assert await made.run_in_client(lambda _: mark.write_text("")) == 0
    assert await waiting == "waited"


async def test_run_in_client_raises_before_the_start() -> None:
    with pytest.raises(BackendUnavailableError):
        await backend().run_in_client(lambda _: None)


# Methods and attributes.


async def test_the_program_can_submit_await_and_cancel_its_own_tasks(
    made: RadicalExecutionBackend, tmp_path: Path
) -> None:
    task = submitted(made, executable="/bin/echo", arguments=["mine"])
    assert await asyncio.to_thread(task.wait, FINAL) == "DONE"
    assert (task.state, task.exit_code, task.stdout) == ("DONE", 0, "mine\n")
    assert made.task_manager.get_tasks(task.uid) is task
    assert task.uid in made.task_manager.list_tasks()
    assert task.description.executable == "/bin/echo"
    sleeping = submitted(made, **endless(tmp_path))
    await started(tmp_path)
    sleeping.cancel()
    assert await asyncio.to_thread(sleeping.wait, FINAL) == "CANCELED"
    assert sleeping.state == "CANCELED"


async def test_task_descriptions_of_radical_pilot_are_accepted(
    made: RadicalExecutionBackend,
) -> None:
    from rhapsody_radical.pilot import TaskDescription

    words = {"executable": "/bin/true"}
    tasks = made.task_manager.submit_tasks([TaskDescription(words), words])
    states = await asyncio.to_thread(made.task_manager.wait_tasks, [task.uid for task in tasks])
    assert states == ["DONE", "DONE"]


async def test_errors_of_methods_are_raised(made: RadicalExecutionBackend) -> None:
    with pytest.raises(ValueError, match=r"task\.none not known"):
        made.task_manager.get_tasks("task.none")


async def test_unsupported_attributes_and_arguments_raise_with_a_hint(
    made: RadicalExecutionBackend,
) -> None:
    with pytest.raises(AttributeError, match="run_in_client"):
        getattr(made.session, "nonsense")  # noqa: B009
    with pytest.raises(TypeError, match="run_in_client"):
        made.task_manager.submit_tasks(threading.Lock())
    assert {"submit_tasks", "uid", "register_callback"} <= set(dir(made.task_manager))


# Callbacks.


async def test_a_managers_callback_receives_each_state_and_may_call_methods(
    made: RadicalExecutionBackend, driver: Driver
) -> None:
    heard = Heard(lambda _: made.task_manager.list_pilots())
    made.task_manager.register_callback(heard)
    own = submitted(made, executable="/bin/true")
    task = driver.command("true")
    await driver.run_one(task)
    for uid in (own.uid, task["uid"]):
        await heard.until(lambda uid=uid: heard.states(uid)[-1:] == ["DONE"])
    assert len(heard.states(own.uid)) > 10
    assert "AGENT_EXECUTING" in heard.states(task["uid"])
    assert heard.returned[0] == ["pilot.0000"]
    assert isinstance(heard.calls[0][0], Remote)
    made.task_manager.unregister_callback(heard)
    count = len(heard.calls)
    after = submitted(made, executable="/bin/true")
    await asyncio.to_thread(after.wait, FINAL)
    assert heard.calls[count:] == []


async def test_a_callback_can_wait_for_another_task(made: RadicalExecutionBackend) -> None:
    def follow(task: Any) -> Any:
        if task.uid == first.uid and task.state == "DONE":
            return submitted(made, executable="/bin/true").wait(FINAL)
        return None

    heard = Heard(follow)
    first = made.task_manager.submit_tasks({"executable": "/bin/sleep", "arguments": ["1"]})
    made.task_manager.register_callback(heard)
    await heard.until(lambda: "DONE" in heard.returned)
    made.task_manager.unregister_callback()


async def test_a_tasks_callback_receives_its_states_and_the_users_data(
    made: RadicalExecutionBackend, tmp_path: Path
) -> None:
    data = {"a lock": threading.Lock()}  # it does not leave the program
    heard, other = Heard(), submitted(made, executable="/bin/true")
    task = submitted(made, **endless(tmp_path))
    task.register_callback(heard, cb_data=data)
    await started(tmp_path)
    task.cancel()
    await heard.until(lambda: heard.states(task.uid)[-1:] == ["CANCELED"])
    assert heard.states(other.uid) == []
    assert all(call[2] is data for call in heard.calls)
    assert heard.calls[0][0] is task


async def test_an_exception_in_a_callback_does_not_stop_the_others(
    made: RadicalExecutionBackend, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("in a callback")

    heard = Heard()
    made.task_manager.register_callback(fail)
    made.task_manager.register_callback(heard)
    task = submitted(made, executable="/bin/true")
    await heard.until(lambda: heard.states(task.uid)[-1:] == ["DONE"])
    made.task_manager.unregister_callback(fail)
    made.task_manager.unregister_callback(heard)
    assert "in a callback" in caplog.text


@pytest.mark.long  # it starts another pilot
async def test_callbacks_receive_the_states_of_the_programs_own_pilots(
    made: RadicalExecutionBackend,
) -> None:
    words = {"resource": "local.localhost", "cores": 1, "runtime": 5, "exit_on_error": False}
    all_of_them, one_of_them = Heard(), Heard()
    made.pilot_manager.register_callback(all_of_them, cb_data="data")
    pilot = made.pilot_manager.submit_pilots(words)
    assert pilot.uid == "pilot.0001"
    pilot.register_callback(one_of_them)
    # RADICAL-Pilot waits for ever for the end of one that it cancels before it is active.
    await all_of_them.until(lambda: "PMGR_ACTIVE" in all_of_them.states(pilot.uid))
    await asyncio.to_thread(pilot.cancel)
    assert one_of_them.calls[0] == ([pilot],)
    final = ("CANCELED", "DONE")
    await all_of_them.until(lambda: set(final).intersection(all_of_them.states(pilot.uid)))
    assert {call[2] for call in all_of_them.calls} == {"data"}
    made.pilot_manager.unregister_callback(all_of_them)
    assert made.pilot_state == "PMGR_ACTIVE"
