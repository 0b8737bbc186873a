"""Specs of calls: fields that calls have in common are pickled once."""

from __future__ import annotations

import contextvars
import decimal
import io
import random
from typing import Any

from rhapsody.backends.local import packing, worker
from rhapsody.backends.local.jobs import LocalJob, Request
from rhapsody.sdk.calls import call_spec
from rhapsody.sdk.modules import REFERENCE
from tests._support.local import job_of


def random_job(draw: random.Random, number: int) -> LocalJob:
    """Return a job with few different settings, so that many jobs have all of them in common."""
    choices: dict[str, tuple[Any, ...]] = {
        "attempt": (1, 2),
        "sandbox": (None, f"/sandbox/{number}"),
        "timeout": (None, 1.5),
        "environment": ({"A": "1"}, {"A": "2"}, {}),
        "capture": (True, False, "files", "quiet"),
        "trace_context": ({}, {"traceparent": f"00-{number}"}),
        "watch": ((), ("/watched/",)),
    }
    task: Any = {"uid": f"task.{number}", "name": draw.choice("ab"), "function": int}
    for name, values in choices.items():
        if draw.random() < 0.3:
            task[name] = draw.choice(values)
    if draw.random() < 0.3:
        task["context"] = contextvars.copy_context()
        context = decimal.Context(prec=draw.choice((5, 28)))
        task["context"].run(decimal.setcontext, context)
    return job_of(
        task, request=Request(cores=draw.choice((0, 1, 1, 2))),
        gpus=draw.choice((None, None, (), ("0",), ("1",))), spill=f"/spill/{number}",
        call=worker.PickledCall(b"function", b"arguments", draw.choice((0, 1))),
        modules=draw.choice((None, None, b"m" * 100, b"n" * 100)),
    )  # fmt: skip


def comparable(order: Any) -> Any:
    return order._replace(more={name: repr(value) for name, value in order.more.items()})


def test_each_worker_receives_the_spec_of_the_call() -> None:
    draw, specs = random.Random(0), packing.Specs()
    for number in range(3000):
        job = random_job(draw, number)
        received = worker.received(io.BytesIO(specs.frame(job)))
        expected = call_spec(
            job.task,
            cores=job.request.cores,
            environment=job.environment(),
            directory=job.spill,
            modules=job.modules and job.modules[:REFERENCE],
        )
        assert received is not None
        assert received[2] is not None
        assert comparable(received[2]) == comparable(expected)
        assert received[3] == job.call
