"""The canonical states and the mapping of backends' own states."""

from __future__ import annotations

import enum
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody import states
from rhapsody.states import StateMapper, TasksMainStates


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    """Leaves the registry as it was."""
    tables, own = dict(states._tables), dict(states._own)
    yield
    states._tables.clear()
    states._tables.update(tables)
    states._own.clear()
    states._own.update(own)


def register(backend: Any = "queueing", **changes: Any) -> StateMapper:
    given = {
        "done_state": "FINISHED",
        "failed_state": "ERROR",
        "canceled_state": "REMOVED",
        "running_state": "ACTIVE",
    }
    StateMapper.register_backend_tasks_states(backend, **(given | changes))
    return StateMapper(backend)


# Canonical states.


def test_a_canonical_state_is_its_own_name_as_a_string() -> None:
    names = ["PENDING", "SUBMITTED", "RUNNING", "DONE", "FAILED", "CANCELED"]
    assert [state.name for state in TasksMainStates] == names
    for state in TasksMainStates:
        assert state == state.name == state.value == str(state) == f"{state}"
        assert isinstance(state, str)
        assert hash(state) == hash(state.name)


def test_a_canonical_state_survives_pickling_as_the_same_member() -> None:
    for state in TasksMainStates:
        assert pickle.loads(pickle.dumps(state)) is state


# Finding a mapper.


@pytest.mark.parametrize("name", ["noop", "local", "NOOP", "Local"])
def test_noop_and_local_are_registered_with_the_canonical_states(name: str) -> None:
    mapper = StateMapper(name)
    assert mapper.terminal_states == ("DONE", "FAILED", "CANCELED")
    assert all(mapper.to_main_state(state.name) is state for state in TasksMainStates)
    assert all(mapper.get_backend_state(state) == state.name for state in TasksMainStates)


@pytest.mark.parametrize("name", ["my_backend", "MY-BACKEND", "My_Backend", " my-backend "])
def test_names_are_compared_without_case_and_with_dash_and_underscore_alike(name: str) -> None:
    register("My-Backend")
    assert StateMapper(name).DONE == "FINISHED"


def test_a_backend_object_or_class_is_known_by_its_name_attribute() -> None:
    class Queueing:
        name = "queueing"

    register("queueing")
    assert StateMapper(Queueing).DONE == StateMapper(Queueing()).DONE == "FINISHED"


def test_an_object_that_was_given_its_name_is_known_by_its_class() -> None:
    class Queueing:
        name = "queueing"
        name_is_given = False

    register("queueing")
    register("other", done_state="OTHER")
    one = Queueing()
    one.name = "other"
    assert StateMapper(one).DONE == "OTHER"
    one.name_is_given = True
    assert StateMapper(one).DONE == "FINISHED"


@pytest.mark.parametrize("name", ["", None, 7])
def test_a_backend_without_a_usable_name_is_known_by_its_class(name: Any) -> None:
    class Queueing:
        def __init__(self) -> None:
            self.name = name

    register(Queueing())
    assert StateMapper(Queueing).backend == "queueing"
    assert StateMapper("queueing").RUNNING == "ACTIVE"


def test_an_unregistered_backend_is_an_error_that_names_what_is_registered() -> None:
    register("queueing")
    for unknown in ("qeueing", object(), object, None, 42):
        with pytest.raises(ValueError, match=r"local.*noop.*queueing") as raised:
            StateMapper(unknown)
        assert "register_backend_tasks_states" in str(raised.value)


def test_an_empty_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty name"):
        StateMapper(" ")


def test_an_unregistered_backend_that_says_so_has_the_canonical_states() -> None:
    class Small:
        canonical_states = True

    for backend in (Small, Small()):
        assert StateMapper(backend).to_main_state("RUNNING") is TasksMainStates.RUNNING
    register(Small, done_state="OK")
    assert StateMapper(Small()).DONE == "OK"


def test_a_truthy_attribute_by_accident_does_not_count_as_saying_so() -> None:
    class Anything:
        def __getattr__(self, name: str) -> str:
            return "x"

    with pytest.raises(ValueError, match="no states are registered"):
        StateMapper(Anything())


# Translating.


def test_attributes_give_the_native_states_and_no_others_exist() -> None:
    mapper = register(pending="QUEUED")
    assert (mapper.DONE, mapper.FAILED, mapper.CANCELED, mapper.RUNNING) == (
        "FINISHED",
        "ERROR",
        "REMOVED",
        "ACTIVE",
    )
    for name in ("PENDING", "SUBMITTED", "FINISHED", "done"):
        with pytest.raises(AttributeError, match=name):
            getattr(mapper, name)


def test_terminal_states_come_in_the_order_done_failed_canceled() -> None:
    assert register().terminal_states == ("FINISHED", "ERROR", "REMOVED")
    several = register(failed_state=["ERROR", "NODE_FAIL"], canceled="WITHDRAWN")
    assert several.terminal_states == ("FINISHED", "ERROR", "NODE_FAIL", "REMOVED", "WITHDRAWN")


@pytest.mark.parametrize("unknown", ["DONE", "finished", "", None, 3, ["FINISHED"], {}])
def test_an_unknown_native_state_is_an_error_that_names_the_known_ones(unknown: Any) -> None:
    with pytest.raises(ValueError, match="FINISHED, ERROR, REMOVED, ACTIVE") as raised:
        register().to_main_state(unknown)
    assert repr(unknown) in str(raised.value)


def test_a_backend_state_is_found_by_member_or_by_name_in_any_case() -> None:
    mapper = register()
    assert mapper.get_backend_state(TasksMainStates.DONE) == "FINISHED"
    assert mapper.get_backend_state("DONE") == mapper.get_backend_state("done") == "FINISHED"


def test_asking_for_a_state_that_has_no_native_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="no native state for PENDING, only for DONE"):
        register().get_backend_state("PENDING")
    for wrong in ("FINISHED", "", None, 1):
        with pytest.raises(ValueError, match="unknown canonical state"):
            register().get_backend_state(wrong)  # type: ignore[arg-type]


def test_many_native_states_mean_one_canonical_and_the_first_is_the_way_back() -> None:
    mapper = register(
        running_state=["ACTIVE", "STAGING_OUT"],
        SUBMITTED=("HELD", "QUEUED"),
        Pending="NEW",
        pending="WAITING",
        done="OK",
    )
    assert mapper.to_main_state("STAGING_OUT") is TasksMainStates.RUNNING
    assert mapper.RUNNING == mapper.get_backend_state("RUNNING") == "ACTIVE"
    assert mapper.to_main_state("QUEUED") is TasksMainStates.SUBMITTED
    assert mapper.get_backend_state("SUBMITTED") == "HELD"
    assert mapper.to_main_state("WAITING") is TasksMainStates.PENDING
    assert mapper.get_backend_state("PENDING") == "NEW"
    assert mapper.to_main_state("OK") is TasksMainStates.DONE
    assert mapper.DONE == "FINISHED"


def test_native_states_may_be_enum_members() -> None:
    class Job(enum.Enum):
        OK = 0
        BAD = 1
        GONE = 2
        GOING = 3

    mapper = register(
        done_state=Job.OK, failed_state=Job.BAD, canceled_state=Job.GONE, running_state=Job.GOING
    )
    assert mapper.DONE is Job.OK
    assert mapper.to_main_state(Job.GOING) is TasksMainStates.RUNNING
    with pytest.raises(ValueError, match="no native state 3"):
        mapper.to_main_state(3)


def test_the_native_mapping_is_for_reading_only() -> None:
    mapper = register()
    assert mapper.native["ACTIVE"] is TasksMainStates.RUNNING
    with pytest.raises(TypeError):
        mapper.native["X"] = TasksMainStates.DONE  # type: ignore[index]


words = st.lists(st.text(min_size=1, max_size=4), unique=True, min_size=6, max_size=30)


@given(words, st.randoms(use_true_random=False))
def test_every_registered_native_state_translates_and_comes_back_as_the_preferred(
    names: list[str], random: Any
) -> None:
    mains = list(TasksMainStates)
    table: dict[TasksMainStates, list[str]] = {main: [names[i]] for i, main in enumerate(mains)}
    for name in names[len(mains) :]:
        table[random.choice(mains)].append(name)
    mapper = register(
        done_state=table[TasksMainStates.DONE],
        failed_state=table[TasksMainStates.FAILED],
        canceled_state=table[TasksMainStates.CANCELED],
        running_state=table[TasksMainStates.RUNNING],
        pending=table[TasksMainStates.PENDING],
        submitted=table[TasksMainStates.SUBMITTED],
    )
    for main, natives in table.items():
        assert mapper.get_backend_state(main) == natives[0]
        for native in natives:
            assert mapper.to_main_state(native) is mapper.native[native] is main
    ends = {word for word in names if mapper.native[word] in ("DONE", "FAILED", "CANCELED")}
    assert set(mapper.terminal_states) == ends


# Registering.


def test_registering_again_replaces_and_leaves_existing_mappers_alone() -> None:
    before = register()
    after = register(done_state="COMPLETE")
    assert (before.DONE, after.DONE) == ("FINISHED", "COMPLETE")
    with pytest.raises(ValueError, match="FINISHED"):
        after.to_main_state("FINISHED")


def test_registering_with_defaults_gives_the_canonical_states() -> None:
    class Fresh:
        pass

    StateMapper.register_backend_tasks_states_with_defaults(backend=Fresh())
    assert StateMapper("fresh").get_backend_state("SUBMITTED") == "SUBMITTED"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"failed_state": "FINISHED"}, "cannot stand for both"),
        ({"lost": "GONE"}, "unknown canonical state 'lost'"),
        ({"done_state": []}, "needs at least one native state for DONE"),
        ({"done_state": None}, "got None for DONE"),
        ({"done_state": ""}, "got '' for DONE"),
        ({"done_state": {"a": 1}}, "must be a string or an enum member"),
    ],
)
def test_a_wrong_registration_is_an_error_and_changes_nothing(
    changes: dict[str, Any], complaint: str
) -> None:
    register()
    with pytest.raises(ValueError, match=complaint):
        register(**changes)
    assert StateMapper("queueing").DONE == "FINISHED"


def test_the_older_spelling_registers_task_states_with_the_same_keywords() -> None:
    StateMapper.register_backend_states(
        backend="older",
        done_state="D",
        failed_state="F",
        canceled_state="C",
        running_state="R",
        pending="P",
    )
    mapper = StateMapper("OLDER")
    assert mapper.terminal_states == ("D", "F", "C")
    assert mapper.to_main_state("P") is TasksMainStates.PENDING
    assert mapper.backend_states == {}
    with pytest.raises(TypeError, match="done_state"):
        StateMapper.register_backend_states("older", running_state="R")


def test_the_older_spelling_takes_task_states_in_their_order_too() -> None:
    StateMapper.register_backend_states("older", "D", "F", "C", "R", pending="P")
    mapper = StateMapper("older")
    assert (mapper.DONE, mapper.FAILED, mapper.CANCELED, mapper.RUNNING) == ("D", "F", "C", "R")
    assert mapper.to_main_state("P") is TasksMainStates.PENDING
    with pytest.raises(TypeError, match="canceled_state"):
        StateMapper.register_backend_states("older", "D", "F")
    with pytest.raises(TypeError, match="got 'D'"):
        StateMapper.register_backend_states("older", "D", initialized_state="I")


def test_the_older_spelling_registers_the_backends_own_states_by_their_keywords() -> None:
    register()
    StateMapper.register_backend_states(
        "queueing", initialized_state="UP", running_state="BUSY", shutdown_state="DOWN"
    )
    mapper = StateMapper("queueing")
    assert mapper.backend_states == {"initialized": "UP", "running": "BUSY", "shutdown": "DOWN"}
    assert mapper.RUNNING == "ACTIVE"


def test_mixing_the_two_kinds_of_states_is_an_error() -> None:
    with pytest.raises(TypeError, match="keywords initialized_state"):
        StateMapper.register_backend_states("queueing", done_state="D", shutdown_state="DOWN")


def test_the_older_defaults_register_own_states_and_keep_task_states_that_are_there() -> None:
    register()
    StateMapper.register_backend_states_with_defaults(backend="queueing")
    StateMapper.register_backend_states_with_defaults(backend="unheard")
    assert StateMapper("queueing").DONE == "FINISHED"
    assert StateMapper("unheard").DONE == "DONE"
    assert StateMapper("unheard").backend_states["shutdown"] == "shutdown"


def test_registering_from_many_threads_loses_nothing() -> None:
    together = threading.Barrier(8)

    def work(number: int) -> None:
        together.wait(timeout=10)
        for i in range(50):
            register(f"b{number}-{i}", done_state=f"D{number}-{i}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in threads)
    for n in range(8):
        for i in range(50):
            mapper = StateMapper(f"b{n}_{i}")
            assert mapper.to_main_state(f"D{n}-{i}") is TasksMainStates.DONE


def test_a_mapper_says_whose_it_is() -> None:
    assert repr(register()) == "<StateMapper 'queueing'>"
