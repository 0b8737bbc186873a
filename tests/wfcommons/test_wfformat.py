"""WfCommons instances, read and written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody_wfcommons import (
    Instance,
    InstanceError,
    RecordedFile,
    RecordedMachine,
    RecordedTask,
    dumps,
    loads,
    parents_first,
    read,
    write,
)
from tests.wfcommons.instances import LARGE, check, large, older, recent, save


def test_an_instance_of_today(tmp_path: Path) -> None:
    instance = read(save(tmp_path / "diamond.json", recent()))
    assert (instance.name, instance.makespan) == ("diamond", 3.5)
    assert instance.made_by == ("Pegasus", "4.9")
    assert [task.id for task in instance.tasks] == ["a", "b", "c", "d"]
    assert [task.runtime for task in instance.tasks] == [2.0, 0.5, 1.0, 0.0]
    last = instance.tasks[-1]
    assert (last.name, last.parents, last.cores) == ("step_d", ("b", "c"), 1)
    assert last.inputs == (RecordedFile("b.out", 200), RecordedFile("c.out", 0))
    assert last.machines == ("node-1",)
    assert instance.children() == {"a": ("b", "c"), "b": ("d",), "c": ("d",), "d": ()}
    (machine,) = instance.machines
    assert machine == RecordedMachine("node-1", "linux", memory=2048, cores=2, speed=2400)


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2", "1.3", "1.4"])
def test_older_instances_say_the_same(tmp_path: Path, version: str) -> None:
    old = read(save(tmp_path / "old.json", older(version)))
    new = read(save(tmp_path / "new.json", recent()))
    assert [task.id for task in old.tasks] == [task.id for task in new.tasks]
    for mine, other in zip(old.tasks, new.tasks, strict=True):
        assert (mine.parents, mine.runtime) == (other.parents, other.runtime)
        assert (mine.inputs, mine.outputs) == (other.inputs, other.outputs)
        assert mine.machines == other.machines
    assert [task.cores for task in old.tasks] == [1, 1, 2, 1]
    assert (old.made_by, old.makespan) == (new.made_by, new.makespan)
    assert [machine.cores for machine in old.machines] == [2]
    assert [machine.memory for machine in old.machines] == [2 if version == "1.4" else 2000]


def test_parents_of_older_instances_are_names_ids_or_both_put_together(tmp_path: Path) -> None:
    content = older("1.4")
    for number, task in enumerate(content["workflow"]["tasks"]):
        task["id"] = f"ID{number}"
        task["parents"] = {"a": [], "b": ["a"], "c": ["ID0"], "d": ["b_ID1", "c"]}[task["name"]]
    instance = read(save(tmp_path / "old.json", content))
    assert [task.id for task in instance.tasks] == ["a_ID0", "b_ID1", "c_ID2", "d_ID3"]
    assert [task.parents for task in instance.tasks][1:] == [
        ("a_ID0",), ("a_ID0",), ("b_ID1", "c_ID2"),
    ]  # fmt: skip


def test_a_parent_that_only_names_its_child_is_one(tmp_path: Path) -> None:
    content = recent()
    content["workflow"]["specification"]["tasks"][3]["parents"] = []
    instance = read(save(tmp_path / "diamond.json", content))
    assert instance.tasks[3].parents == ("b", "c")


def test_a_workflow_that_has_not_run_has_no_times(tmp_path: Path) -> None:
    content = recent()
    del content["workflow"]["execution"]
    instance = read(save(tmp_path / "diamond.json", content))
    assert {task.runtime for task in instance.tasks} == {None}
    assert (instance.makespan, instance.machines) == (None, ())
    assert "execution" not in json.loads(dumps(instance))["workflow"]


TASKS = "workflow.specification.tasks"
RAN = "workflow.execution.tasks"
VERSIONS = '"1.0", "1.1", "1.2", "1.3", "1.4", "1.5"'


def changed(*path: str | int, to: object) -> Callable[[Any], None]:
    """Return a function that puts a value into an instance of 1.5."""

    def change(content: Any) -> None:
        for part in path[:-1]:
            content = content[part]
        content[path[-1]] = to

    return change


def without(*path: str | int) -> Callable[[Any], None]:
    """Return a function that removes a value from an instance of 1.5."""

    def change(content: Any) -> None:
        for part in path[:-1]:
            content = content[part]
        del content[path[-1]]

    return change


def in_task(number: int, member: str, to: object) -> Callable[[Any], None]:
    return changed("workflow", "specification", "tasks", number, member, to=to)


def in_run(number: int, member: str, to: object) -> Callable[[Any], None]:
    return changed("workflow", "execution", "tasks", number, member, to=to)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            in_task(3, "parents", ["b", "step_c"]),
            f'{TASKS}[3].parents[1]: unknown task "step_c"',
        ),
        (
            in_task(3, "parents", ["b", "cc"]),
            f"{TASKS}[3].parents[1]: unknown task \"cc\"; did you mean 'c'?",
        ),
        (
            in_task(0, "children", ["x"]),
            f'{TASKS}[0].children[0]: unknown task "x"',
        ),
        (
            in_task(0, "parents", ["a"]),
            f"{TASKS}[0].parents[0]: tasks depend on each other in a cycle: a -> a",
        ),
        (in_task(3, "id", "a"), f'{TASKS}[3].id: the id "a" is already used by {TASKS}[0].id'),
        (in_task(3, "id", ""), f'{TASKS}[3].id: must be a non-empty string, got ""'),
        (in_task(3, "parents", "b"), f'{TASKS}[3].parents: must be a list, got "b"'),
        (in_task(3, "parents", [7]), f"{TASKS}[3].parents[0]: must be a non-empty string,"),
        (
            in_run(1, "runtimeInSeconds", -0.5),
            f"{RAN}[1].runtimeInSeconds: must be a number of 0 or more, got -0.5",
        ),
        (in_run(1, "runtimeInSeconds", "3"), f"{RAN}[1].runtimeInSeconds: must be a number"),
        (in_run(1, "runtimeInSeconds", True), f"{RAN}[1].runtimeInSeconds: must be a number"),
        (in_run(1, "runtimeInSeconds", 10**400), f"{RAN}[1].runtimeInSeconds: must be a number"),
        (in_run(1, "coreCount", 0), f"{RAN}[1].coreCount: must be a number of 1 or more"),
        (in_run(1, "id", "x"), f'{RAN}[1].id: unknown task "x"'),
        (in_run(1, "id", "a"), f'{RAN}[1].id: the id "a" is already used by {RAN}[0].id'),
        (
            without("workflow", "execution", "tasks", 2, "runtimeInSeconds"),
            f"{RAN}[2]: the member 'runtimeInSeconds' is missing; the object has 'id', 'machines'",
        ),
        (without("workflow"), "top level: the member 'workflow' is missing; the object has 'name'"),
        (
            without("workflow", "specification"),
            "workflow: the member 'specification' or 'tasks' or 'jobs' is missing; the object has "
            "'execution'",
        ),
        (
            without("workflow", "specification", "files", 0, "sizeInBytes"),
            "workflow.specification.files[0]: the member 'sizeInBytes' is missing",
        ),
        (
            changed("workflow", "specification", "files", 0, "sizeInBytes", to=1.5),
            "workflow.specification.files[0].sizeInBytes: must be a whole number of 0 or "
            "more, got 1.5",
        ),
        (changed("workflow", "specification", "tasks", to=[]), f"{TASKS}: must be a non-empty"),
        (
            in_run(2, "runtimeInSeconds", None),
            f"{RAN}[2]: the member 'runtimeInSeconds' is null\n",
        ),
        (in_task(3, "name", "\ud800"), f'{TASKS}[3].name: must be a string of valid Unicode'),
        (changed("workflow", to=None), "top level: the member 'workflow' is null\n"),
        (changed("workflow", to=[]), "workflow: must be an object, got []"),
        (
            changed("schemaVersion", to="2.0"),
            f'schemaVersion: must be one of the strings {VERSIONS}, got "2.0"',
        ),
        (
            changed("schemaVersion", to=1.5),
            f"schemaVersion: must be one of the strings {VERSIONS}, got 1.5",
        ),
    ],
)  # fmt: skip
def test_an_instance_that_is_malformed(
    tmp_path: Path, change: Callable[[Any], None], said: str
) -> None:
    content = recent()
    change(content)
    path = save(tmp_path / "diamond.json", content)
    with pytest.raises(InstanceError) as caught:
        read(path)
    assert f"{caught.value}\n".startswith(f"{path}: {said}")


def test_a_dependency_cycle_is_reported_in_order(tmp_path: Path) -> None:
    content = recent()
    del content["workflow"]["specification"]["tasks"][3]["children"]
    in_task(0, "parents", ["d"])(content)
    with pytest.raises(InstanceError) as caught:
        read(save(tmp_path / "diamond.json", content))
    said = str(caught.value)
    assert any(
        way in said
        for way in (
            "a -> b -> d -> a",
            "a -> c -> d -> a",
            "d -> a -> b -> d",
            "d -> a -> c -> d",
            "b -> d -> a -> b",
            "c -> d -> a -> c",
        )
    )
    assert f"diamond.json: {TASKS}[" in said


def test_older_instances_that_are_malformed(tmp_path: Path) -> None:
    def said(change: Callable[[Any], None], version: str = "1.3") -> str:
        content = older(version)
        change(content)
        with pytest.raises(InstanceError) as caught:
            read(save(tmp_path / "old.json", content))
        return str(caught.value).removeprefix(f"{tmp_path}/old.json: ")

    flat = ("workflow", "tasks")
    assert said(changed(*flat, 3, "parents", to=["e"])).startswith("workflow.tasks[3].parents[0]: ")
    assert said(changed(*flat, 1, "runtime", to=-1)).startswith(
        "workflow.tasks[1].runtime: must be a numb"
    )
    assert said(changed(*flat, 1, "name", to="a")).startswith(
        'workflow.tasks[1]: the task "a" is defined twice, first at workflow.tasks[0]'
    )
    assert said(changed("workflow", "jobs", 0, "files", 1, "link", to="both"), "1.2") == (
        'workflow.jobs[0].files[1].link: must be one of the strings "input", "output", got "both"'
    )

    def two_of_a_name(content: Any) -> None:
        for number, task in enumerate(content["workflow"]["tasks"]):
            task.update(name="same", id=f"ID{number}", parents=["same"] * (number == 3))

    assert said(two_of_a_name) == (
        'workflow.tasks[3].parents[0]: "same" is ambiguous: write same_ID0 or same_ID1'
    )


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xff", b"PK\3\4"])
def test_a_file_that_is_no_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "diamond.json"
    path.write_bytes(content)
    with pytest.raises(InstanceError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: not valid JSON: ")
    assert str(caught.value).endswith("; a WfCommons instance is a JSON file")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "lists and objects are nested too deeply"),
        (b"9" * 5000, "a number has too many digits"),
    ],
)
def test_json_that_cannot_be_read(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "diamond.json"
    path.write_bytes(content)
    with pytest.raises(InstanceError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: {said}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda each: (
        st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3)
    ),
    max_leaves=10,
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The ways to all that stands in a value."""
    found = [path] if path else []
    parts: dict[Any, Any] = dict(enumerate(value)) if isinstance(value, list) else value
    for name in parts if isinstance(parts, dict) else ():
        found += places(parts[name], (*path, name))
    return found


@given(data=st.data())
def test_whatever_stands_anywhere_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content: Any = data.draw(st.sampled_from([recent(), *map(older, ("1.2", "1.4"))]))
    changed(*data.draw(st.sampled_from(places(content))), to=data.draw(JSON))(content)
    path = save(tmp_path_factory.mktemp("any") / "one.json", content)
    try:
        instance = read(path)
    except InstanceError as error:
        said = str(error)
    else:
        check(json.loads(dumps(instance)))
        said = f"{path}: "
    assert said.startswith(f"{path}: ")


def test_what_is_written_is_an_instance_and_says_the_same(tmp_path: Path) -> None:
    first = read(save(tmp_path / "diamond.json", recent()))
    write(first, tmp_path / "again.json")
    check(json.loads((tmp_path / "again.json").read_text()))
    assert read(tmp_path / "again.json") == first


def test_ids_and_names_are_written_as_the_format_allows_them(tmp_path: Path) -> None:
    files = (RecordedFile("my data.csv", 3), RecordedFile("my_data.csv", 5), RecordedFile("Ä"))
    tasks = (
        RecordedTask("one two", "one\udcff", runtime=1, outputs=files),
        RecordedTask("one_two", "two", ("one two",), runtime=1, inputs=files),
    )
    write(Instance("w", tasks, makespan=2, started="today"), tmp_path / "w.json")
    check(json.loads((tmp_path / "w.json").read_text()))
    one, two = read(tmp_path / "w.json").tasks
    assert (one.id, two.id, two.parents) == ("one_two", "one_two#2", ("one_two",))
    assert (one.name, one.outputs) == ("one?", two.inputs)
    assert [file.size for file in one.outputs] == [3, 5, None]


A = RecordedTask("a", "a", runtime=1.0)


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ((), r"workflow\.specification\.tasks: must be a non-empty list"),
        (
            (replace(A, parents=("b",)),),
            "task 'a' has the parent 'b', which is not in the instance",
        ),
        ((A, A), 'the id "a" is already used by'),
        ((replace(A, id=""),), "id: must be a non-empty string"),
        ((replace(A, parents=("a",)),), "cycle: a -> a"),
        ((replace(A, runtime=math.nan),), "runtimeInSeconds: must be a number of 0 or more"),
        ((replace(A, runtime=-1),), "runtimeInSeconds: must be a number of 0 or more"),
        ((replace(A, cores=0),), "coreCount: must be a number of 1 or more, got 0"),
        ((replace(A, outputs=(RecordedFile("f", -5),)),), "sizeInBytes: must be a number"),
    ],
)
def test_what_would_not_be_read_is_not_written(
    tmp_path: Path, tasks: tuple[RecordedTask, ...], said: str
) -> None:
    path = tmp_path / "w.json"
    path.write_text("what was there")
    with pytest.raises(InstanceError, match=said):
        write(Instance("w", tasks, makespan=2, started="today"), path)
    assert path.read_text() == "what was there"


def test_what_is_written_of_what_was_read_is_the_same_text(tmp_path: Path) -> None:
    text = dumps(read(save(tmp_path / "diamond.json", older())))
    assert dumps(loads(text)) == text
    assert '"coreCount": 2' in text
    assert '"coreCount": 1,' in text  # which stands there as 1.0


def test_parents_come_first_and_all_else_stays_in_its_order() -> None:
    a, b, c = (RecordedTask(name, name) for name in "abc")
    assert parents_first([a, b, c]) == [a, b, c]
    assert parents_first([replace(a, parents=("c",)), b, c])[:2] == [b, c]


@pytest.mark.parametrize("version", LARGE)
def test_large_instances_of_all_versions_are_read_and_written(tmp_path: Path, version: str) -> None:
    instance = read(save(tmp_path / "mosaic.json", large(version)))
    assert len(instance.tasks) == 61
    write(instance, tmp_path / "again.json")
    check(json.loads((tmp_path / "again.json").read_text()))
    assert read(tmp_path / "again.json") == instance
