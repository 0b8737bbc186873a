"""Services that have ended by themselves after they were ready: started again, and waited for.

A service's future is done with the first word that it is ready, and stays so. Where the service is
started again, another node takes the place of the one that has ended, with the same call and the
same future, and goes through a life of its own. What it says when it is ready is kept here for its
dependents, and so are those that have not begun while it is not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeGuard, cast
from weakref import WeakKeyDictionary

from rhapsody.engine import failures
from rhapsody.engine.life import Future, Work
from rhapsody.engine.machine import Machine
from rhapsody.engine.node import Node
from rhapsody.engine.tasks import Task
from rhapsody.errors import DependencyFailureError, add_note, is_a, vars_of
from rhapsody.states import TasksMainStates
from rhapsody.task import TaskFuture

log: logging.Logger = logging.getLogger("rhapsody.engine")


class Fate:
    """What became of a service that has ended by itself.

    Attributes:
        error: Why there is none now, or was none the last time.
        at: When it ended the last time, in seconds since the epoch.
        again: Whether it was started again after that.
        up: Whether it is ready again.
        value: What it said then.
        waiting: The nodes that wait for that.
    """

    def __init__(self, error: BaseException, again: bool) -> None:
        self.error: BaseException = error
        self.at: float = time.time()
        self.again: bool = again
        self.up: bool = False
        self.value: Any = None
        self.waiting: list[Node] = []


class Services:
    """The services of one engine that have ended by themselves.

    Args:
        machine: Starts them again, and what has waited for them.

    Attributes:
        any: Whether there are such; all else need not be asked before.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._fates: WeakKeyDictionary[TaskFuture[Any], Fate] = WeakKeyDictionary()
        self.any: bool = False

    # What becomes of a service.

    def ended_by_itself(
        self, node: Node, main: TasksMainStates, report: Mapping[str, Any]
    ) -> tuple[TasksMainStates, BaseException | None]:
        """Notes the end of a service that was ready, and has it started again where asked.

        Returns:
            What observers are told: the state, and the error.
        """
        restarts = node.extra.restarts if node.extra is not None else 0
        again = restarts < node.task.settings.restarts and not self._machine.closing
        error = failures.of_ended_service(node, report)
        log.warning(
            "service %r (%s) ended by itself%s: %s", node.task.name, node.future.uid,
            " and is started again" if again else "", failures.ending(report),
        )  # fmt: skip
        if main is TasksMainStates.DONE and not node.task.settings.restarts:
            return main, report.get("exception")  # it may have done what it was for
        self.any = True
        self._fates[node.future] = Fate(error, again)
        if not again:
            return main, error if main is TasksMainStates.FAILED else report.get("exception")
        former = node.more()
        successor = _successor(node, restarts + 1)
        successor.more().waiters = former.waiters
        former.waiters = [partial(self._start_again, successor)]
        return TasksMainStates.FAILED, error

    def _start_again(self, node: Node) -> None:
        """Puts a node into the place of the one that has ended."""
        self._machine.stats.done -= 1  # until it is ready again
        node.future._node = node
        if node.parent is not None:
            node.parent.more().children[node] = None
        self._machine.start_again(node)

    def ready_again(self, node: Node, value: Any) -> None:
        """A service that was started again is ready: what waited for it goes on."""
        fate = self._fates.get(node.future)
        if fate is not None:
            fate.up, fate.value = True, value
            for waiting in _taken(fate):
                self._machine.begin(waiting)

    def failed(self, node: Node, error: BaseException) -> None:
        """A service could not be started again: what waited for it fails."""
        fate = self._fates.get(node.future)
        if fate is not None:
            self._machine.stats.failed -= 1  # which counts futures, and this one is done
            self._machine.stats.done += 1
            fate.again, fate.error = False, error
            for waiting in _taken(fate):
                self._machine.refuse(waiting, failures.of_gone_service(waiting, node.future, error))

    def cancelled(self, node: Node) -> None:
        """A service was cancelled before it was ready again, and with it what waited."""
        fate = self._fates.get(node.future)
        if fate is not None:
            self._machine.stats.cancelled -= 1
            self._machine.stats.done += 1
            fate.again = False
            for waiting in _taken(fate):
                why = f"its dependency {node.task.name!r} was cancelled"
                self._machine.cancel(waiting, why)

    # What becomes of its dependents.

    def hold_back(self, node: Node) -> bool:
        """Whether a node that is ready may not begin now, since a service of its has ended.

        It goes on when that is ready again, and fails where that will not be.
        """
        for future in node.dependencies:
            fate = self._fate(future)
            if fate is None:
                continue
            if not (fate.up or fate.again):
                gone = failures.of_gone_service(node, future, fate.error)
                self._machine.refuse(node, gone)
                return True
            if not fate.up:
                fate.waiting.append(node)
                for other in self._machine.limits.give_back(node):
                    self._machine.begin(other)
                return True
            if node.extra is not None:
                node.extra.command = None  # that of a former attempt has the former value
        return False

    def value(self, future: Any) -> Any:
        """The value of a future that is done, as a dependent gets it."""
        fate = self._fate(future)
        return future.result() if fate is None else fate.value

    def explain(self, node: Node, error: BaseException) -> None:
        """Notes on the error of a node which of its services has ended while it ran."""
        if is_a(error, DependencyFailureError):
            return
        for future in node.dependencies:
            fate = self._fate(future)
            if fate is not None and (node.started is None or node.started <= fate.at):
                note = failures.service_ended(future, fate.at, fate.error, fate.again)
                if note not in (vars_of(error).get("__notes__") or ()):
                    add_note(error, note)

    def _fate(self, future: Any) -> Fate | None:
        return self._fates.get(future) if isinstance(future, TaskFuture) else None


def is_service(future: object) -> TypeGuard[TaskFuture[Any]]:
    """Whether a future is that of a service."""
    if not isinstance(future, TaskFuture):
        return False
    return cast("Task[Any, Any]", future._definition).settings.service


def _successor(node: Node, restarts: int) -> Node:
    """The node of the next attempt of a service, with all that was given at the call."""
    new = Node(
        node.machine, node.task, node.future, node.number, node.args, node.kwargs, node.specific
    )
    new.attempt, new.dependencies, new.found = node.attempt, node.dependencies, node.found
    if node.parent is not None and node.parent.life.future is Future.PENDING:
        new.parent = node.parent
    former, extra = node.more(), new.more()
    extra.restarts = restarts
    extra.scope, extra.texts = former.scope, former.texts
    extra.command, extra.built_for = former.command, former.built_for
    return new


def _taken(fate: Fate) -> list[Node]:
    """What waits for a service, which waits no more; without what was cancelled meanwhile."""
    waiting, fate.waiting = fate.waiting, []
    return [node for node in waiting if node.life.work is Work.READY]
