"""Checks of a backend's life: start, states of its own, shutdown, declaration."""

from __future__ import annotations

import asyncio
import json
import sys

from rhapsody.testing._graphs import adder
from rhapsody.testing._machine import Holdings, end_processes, left_behind, listed, marked
from rhapsody.testing._rules import FUNCTIONS, SYNC, skip
from rhapsody.testing._running import check
from rhapsody.testing._trial import Trial, state_of

STATES = ("initialized", "running", "shutting_down", "shutdown", "error")


class Lifecycle:
    """What must hold before, at and after a backend's start.

    Checks that start a backend and checks that stop one take turns, see `Trial.hand_on`.
    """

    @check("awaiting a backend starts it and returns it", dry=True)
    async def test_awaiting_starts_it_and_gives_it_back(self, trial: Trial) -> None:
        backend = await trial.unstarted()
        given = await backend
        trial.require(given is backend, f"await gave {given!r}, not the backend itself")
        await _require_state(trial, backend, "running")
        trial.hand_on(backend)

    @check("shutdown may be called twice, and at once", dry=True)
    async def test_shutdown_twice_is_harmless(self, trial: Trial) -> None:
        backend = await trial.own()
        await asyncio.gather(backend.shutdown(), backend.shutdown())
        await backend.shutdown()
        await _require_state(trial, backend, "shutdown")

    @check("`await Backend.create(...)` returns a started backend", dry=True)
    async def test_create_makes_and_starts_it(self, trial: Trial) -> None:
        kind = type(await trial.fresh())
        arguments = trial.kit.create_args, trial.kit.create_kwargs
        backend = trial.take(await kind.create(*arguments[0], **arguments[1]))
        trial.require(isinstance(backend, kind), f"create gave {backend!r}")
        await _require_state(trial, backend, "running")
        trial.hand_on(backend)

    @check("state() is one of the five words, and may be awaited", dry=True)
    async def test_its_state_is_a_known_word(self, trial: Trial) -> None:
        seen = [await state_of(await trial.fresh())]
        backend = await trial.own()
        seen.append(await state_of(backend))
        state = backend.state()
        if hasattr(type(state), "__await__"):
            state = await state
        trial.require(str(state) == seen[-1], f"awaiting state() gave {state!r}, not {seen[-1]!r}")
        await backend.shutdown()
        seen.append(await state_of(backend))
        unknown = [word for word in seen if word not in STATES]
        trial.require(not unknown, f"it said {unknown}, and the words are {', '.join(STATES)}")
        expected = [seen[0], "running", "shutdown"]
        trial.require(
            seen[0] in ("initialized", "running") and seen == expected,
            f"over its life it said {' -> '.join(seen)}",
        )

    @check("the time until its end is None or a number of seconds, 0 or more", dry=True)
    async def test_its_end_is_seconds_or_none(self, trial: Trial) -> None:
        driver = await trial.driver()
        task = driver.command("true")
        for left in (driver.backend.seconds_left(), driver.backend.seconds_left(task)):
            number = isinstance(left, int | float) and not isinstance(left, bool)
            trial.require(left is None or (number and left >= 0), f"seconds_left gave {left!r}")

    @check("submitting a task after shutdown is an error", dry=True)
    async def test_a_task_after_shutdown_is_an_error(self, trial: Trial) -> None:
        from rhapsody.testing._driver import Driver

        backend = await trial.ended()
        task = Driver(backend).command("true")
        try:
            await backend.submit_tasks([task])
        except Exception:  # any error is right
            return
        raise trial.check.error("submit_tasks raised nothing")

    @check("`async with` starts a backend and shuts it down", dry=True)
    async def test_async_with_starts_it_and_shuts_it_down(self, trial: Trial) -> None:
        made = await trial.fresh()
        async with made as backend:
            trial.require(backend is made, f"`async with` gave {backend!r}, not the backend")
            await _require_state(trial, backend, "running")
        await _require_state(trial, backend, "shutdown")

    @check("starting twice is one start", dry=True)
    async def test_starting_twice_is_one_start(self, trial: Trial) -> None:
        backend = await trial.fresh()

        async def start() -> object:
            return await backend

        first, second = await asyncio.gather(start(), start())
        third = await start()
        same = first is backend and second is backend and third is backend
        trial.require(same, "awaiting it again gave something else than the backend")
        await _require_state(trial, backend, "running")
        trial.hand_on(backend)

    @check("a second backend of the same class does not disturb the first", SYNC)
    async def test_two_backends_at_once_do_not_mix(self, trial: Trial) -> None:
        from rhapsody.testing._work import add

        first, second = [await trial.driver(await trial.own()) for _ in range(2)]
        one, two = first.call(add, 1), second.call(add, 2)
        ends = await asyncio.gather(first.run_one(one), second.run_one(two))
        trial.require([end.value for end in ends] == [2, 3], f"they gave {[*map(str, ends)]}")
        await second.backend.shutdown()
        third = await first.run_one(first.call(add, 3))
        trial.require(third.value == 4, f"after the other's shutdown: {third}")

    @check("the engine starts a backend that was not awaited, and shuts it down", dry=True)
    async def test_the_engine_starts_and_stops_it(self, trial: Trial) -> None:
        backend = await trial.fresh()
        flow = await trial.engine(backend)
        plus = adder(trial, flow)
        await plus(1)
        await flow.shutdown()
        state = await state_of(backend)
        trial.require(state == "shutdown", f"after the engine's shutdown it is {state!r}")

    @check("a backend that was shut down leaves the next one usable", FUNCTIONS)
    async def test_another_can_be_started_after_it(self, trial: Trial) -> None:
        from rhapsody.testing._work import add, add_async

        function = add if trial.capabilities.sync_functions else add_async
        await trial.ended()
        backend = await trial.fresh()
        driver = await trial.driver(backend)
        end = await driver.run_one(driver.call(function, 1))
        trial.require(end.value == 2, f"the next backend: {end}")

    @check("use before the start is an error that asks to await the backend", dry=True)
    async def test_use_before_start_says_to_await_it(self, trial: Trial) -> None:
        from rhapsody.testing._driver import Driver

        backend = await trial.unstarted()
        task = Driver(backend).command("true")
        try:
            await backend.submit_tasks([task])
        except Exception as error:  # whatever the backend raises is judged by its text
            trial.require("await" in str(error), f"the error does not say so: {error!r}")
        else:
            raise trial.check.error("submit_tasks raised nothing")

    @check("shutdown before the start is harmless", dry=True)
    async def test_shutdown_before_the_start_is_harmless(self, trial: Trial) -> None:
        backend = await trial.unstarted()
        await backend.shutdown()
        await _require_state(trial, backend, "shutdown")

    @check("a failed start leaves nothing running", dry=True)
    async def test_a_failed_start_leaves_nothing_running(self, trial: Trial) -> None:
        with marked() as mark:
            before = Holdings.now()
            backend = await trial.kit.make_failing_backend()
            if backend is NotImplemented:
                skip("the class has no make_failing_backend")
            try:
                await backend
            except Exception:  # noqa: S110 - any error is right, what is left is the question
                pass
            else:
                raise trial.check.error("the start of make_failing_backend's backend did not fail")
            state = await state_of(backend)
            trial.require(
                state in ("error", "shutdown"), f"after a failed start its state is {state!r}"
            )
            await backend.shutdown()
            left = await left_behind(
                before,
                trial.kit.leaves_behind,
                trial.clock,
                within=10 * trial.kit.settle,
                files=False,
                mark=mark,
            )
            end_processes(left)
        trial.require(not left, lambda: f"left behind: {listed(left)}")

    @check("declaring the backend imports no library behind it", dry=True)
    async def test_its_declaration_is_light(self, trial: Trial) -> None:
        backend = await trial.fresh()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _DECLARE,
            str(backend.name),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        trial.require(process.returncode == 0, f"its entry point fails: {err.decode()[-500:]}")
        found = json.loads(out)
        if found is None:
            skip(f"no entry point in the group rhapsody.backends is called {backend.name!r}")
        trial.require(not found, f"its entry point imports {', '.join(found)}")


async def _require_state(trial: Trial, backend: object, expected: str) -> None:
    state = await state_of(backend)
    trial.require(state == expected, f"its state is {state!r}, not {expected!r}")


# Prints the modules of required distributions that loading the declaration imports,
# or null where there is no entry point of that name.
_DECLARE = """
import json, re, sys
from importlib.metadata import entry_points, packages_distributions

def same(name):
    return re.sub("[-_.]+", "-", name).lower()

found = None
for point in entry_points(group="rhapsody.backends"):
    if same(point.name) != same(sys.argv[1]):
        continue
    plugin = point.load()
    spec = plugin.rhapsody_backends()
    specs = spec if isinstance(spec, (list, tuple)) else [spec]
    needed = {
        same(re.match("[A-Za-z0-9._-]+", text)[0])
        for spec in specs if same(spec.name) == same(sys.argv[1]) for text in spec.requires
    }
    heavy = {
        module for module, names in packages_distributions().items()
        if any(same(name) in needed for name in names)
    }
    found = sorted(heavy & {name.partition(".")[0] for name in sys.modules})
print(json.dumps(found))
"""
