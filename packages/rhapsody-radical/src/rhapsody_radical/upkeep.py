"""Gives back what RADICAL-Pilot holds for ever although its session was closed.

It keeps subscribers in a list of its class, managers in handlers for `fork`, sockets until
they are collected, a descriptor of each file of JSON that it wrote, and logs that it wrote to.
A program that starts one backend after the other would run out of descriptors.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from rhapsody_radical.library import ru

ADDRESSES = ("addr_pub", "addr_sub", "addr_put", "addr_get")


def addresses(session: Any) -> frozenset[str]:
    """Where the bridges of a session are; to be asked while it is open."""
    bridges = session._reg["bridges"]
    return frozenset(
        str(bridge[name]) for bridge in bridges.values() for name in ADDRESSES if name in bridge
    )


def release(objects: Iterable[Any], bridges: frozenset[str], directory: Path) -> None:
    """Gives back what a closed session holds.

    Args:
        objects: RADICAL-Pilot's objects of the session.
        bridges: The addresses of its bridges.
        directory: Its directory.
    """
    found = list(objects)
    _forget_fork_handlers(found)
    _stop_subscribers(bridges)
    parts = [held for held in _held(found) if held]
    for held in parts:
        _stop_thread(held)
    zmq: Any = import_module("zmq")
    shared = zmq.Context.instance()
    for socket in list(shared._sockets):
        with suppress(Exception):  # closed meanwhile
            if socket.getsockopt_string(zmq.LAST_ENDPOINT) in bridges:
                socket.close(linger=0)
    for held in parts:
        for name in ("_sock", "_q", "_socket"):
            with suppress(Exception):  # no socket, or closed
                held[name].close(linger=0)
        context = held.get("_ctx")
        if isinstance(context, zmq.Context) and context is not shared:
            with suppress(Exception):  # a thread may still use it
                context.destroy(linger=0)
    _close_logs(directory)
    _close_written_files(directory)


def _held(objects: list[Any]) -> Iterator[dict[str, Any]]:
    """The attributes of the objects' own parts, one level deep and in containers."""
    for each in objects:
        for value in [each, *_attributes(each).values()]:
            if type(value) is dict:
                parts = list(value.values())
            elif isinstance(value, list | tuple | set):
                parts = list(value)
            else:
                parts = [value]
            yield from map(_attributes, parts)


def _attributes(thing: Any) -> dict[str, Any]:
    try:
        return dict(vars(thing))
    except TypeError:  # it has none
        return {}


def _forget_fork_handlers(objects: list[Any]) -> None:
    module: Any = import_module("radical.utils.atfork.atfork")
    with module._fork_lock:
        for handlers in (
            module._prepare_call_list,
            module._parent_call_list,
            module._child_call_list,
        ):
            handlers[:] = [
                handler
                for handler in handlers
                if not any(getattr(handler, "__self__", None) is each for each in objects)
            ]


def _stop_subscribers(bridges: frozenset[str]) -> None:
    instances = ru.zmq.Subscriber._instances
    for subscriber in list(instances):
        if str(subscriber.url) not in bridges:
            continue
        with suppress(Exception):  # whatever state it was left in
            subscriber._term.set()
            thread = subscriber._thread
            if thread is not None:
                thread.join(2)
            subscriber._sock.close(linger=0)
        with suppress(ValueError):
            instances.remove(subscriber)


def _stop_thread(held: dict[str, Any]) -> None:
    """Has a listener end before its socket is closed, which it would fail on."""
    term, thread = held.get("_term"), held.get("_thread")
    if isinstance(term, threading.Event) and isinstance(thread, threading.Thread):
        term.set()
        if thread is not threading.current_thread():
            thread.join(2)


def _close_logs(directory: Path) -> None:
    """Closes logs, which are opened when something is wrong, such as a pilot that ends twice."""
    roots = tuple(path + os.sep for path in (str(directory), os.path.realpath(directory)))
    for logger in list(logging.root.manager.loggerDict.values()):
        if not isinstance(logger, logging.Logger):
            continue  # only the place of one
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler) and handler.baseFilename.startswith(roots):
                logger.removeHandler(handler)
                handler.close()


def _close_written_files(directory: Path) -> None:
    """Closes descriptors that `radical.utils.write_json` opened and nobody holds."""
    root = os.path.realpath(directory) + os.sep
    with suppress(OSError):  # only Linux has it
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                target = os.readlink(f"/proc/self/fd/{name}").removesuffix(" (deleted)")
                if target.startswith(root) and target.endswith(".json"):
                    os.close(int(name))
