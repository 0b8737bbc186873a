"""What the body of a check works with: backends, drivers, engines, and their end.

A trial lives for one check. It makes what the check asks for and gives all of it
back afterwards, also when the check failed. It proves nothing itself, but what
its drivers saw along the way is judged at the end of every check.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhapsody.backends.base import Capabilities
from rhapsody.task import TaskKind
from rhapsody.testing._clock import Clock
from rhapsody.testing._driver import Driver, started
from rhapsody.testing._grounds import grounds
from rhapsody.testing._ledger import ledger
from rhapsody.testing._rules import Check, ConformanceError, skip

if TYPE_CHECKING:
    from rhapsody import WorkflowEngine
    from rhapsody.testing._settings import Settings

KINDS: tuple[TaskKind, ...] = ("function", "async_function", "executable")


class Shared:
    """Backends that several trials on one loop use in turn, and what was seen of others.

    Attributes:
        backend: The backend, started; `None` before the first trial and after one
            that failed, which may have left anything in it.
        spare: One that a trial started and left to a trial that stops one.
        ended: One that was started and shut down.
        lives: What was seen of whole lives of backends.
        known: The uids of tasks that were submitted, and of engines that submit some.
    """

    def __init__(self) -> None:
        self.backend: Any = None
        self.spare: Any = None
        self.ended: Any = None
        self.lives: list[Any] = []
        self.known: set[str] = set()

    async def discard(self) -> None:
        """Shuts the backends down; the next trial makes others."""
        backends = self.backend, self.spare
        self.backend = self.spare = None
        for backend in backends:
            if backend is not None:
                await backend.shutdown()


class Trial:
    """One run of one check.

    Args:
        kit: The test class's object: its settings and `make_backend`.
        check: The declaration of the check.
        clock: Says how late it is, for limits and whatever else is judged by time.
        shared: The backend of the test class, `None` for one of the check's own.

    Attributes:
        capabilities: What the backend declares.
        work_dir: A directory for sandboxes and files, removed at the end.
    """

    def __init__(
        self, kit: Settings, check: Check, clock: Clock, shared: Shared | None = None
    ) -> None:
        self.kit = kit
        self.check = check
        self.clock = clock
        self.capabilities = Capabilities()
        self.work_dir = Path()
        self._shared = shared
        self._backend: Any = None
        self._drivers: list[Driver] = []
        self._engines = 0
        self._ends = AsyncExitStack()
        self._lives: list[Any] = []
        self._known: set[str] = set() if shared is None else shared.known
        self._unseen: list[str] = []
        self._doing = ""

    async def open(self) -> None:
        """Makes the directory and the backend, without starting it."""
        self.work_dir = Path(
            tempfile.mkdtemp(prefix="rhapsody-kit-", dir=_place(self.kit.work_dir))
        )
        self._ends.callback(shutil.rmtree, self.work_dir, ignore_errors=True)
        asyncio.get_running_loop().set_exception_handler(self._note_unseen)
        if self._shared is None:
            self._backend = await self.fresh()
        else:
            if self._shared.backend is None:
                self._shared.backend = await self.kit.make_backend()
            self._backend = self._shared.backend
        self.capabilities = self._backend.capabilities
        ledger.declared(type(self.kit), self.capabilities)

    # What a check asks for.

    async def fresh(self) -> Any:
        """A backend as `make_backend` gives it, shut down at the end."""
        return self.take(await self.kit.make_backend())

    def take(self, backend: Any) -> Any:
        """Has a backend shut down at the end, unless it is handed on."""
        self._ends.push_async_callback(self._let_go, backend)
        return backend

    async def own(self, *, last: bool = False) -> Any:
        """A started backend that the check may shut down, maybe one that another handed on.

        Args:
            last: The class's own will do: the check is the last of its class.
        """
        shared = self._shared
        if shared is not None and shared.spare is not None:
            backend, shared.spare = self.take(shared.spare), None
        elif last and shared is not None and shared.backend is not None:
            backend, shared.backend = self.take(shared.backend), None
        else:
            backend = await started(await self.fresh())
        if shared is not None:
            self._ends.callback(setattr, shared, "ended", backend)
        return backend

    def hand_on(self, backend: Any) -> None:
        """Leaves a started backend to the next check that asks for one of its own."""
        if self._shared is not None and self._shared.spare is None:
            self._shared.spare = backend

    async def ended(self) -> Any:
        """A backend that was started and shut down, maybe by another check."""
        if self._shared is not None and self._shared.ended is not None:
            return self._shared.ended
        backend = await self.own()
        await backend.shutdown()
        return backend

    @property
    def lives(self) -> list[Any]:
        """What was seen of whole lives of backends, by this check or by others before it."""
        return self._lives if self._shared is None else self._shared.lives

    async def unstarted(self) -> Any:
        """A backend that was not started; skips the check where there is none."""
        backend = await self.fresh()
        if str(await state_of(backend)) != "initialized":
            skip("make_backend gives a backend that is started already")
        return backend

    async def backend(self) -> Any:
        """The trial's backend, started."""
        self._backend = await started(self._backend)
        if self._shared is not None:
            self._shared.backend = self._backend
        return self._backend

    async def driver(self, backend: Any = None) -> Driver:
        """A driver on the trial's backend, or on another."""
        if backend is None:
            backend = await self.backend()
        driver = Driver(backend, work_dir=self.work_dir, silence=self.kit.silence)
        self._drivers.append(driver)
        return await self._ends.enter_async_context(driver)

    async def engine(self, backend: Any = None, **settings: Any) -> WorkflowEngine:
        """An engine on the trial's backend, or on another; it starts the backend."""
        from rhapsody import WorkflowEngine

        self._engines += 1
        if backend is None:
            backend = self._backend if self._shared is None else await self.backend()
        settings.setdefault("work_dir", self.work_dir / f"engine.{self._engines}")
        settings.setdefault("handle_signals", False)
        engine = await WorkflowEngine.create(backend, **settings)
        self._ends.push_async_callback(engine.shutdown, skip_execution_backend=True)
        self._known.add(engine.uid)
        return engine

    def kinds(self, *, of: Sequence[TaskKind] = KINDS) -> list[TaskKind]:
        """The kinds of task that the backend runs, of those given."""
        return [kind for kind in of if self.capabilities.runs(kind)]

    def form(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, or the same as a coroutine function where only those run."""
        if self.capabilities.sync_functions:
            return function

        async def form(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            return function(*args, **kwargs)

        return form

    # What a check says.

    def require(self, condition: object, detail: str | Callable[[], str]) -> None:
        """Fails the check with the detail unless the condition holds."""
        __tracebackhide__ = True
        if not condition:
            raise self.check.error(detail if isinstance(detail, str) else detail())

    async def gather(self, futures: Sequence[Any]) -> list[Any]:
        """Wait for the futures of an engine's tasks; the rest fail fast once nothing ends.

        Raises:
            ConformanceError: Some ended, then none did for `silence` seconds.
        """
        began, ended = self.clock.now(), 0
        while True:
            patience = max(self.kit.silence, 3 * (self.clock.now() - began)) if ended else None
            when = asyncio.FIRST_EXCEPTION if ended else asyncio.FIRST_COMPLETED
            done, pending = await asyncio.wait(futures, timeout=patience, return_when=when)
            if not pending or any(future.exception() for future in done):
                return [await future for future in futures]
            if len(done) == ended:
                raise self.check.error(
                    f"{ended} of {len(futures)} tasks ended, then none for {patience:.1f} s "
                    "(`silence`)"
                )
            ended = len(done)

    def doing(self, what: str) -> None:
        """Notes what the check is at, for the message where it runs out of time."""
        self._doing = what

    def status(self) -> str:
        """What the check was at, and which tasks have not ended."""
        open_tasks = [text for driver in self._drivers for text in driver.unfinished()]
        words = [f"while {self._doing}"] if self._doing else []
        if open_tasks:
            more = f" and {len(open_tasks) - 5} more" if len(open_tasks) > 5 else ""
            words.append(f"no terminal state for {'; '.join(open_tasks[:5])}{more}")
        strangers = self._strangers()
        if strangers:
            words.append(f"and the callback named {strangers[0]!r}, which was not submitted")
        return ", ".join(words) or "no task was open"

    def _strangers(self) -> list[str]:
        """Uids that the callback named, and that no driver or engine of the backend submitted."""
        for driver in self._drivers:
            self._known.update(driver.uids())
        named = [uid for driver in self._drivers for uid in driver.strangers]
        return [
            uid
            for uid in named
            if uid not in self._known and uid.partition(".task.")[0] not in self._known
        ]

    # The end.

    async def _let_go(self, backend: Any) -> None:
        if self._shared is None or backend is not self._shared.spare:
            await backend.shutdown()

    async def close(self) -> None:
        """Ends engines, drivers and backends, the last made first, and removes the directory."""
        await self._ends.aclose()

    def judge(self) -> None:
        """Raises for what the backend did wrong along the way, whatever the check was about."""
        for driver in self._drivers:
            for fault in driver.faults:
                raise ConformanceError(*fault)
        for stranger in self._strangers():
            raise ConformanceError(
                "the callback names tasks that were submitted", f"{stranger!r} was not"
            )
        if self._unseen:
            raise ConformanceError(
                "no error on the loop goes unreported", " | ".join(self._unseen[:3])
            )

    def _note_unseen(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        error = context.get("exception")
        text = str(context.get("message", ""))
        self._unseen.append(f"{text}: {error!r}" if error is not None else text)


def _place(work_dir: Path | None) -> str | None:
    """Return the directory for a trial's own, seen from outside of the checks' directories."""
    if work_dir is None:
        return grounds.system
    return os.fspath(grounds.home / work_dir)


async def state_of(backend: Any) -> str:
    """A backend's state, whether its `state` is plain or asynchronous."""
    state = backend.state()
    return state if isinstance(state, str) else str(await state)
