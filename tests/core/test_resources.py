"""Tests of the resources that a task requests."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest

from rhapsody.resources import Resources, seconds


def test_resources_default_to_one_core_and_hold_memory_as_bytes() -> None:
    assert Resources() == Resources(cores=1, gpus=0, memory=None, ranks=1, walltime=None)
    assert Resources(memory="2 GiB").memory == 2 * 1024**3
    assert Resources(memory="1 kB") == Resources(memory=1000)
    assert Resources(cores=0).cores == 0
    assert Resources(cores=0.5).cores == 0.5
    assert type(Resources(cores=2.0).cores) is int
    assert Resources(cores=1 / 3).cores == 0.333
    assert Resources(walltime="1h30m").walltime == 5400.0


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"cores": -1}, "cores must be at least 0, got -1"),
        ({"cores": -0.5}, "cores must be at least 0, got -0.5"),
        ({"cores": 0.0001}, "cores must be 0 or at least 0.001, got 0.0001"),
        ({"cores": math.nan}, "cores must be a finite number, got nan"),
        ({"gpus": -2}, "gpus must be at least 0, got -2"),
        ({"ranks": 0}, "ranks must be at least 1, got 0"),
        ({"memory": "lots"}, "memory must look like .*'lots'"),
        ({"memory": -1}, "memory must not be negative"),
        ({"walltime": 0}, "walltime must be a finite, positive number of seconds"),
        ({"walltime": math.inf}, "walltime must be"),
    ],
)
def test_resources_that_cannot_be_are_a_value_error_that_names_the_field(
    values: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Resources(**values)


@pytest.mark.parametrize(
    "values", [{"cores": "1"}, {"cores": True}, {"gpus": "1"}, {"ranks": None}, {"walltime": [1]}]
)
def test_resources_of_the_wrong_type_are_a_type_error_that_names_the_field(
    values: dict[str, Any],
) -> None:
    ((name, value),) = values.items()
    with pytest.raises(TypeError, match=f"{name} must be a .*{value!r}"):
        Resources(**values)


def test_resources_are_immutable_hashable_and_picklable_values() -> None:
    resources = Resources(cores=2, memory="1 GiB")
    with pytest.raises(AttributeError):
        resources.cores = 3  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(resources)) == resources
    assert len({resources, Resources(cores=2, memory=1024**3)}) == 1


def test_resources_are_taken_as_themselves_a_mapping_or_nothing() -> None:
    resources = Resources(cores=2)
    assert Resources.of(resources) is resources
    assert Resources.of({"cores": 2}) == resources
    assert Resources.of(None) is None
    with pytest.raises(TypeError, match="unknown name 'colour'; valid names: cores, gpus, memory"):
        Resources.of({"colour": 2})
    for wrong in (3, "2 cores", [("cores", 2)]):
        with pytest.raises(TypeError, match="resources must be a Resources or a dict"):
            Resources.of(wrong)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_stored_as_builtin_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    found = Resources(
        cores=numpy.int64(2), gpus=numpy.int32(1), ranks=numpy.uint8(3), memory=numpy.int64(100)
    )
    assert found == Resources(cores=2, gpus=1, ranks=3, memory=100)
    assert {type(each) for each in (found.cores, found.gpus, found.ranks, found.memory)} == {int}
    assert type(Resources(cores=numpy.float32(0.5)).cores) is float
    assert seconds("timeout", numpy.float32(1.5)) == 1.5
    with pytest.raises(TypeError, match="ranks"):
        Resources(ranks=numpy.float32(1.5))
