"""Samples of the load of nodes, which an engine passes from its backends to plugins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from rhapsody.engine.core.background import Background
from rhapsody.plugins.manager import EngineHooks
from rhapsody.plugins.specs import ObservedEngine
from rhapsody.sdk.nodes import INTERVAL, NodeSampler
from rhapsody.task import NodeSample

APART: Final = INTERVAL / 2
"""Minimum number of seconds between two samples of a node; several workers may sample it."""


class NodeSamples:
    """Collector of the samples of the program's own node and of the nodes of backends.

    Nothing is sampled unless a plugin implements `rhapsody_node_samples`.

    Args:
        hooks: The plugins' hooks.
        engine: The engine object that is passed to hooks.
        background: The runner of calls on the loop.
        is_busy: Function that returns True while tasks are unfinished, on any thread.
    """

    def __init__(
        self,
        hooks: EngineHooks,
        engine: ObservedEngine,
        background: Background,
        is_busy: Callable[[], bool],
    ) -> None:
        self._hooks = hooks
        self._is_busy = is_busy
        self._engine = engine
        self._background = background
        self._sampler: NodeSampler | None = None
        self._backends: list[Any] = []
        self._latest: dict[str, float] = {}

    def start(self, backends: Iterable[object]) -> None:
        """Begin to sample this node, when a task is called, and those of started backends."""
        if not self._hooks.node_samples or self._sampler is not None:
            return
        self._sampler = NodeSampler(self._receive, is_busy=self._is_busy)
        self._backends = [each for each in backends if hasattr(each, "watch_nodes")]
        for backend in self._backends:
            backend.watch_nodes(self._receive)

    def wake(self) -> None:
        """Note that tasks have been called."""
        if self._sampler is not None:
            self._sampler.wake()

    def stop(self) -> None:
        """Take a last sample of this node, and ignore what arrives later."""
        sampler, self._sampler = self._sampler, None
        if sampler is None:
            return
        for backend in self._backends:
            backend.watch_nodes(None)
        last = sampler.stop()
        if last is not None and last.seconds >= 1:
            self._pass_on(last)

    def _receive(self, sample: NodeSample) -> None:
        self._background.soon_from_anywhere(partial(self._take, sample))

    def _take(self, sample: NodeSample) -> None:
        now = time.monotonic()
        if self._sampler is not None and now - self._latest.get(sample.node, now - APART) >= APART:
            self._latest[sample.node] = now
            self._pass_on(sample)

    def _pass_on(self, sample: NodeSample) -> None:
        samples = (sample._replace(time=time.time()),)
        for hook in self._hooks.node_samples:
            self._hooks.call(hook, engine=self._engine, samples=samples)
