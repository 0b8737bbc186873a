"""The shortest history of each fault that the machine has had."""

from __future__ import annotations

from random import Random

from rhapsody.engine.attempts import Attempts
from rhapsody.engine.machine import Machine
from rhapsody.engine.node import Node
from rhapsody.errors import TaskTimeoutError
from tests.core.machine.world import NothingHeld, World, definition


class Script(World):
    """A world in which nothing happens by itself."""

    def __init__(self, *, max_failures: int | None = None) -> None:
        super().__init__(Random(0))
        self.machine = Machine(Attempts(None, 0), max_failures)
        self.machine.connect(self, NothingHeld())  # type: ignore[arg-type]
        self.machine.limited = True

    def task(self, **settings: object) -> Node:
        """A task that was called."""
        return self.add(definition("function", **settings))

    def hand_over(self, *nodes: Node) -> None:
        """Tasks that are in the hands of the backend, which has not taken them yet."""
        for node in nodes:
            self.prepare(node)
        self.machine.submit(nodes, self.backends[0])


def test_what_is_cancelled_while_a_batch_is_put_together_is_not_in_it() -> None:
    script = Script(max_failures=1)
    first, second = script.task(), script.task()
    script.prepare(first)
    script.machine.refuse(second, LookupError())
    assert script.machine.submit([first], script.backends[0]) == []
    assert script.machine.inflight == {}


def test_what_is_over_its_time_when_its_batch_is_refused_fails_for_its_time() -> None:
    script = Script()
    node = script.task(timeout=5)
    script.hand_over(node)
    script.machine.run(node)
    script.wait()
    script.machine.reject(node, OSError("no"))
    assert isinstance(node.future.exception(), TaskTimeoutError)
    assert not script.machine.graph.live


def test_what_is_abandoned_gives_its_slot_and_its_limits_back() -> None:
    script = Script()
    script.machine.limits.declare((("licence", 1),))
    node = script.task(limit="licence:1")
    assert script.machine.limits.take(node, node.task.settings.limit)
    script.hand_over(node)
    script.machine.abandon()
    assert script.backends[0].occupied == 0
    assert script.machine.limits.take(script.task(limit="licence:1"), (("licence", 1),))
