"""States in: what backends report, from any thread, applied on the engine's loop.

Late, doubled and unknown reports are left out, and counted unless they only say
once more that a task runs. What a state means for retries and dependents is decided
in `rhapsody.engine.runtime`.
"""

from __future__ import annotations

import concurrent.futures
import shlex
from asyncio import _get_running_loop as running_loop
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from rhapsody.backends.base import ReferenceLostError
from rhapsody.data import stderr_tail
from rhapsody.engine.files import leads_into
from rhapsody.engine.life import Event, Future, Work
from rhapsody.errors import TaskFailedError, describe_error, is_a
from rhapsody.sdk.mailbox import Mailbox
from rhapsody.states import TasksMainStates
from rhapsody.task import Outcome

if TYPE_CHECKING:
    from rhapsody.engine.node import Node
    from rhapsody.engine.runtime import Runtime

DONE = TasksMainStates.DONE
FAILED = TasksMainStates.FAILED
CANCELED = TasksMainStates.CANCELED
RUNNING = TasksMainStates.RUNNING

STARTED = frozenset({Work.RUNNING, Work.SERVING, Work.CANCELING})
"""Where it is no news that a task runs. A backend may have several states that mean it."""

COMMAND_SHOWN = 500
"""Characters of a command that the message of a `TaskFailedError` shows."""

ServiceCallback = Callable[..., Any]


class Updates:
    """Receives the states of one engine's tasks."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.inflight: dict[str, Node] = {}
        self._mailbox: Mailbox[tuple[Any, Any, ServiceCallback | None]] = Mailbox(
            runtime.loop, self._deliver
        )
        self._complained: set[tuple[str, object]] = set()

    def receive(
        self, task: Any, state: Any, service_callback: ServiceCallback | None = None
    ) -> None:
        """A backend's callback; any thread."""
        if running_loop() is self._runtime.loop:
            self._deliver((task, state, service_callback))
        elif not self._changes_nothing(task, state):
            self._mailbox.put((task, state, service_callback))

    def _changes_nothing(self, task: Any, state: Any) -> bool:
        """Whether the loop need not be woken for a state: nobody would do anything. Any thread.

        A backend may have many states between those that matter; RADICAL-Pilot has fifteen.
        """
        if self._runtime.observed or type(task) is not dict:
            return False
        uid = task.get("uid")
        node = self.inflight.get(uid) if type(uid) is str else None
        if node is None or node.lane is None:
            return False
        try:
            main = node.lane.main_state(state)
        except Exception:  # it is told where it is applied
            return False
        if main is RUNNING:
            return node.life.work in STARTED
        return not (main is None or main is DONE or main is FAILED or main is CANCELED)

    def drain(self) -> None:
        """Applies what other threads have reported so far."""
        self._mailbox.drain()

    def _deliver(self, item: tuple[Any, Any, ServiceCallback | None]) -> None:
        try:
            self._apply(*item)
        except Exception as error:  # a mistake of ours must not vanish in a backend's thread
            self._runtime.crashed("updates", error)

    def _apply(self, task: Any, state: Any, service_callback: ServiceCallback | None) -> None:
        try:
            if type(task) is not dict and not isinstance(task, Mapping):
                task = task.as_dict() if hasattr(task, "as_dict") else {}
            uid = task.get("uid")
            node = self.inflight.get(uid)
        except Exception as error:  # the backend's fault, and no task's that is known
            self._malformed(error)
            return
        if node is None:
            self._stray(uid)
            return
        assert node.lane is not None
        main = node.lane.main_state(state)
        if main is None:
            self._unknown_state(node, state)
            return
        runtime = self._runtime
        if runtime.observed:
            node.native = str(state)
        if main is DONE or main is FAILED or main is CANCELED:
            self._terminal(node, task, main)
        elif main is RUNNING:
            self._running(node, task, state, service_callback)
        elif runtime.observed and node.life.future is Future.PENDING:
            runtime.observe(node, main)

    def _stray(self, uid: object) -> None:
        runtime = self._runtime
        if not isinstance(uid, str) or not uid.startswith(runtime.uid_prefix):
            if isinstance(uid, str) and ".task." in uid:
                return  # another engine's task on a backend that both use
            runtime.stats.unknown += 1
        else:
            runtime.stats.late += 1

    def _malformed(self, error: Exception) -> None:
        self._runtime.stats.unknown += 1
        if ("", "malformed") not in self._complained:
            self._complained.add(("", "malformed"))
            self._runtime.log.error(
                "a backend reported something that cannot be read as a task with a uid; such "
                "updates are left out. Reading it raised %s", describe_error(error),
            )  # fmt: skip

    def _unknown_state(self, node: Node, state: Any) -> None:
        runtime = self._runtime
        runtime.stats.unknown += 1
        assert node.lane is not None
        key = (node.lane.name, str(state))
        if key not in self._complained:
            self._complained.add(key)
            runtime.log.error(
                "backend %r reported the state %r, which its StateMapper does not know; such "
                "updates are left out. Register it with "
                "StateMapper.register_backend_tasks_states(...)",
                node.lane.name, state,
            )  # fmt: skip

    # Not terminal.

    def _running(
        self, node: Node, task: Any, state: Any, service_callback: ServiceCallback | None
    ) -> None:
        runtime = self._runtime
        if not node.step(Event.RUN):
            if node.life.work not in STARTED:
                runtime.stats.late += 1
            return
        if runtime.observed:
            runtime.observe(node, RUNNING)
        runtime.started(node)
        if not node.task.settings.service:
            return
        if service_callback is None:
            runtime.ready(node, node.uid, None)
            return
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.add_done_callback(partial(self._ready_anywhere, node, node.uid))
        try:
            service_callback(future, task, state)
        except Exception as error:  # the backend's fault: this service cannot become ready
            runtime.stop_with(node, error)

    def _ready_anywhere(self, node: Node, uid: str, future: concurrent.futures.Future[Any]) -> None:
        try:
            call = partial(self._ready, node, uid, future)
            self._runtime.loop.call_soon_threadsafe(self._runtime.guarded, call)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self._runtime.stats.late += 1

    def _ready(self, node: Node, uid: str, future: concurrent.futures.Future[Any]) -> None:
        if future.cancelled():
            self._runtime.stats.late += 1
            return
        error = future.exception()
        if error is None:
            self._runtime.ready(node, uid, future.result())
        elif node.uid == uid:
            self._runtime.stop_with(node, error)

    # Terminal.

    def _terminal(self, node: Node, task: Mapping[str, Any], main: TasksMainStates) -> None:
        runtime = self._runtime
        life = node.life
        runtime.attempt_ended(node)
        if (
            node.pushed
            and main is FAILED
            and is_a(task.get("exception"), ReferenceLostError)
            and runtime.pushdown.take_back(node)
        ):
            return
        if runtime.interrupted:
            return  # its future is settled when everything has stopped
        if life.future is not Future.PENDING:
            self._settled_before(node, task, main)
        elif life.work is Work.CANCELING:
            verdict = node.more().verdict
            assert verdict is not None
            self._keep_outcome(node, task, succeeded=False)
            runtime.attempt_failed(node, verdict)
        elif main is DONE:
            self._done(node, task)
        elif main is FAILED:
            self._keep_outcome(node, task, succeeded=False)
            runtime.attempt_failed(node, _error(node, task))
        else:
            self._keep_outcome(node, task, succeeded=True)
            runtime.stopped(node, why=_cancelled_elsewhere(node))

    def _settled_before(self, node: Node, task: Mapping[str, Any], main: TasksMainStates) -> None:
        runtime = self._runtime
        state, error = CANCELED, None
        if node.life.work is Work.SERVING and main is not CANCELED:
            state, error = main, task.get("exception")
            runtime.log.warning(
                "service %r (%s) ended by itself: %s",
                node.task.name, node.future.uid, _ending(task),
            )  # fmt: skip
        elif main is DONE and node.life.future is not Future.DONE:
            runtime.stats.late += 1  # the result of a cancelled task
        self._keep_outcome(node, task, succeeded=node.life.future is not Future.FAILED)
        runtime.stopped(node, state, error)

    def _done(self, node: Node, task: Mapping[str, Any]) -> None:
        runtime = self._runtime
        if node.task.settings.service:
            self._keep_outcome(node, task, succeeded=False)
            runtime.attempt_failed(
                node,
                TaskFailedError(
                    f"service {node.task.name!r} ({node.future.uid}) ended before it was "
                    f"ready: {_ending(task)}",
                    exit_code=task.get("exit_code"),
                    stderr=stderr_tail(task),
                ),
            )
            return
        if node.task.kind == "executable":
            if task.get("exit_code"):
                self._keep_outcome(node, task, succeeded=False)
                runtime.attempt_failed(node, _error(node, task))
                return
            value = task.get("stdout")
        else:
            value = task.get("return_value")
            if value is None and "held" in task:
                runtime.pushdown.hold(node, task["held"])
                return
        extra = node.extra
        if extra is not None and extra.found is not None and extra.found.outputs:
            try:
                runtime.check_outputs(node)
            except Exception as error:  # a promised file is missing: the attempt failed
                self._keep_outcome(node, task, succeeded=False)
                runtime.attempt_failed(node, error)
                return
        self._keep_outcome(node, task, succeeded=True, value=value)
        node.step(Event.DONE)
        runtime.gate.done(node, value)

    def _keep_outcome(
        self, node: Node, task: Mapping[str, Any], *, succeeded: bool, value: Any = None
    ) -> None:
        """Puts onto the future what is left of the attempt besides its value."""
        stdout, stderr, sandbox = task.get("stdout"), task.get("stderr"), task.get("sandbox")
        if stdout is None and stderr is None and sandbox is None:
            return
        outcome = Outcome(
            uid=node.uid,
            stdout=stdout,
            stderr=stderr,
            exit_code=task.get("exit_code"),
            sandbox=sandbox,
            backend=node.future._backend,
        )
        if sandbox is not None:
            found = node.extra.found if node.extra is not None else None
            outputs = found.outputs if found is not None else ()
            outcome.output_files = tuple(f.filename for f in outputs)
            assert node.description is not None
            outcome.keeper = self._runtime.stager.keep(
                node.description,
                succeeded=succeeded,
                outputs=outputs,
                result_is_path=node.task.settings.capture == "files" or leads_into(value, sandbox),
            )
        node.future._outcome = outcome


def _error(node: Node, task: Mapping[str, Any]) -> BaseException:
    """The exception of a failed attempt."""
    error = task.get("exception")
    if isinstance(error, BaseException):
        return error
    name = f"task {node.task.name!r} ({node.future.uid})"
    command = None
    if node.extra is not None and node.extra.command is not None:
        given = node.extra.command
        command = given if isinstance(given, str) else shlex.join(given)
    message = f"{name} failed"
    if error:
        message += f": {error}"
    elif task.get("exit_code") is not None:
        message = f"{name} ended with exit code {task['exit_code']}"
        if command:
            message += f": {_shown(command)}"
    tail = stderr_tail(task)
    if tail:
        message += f"\n{tail.rstrip()}"
    return TaskFailedError(message, exit_code=task.get("exit_code"), stderr=tail, command=command)


def _cancelled_elsewhere(node: Node) -> str:
    """Why a future is cancelled although nobody here asked for it."""
    assert node.lane is not None
    return (
        f"backend {node.lane.name!r} ended task {node.task.name!r} ({node.future.uid}) as "
        "cancelled, which its engine had not asked for: the task itself raised CancelledError, or "
        "somebody else shut the backend down, such as another engine that uses it "
        "(shutdown(skip_execution_backend=True) leaves it running)"
    )


def _shown(command: str) -> str:
    """As much of a command as a message may hold; the error's `command` has all of it."""
    more = len(command) - COMMAND_SHOWN
    return command if more <= 0 else f"{command[:COMMAND_SHOWN]} [and {more} characters more]"


def _ending(task: Mapping[str, Any]) -> str:
    error = task.get("exception")
    if error is not None:
        return describe_error(error) if is_a(error, BaseException) else str(error)
    if task.get("exit_code") is not None:
        return f"exit code {task['exit_code']}"
    return "no exit code"
