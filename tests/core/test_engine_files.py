"""Files for tasks: origins, links, promised outputs, life of sandboxes (C8, C7.16, C7.17)."""

# ruff: noqa: ASYNC240 - these tests are about files, and have the loop for themselves

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import stat
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import pytest_asyncio

from rhapsody.backends.base import Capabilities, ManagedBackend
from rhapsody.data import InputFile, OutputFile, link_all, link_into
from rhapsody.engine import files
from rhapsody.engine.files import leads_into
from rhapsody.engine.sandboxes import Fate, Sandbox
from rhapsody.errors import CapabilityError, DataError
from rhapsody.task import Outcome, TaskDescription

pytestmark = pytest.mark.asyncio

FULL = Capabilities(files=True, sandboxes=True, shared_file_system=True)


class Stager(files.Stager):
    """A stager that is closed when its test ends."""

    made: ClassVar[list[Stager]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made.append(self)


@pytest_asyncio.fixture(autouse=True)
async def _closed() -> AsyncIterator[None]:
    yield
    while Stager.made:
        await Stager.made.pop().close()


class Linking(ManagedBackend):
    """A backend that links as the local one does, and tells what it was asked."""

    def __init__(self, name: str = "linking", capabilities: Capabilities = FULL) -> None:
        super().__init__()
        self.name = name
        self.capabilities = capabilities
        self.explicit: list[dict[str, Any]] = []
        self.implicit: list[tuple[str, str]] = []

    def link_explicit_data_deps(
        self,
        src_task: Mapping[str, Any] | None = None,
        dst_task: TaskDescription | None = None,
        file_name: str | None = None,
        file_path: str | None = None,
    ) -> None:
        assert dst_task is not None
        assert file_name is not None
        self.explicit.append({"src": src_task, "name": file_name, "path": file_path})
        path = file_path
        if src_task is not None:
            assert file_path is None
            assert file_name in src_task["metadata"]["output_files"]
            path = os.path.join(src_task["sandbox"], file_name)
        assert path is not None
        if self.capabilities.shared_file_system:
            link_into(dst_task["sandbox"], file_name, path)

    def link_implicit_data_deps(self, src_task: Mapping[str, Any], dst_task: Any) -> None:
        self.implicit.append((src_task["uid"], dst_task["uid"]))
        link_all(src_task["sandbox"], dst_task["sandbox"])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, empty."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / ".rhapsody" / "engine"


@pytest.fixture
def backend() -> Linking:
    return Linking()


def describe(stager: Stager, uid: str = "e.task.000002.1", name: str = "reader") -> TaskDescription:
    return {
        "uid": uid,
        "name": name,
        "function": None,
        "executable": "true",
        "args": (),
        "kwargs": {},
        "is_service": False,
        "task_backend_specific_kwargs": {},
        "metadata": {"dependencies": [], "input_files": [], "output_files": []},
        "sandbox": stager.sandbox_path(uid),
    }


def ended(
    stager: Stager,
    uid: str = "e.task.000001.1",
    *,
    writes: Mapping[str, str] | None = None,
    declares: bool = True,
    backend: str | None = "linking",
    succeeded: bool = True,
    result_is_path: bool = False,
) -> Outcome:
    """What is left of a task that wrote files, as the engine makes it."""
    task = describe(stager, uid)
    sandbox = Path(task["sandbox"])
    sandbox.mkdir(parents=True, exist_ok=True)
    for name, text in (writes or {}).items():
        (sandbox / name).write_text(text)
    outputs = [OutputFile(name) for name in writes or {}] if declares else []
    return Outcome(
        uid=uid,
        sandbox=str(sandbox),
        output_files=tuple(file.filename for file in outputs),
        backend=backend,
        keeper=stager.keep(task, succeeded, outputs, result_is_path),
    )


async def link(
    stager: Stager,
    task: TaskDescription,
    backend: Linking,
    inputs: list[InputFile] | None = None,
    sources: list[Outcome] | None = None,
    *,
    outputs: list[OutputFile] | None = None,
    implicit: bool = False,
) -> Path:
    async with asyncio.timeout(20):
        await stager.link(
            task, backend, inputs or [], outputs or [], sources or [], implicit=implicit
        )
    return Path(task["sandbox"])


async def gone(path: str | None) -> None:
    """Waits until the thread has removed a sandbox, without taking the loop."""
    assert path is not None

    def wait() -> None:
        tick = threading.Event()
        for _ in range(2000):
            if not os.path.exists(path):
                return
            tick.wait(0.005)
        raise AssertionError(f"{path} is still there")

    await asyncio.to_thread(wait)


def removers() -> int:
    return sum(thread.name == "rhapsody-sandboxes" for thread in threading.enumerate())


# Paths and construction.


async def test_a_sandbox_is_the_uid_in_the_work_dir_and_nothing_is_made(work: Path) -> None:
    stager = Stager(work)
    assert stager.sandbox_path("e.task.000001.1") == str(work / "e.task.000001.1")
    assert not work.parent.exists()
    await stager.close()
    assert not work.parent.exists()


@pytest.mark.parametrize("uid", ["", ".", "..", "../x", "/tmp/x", "a/b", "a\0b", ".fetched"])
async def test_a_uid_that_leaves_the_work_dir_is_refused(work: Path, uid: str) -> None:
    with pytest.raises(DataError):
        Stager(work).sandbox_path(uid)


async def test_an_unknown_rule_for_keeping_is_an_error_that_names_the_known_ones(
    work: Path,
) -> None:
    with pytest.raises(ValueError, match="failed, all, none, got 'some'"):
        Stager(work, "some")


async def test_a_task_gets_its_file_objects_with_paths_in_its_sandbox(work: Path) -> None:
    stager = Stager(work)
    sandbox = stager.sandbox_path("u")
    assert stager.bind(InputFile("https://example.org/x.txt"), sandbox).filepath == work / "u/x.txt"
    assert os.fspath(stager.bind(OutputFile("y.txt"), sandbox)) == str(work / "u" / "y.txt")


# Where an input comes from.


async def test_a_file_on_disk_is_linked_by_its_whole_path(
    work: Path, backend: Linking, here: Path
) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "in.txt").write_text("disk")
    stager = Stager(work)
    sandbox = await link(stager, describe(stager), backend, [InputFile("sub/in.txt")])
    assert backend.explicit == [{"src": None, "name": "in.txt", "path": str(here / "sub/in.txt")}]
    assert (sandbox / "in.txt").read_text() == "disk"


async def test_a_relative_file_is_the_one_of_the_directory_it_was_named_in(
    work: Path, backend: Linking, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "in.txt").write_text("there")
    later = InputFile("later.txt")
    file = InputFile("in.txt")
    (here / "later.txt").write_text("later")
    monkeypatch.chdir(tmp_path)
    stager = Stager(work)
    sandbox = await link(stager, describe(stager), backend, [file, later])
    assert (sandbox / "in.txt").read_text() == "there"
    assert (sandbox / "later.txt").read_text() == "later"


async def test_the_outputs_of_dependencies_come_before_the_disk(
    work: Path, backend: Linking, here: Path
) -> None:
    (here / "x.txt").write_text("stale")
    stager = Stager(work)
    source = ended(stager, writes={"x.txt": "fresh"})
    sandbox = await link(stager, describe(stager), backend, [InputFile("x.txt")], [source])
    assert (sandbox / "x.txt").read_text() == "fresh"
    (call,) = backend.explicit
    assert call["path"] is None
    assert call["src"] == {
        "uid": source.uid,
        "sandbox": source.sandbox,
        "metadata": {"dependencies": [], "input_files": [], "output_files": ["x.txt"]},
    }


async def test_a_path_in_front_of_a_dependencys_file_is_left_out_as_it_is_for_outputs(
    work: Path, backend: Linking
) -> None:
    stager = Stager(work)
    source = ended(stager, writes={"x.txt": "fresh"})
    sandbox = await link(stager, describe(stager), backend, [InputFile("out/x.txt")], [source])
    assert (sandbox / "x.txt").read_text() == "fresh"


async def test_an_absolute_path_means_itself_whatever_dependencies_write(
    work: Path, backend: Linking, here: Path
) -> None:
    (here / "x.txt").write_text("mine")
    stager = Stager(work)
    source = ended(stager, writes={"x.txt": "theirs"})
    sandbox = await link(stager, describe(stager), backend, [InputFile(here / "x.txt")], [source])
    assert (sandbox / "x.txt").read_text() == "mine"


async def test_two_dependencies_that_write_an_input_are_an_error_that_names_both(
    work: Path, backend: Linking
) -> None:
    stager = Stager(work)
    one = ended(stager, "e.task.000001.1", writes={"x.txt": "1"})
    two = ended(stager, "e.task.000007.2", writes={"x.txt": "2"})
    with pytest.raises(DataError, match=r"'x\.txt'.*000001\.1 and e\.task\.000007\.2"):
        await link(stager, describe(stager), backend, [InputFile("x.txt")], [one, two])
    assert backend.explicit == []


async def test_the_same_dependency_twice_is_one(work: Path, backend: Linking) -> None:
    stager = Stager(work)
    source = ended(stager, writes={"x.txt": "1"})
    file = InputFile("x.txt")
    await link(stager, describe(stager), backend, [file, file], [source, source])
    assert len(backend.explicit) == 1


async def test_a_missing_input_is_an_error_that_says_where_it_was_looked_for(
    work: Path, backend: Linking, here: Path
) -> None:
    stager = Stager(work)
    source = ended(stager, writes={"y.txt": "1"})
    with pytest.raises(DataError, match=r"missing input file 'x\.txt'") as raised:
        await link(stager, describe(stager), backend, [InputFile("x.txt")], [source])
    text = str(raised.value)
    assert "'reader'" in text
    assert str(here / "x.txt") in text
    assert "pass the future" in text


async def test_a_local_file_that_vanished_meanwhile_is_missing(
    work: Path, backend: Linking, here: Path
) -> None:
    (here / "x.txt").write_text("1")
    file = InputFile(here / "x.txt")
    (here / "x.txt").unlink()
    stager = Stager(work)
    with pytest.raises(DataError, match="missing input file"):
        await link(stager, describe(stager), backend, [file])


async def test_two_inputs_of_one_name_are_an_error_that_names_both(
    work: Path, backend: Linking, here: Path
) -> None:
    for name in ("a", "b"):
        (here / name).mkdir()
        (here / name / "x.txt").write_text(name)
    stager = Stager(work)
    with pytest.raises(DataError, match=r"two inputs called 'x\.txt': .*a/x\.txt.*b/x\.txt"):
        await link(stager, describe(stager), backend, [InputFile("a/x.txt"), InputFile("b/x.txt")])


# Backends that cannot, and files between backends.


async def test_inputs_on_a_backend_that_links_no_files_are_refused_before_submission(
    work: Path, here: Path
) -> None:
    (here / "x.txt").write_text("1")
    able, unable = Linking("able"), Linking("unable", Capabilities(sandboxes=True))
    stager = Stager(work, backends={"able": able, "unable": unable})
    with pytest.raises(CapabilityError, match=r"'unable' cannot link files.*such as able"):
        await link(stager, describe(stager), unable, [InputFile("x.txt")])
    assert unable.explicit == []


async def test_outputs_need_a_sandbox_and_nothing_else(work: Path) -> None:
    stager = Stager(work)
    boxed = Linking("boxed", Capabilities(sandboxes=True))
    await link(stager, describe(stager), boxed, outputs=[OutputFile("x")])
    bare = Linking("bare", Capabilities())
    with pytest.raises(CapabilityError, match="such as local"):
        await link(stager, describe(stager), bare, outputs=[OutputFile("x")])


async def test_a_file_of_another_backend_that_can_be_seen_is_handed_over_by_its_path(
    work: Path,
) -> None:
    here, there = Linking("here"), Linking("there")
    stager = Stager(work, backends={"here": here, "there": there})
    source = ended(stager, writes={"x.txt": "1"}, backend="there")
    await link(stager, describe(stager), here, [InputFile("x.txt")], [source])
    path = os.path.join(source.sandbox or "", "x.txt")
    assert here.explicit == [{"src": None, "name": "x.txt", "path": path}]


async def test_a_file_of_the_same_backend_under_another_name_needs_no_detour(work: Path) -> None:
    backend = Linking("dask", Capabilities(files=True, sandboxes=True))
    stager = Stager(work, backends={"dask-2": backend})
    source = Outcome("u.1", sandbox="/far/u.1", output_files=("x.txt",), backend="dask-2")
    await link(stager, describe(stager), backend, [InputFile("x.txt")], [source])
    assert backend.explicit[0]["src"]["uid"] == "u.1"


async def test_a_file_that_cannot_be_reached_from_here_is_a_capability_error(work: Path) -> None:
    far = Linking("far", Capabilities(files=True, sandboxes=True))
    here = Linking("here")
    stager = Stager(work, backends={"far": far, "here": here})
    source = Outcome("u.1", sandbox="/far/u.1", output_files=("x.txt",), backend="far")
    with pytest.raises(CapabilityError, match=r"'x\.txt'.*'far'.*cannot be reached"):
        await link(stager, describe(stager), here, [InputFile("x.txt")], [source])
    assert here.explicit == []


async def test_a_file_that_should_be_reachable_and_is_gone_is_a_data_error(work: Path) -> None:
    stager = Stager(work, backends={"far": Linking("far"), "here": Linking("here")})
    source = Outcome("u.1", sandbox="/far/u.1", output_files=("x.txt",), backend="far")
    with pytest.raises(DataError, match="is gone"):
        await link(stager, describe(stager), Linking("here"), [InputFile("x.txt")], [source])


class Distant(Linking):
    """A backend whose sandboxes cannot be seen from here, but which copies files out."""

    copies = 0

    async def copy_file_out(self, task: Mapping[str, Any], name: str, path: Path) -> None:
        self.copies += 1
        path.write_text(f"{name} of {task['uid']}")


async def test_a_file_of_a_distant_backend_is_copied_once_through_the_work_dir(
    work: Path,
) -> None:
    far = Distant("far", Capabilities(files=True, sandboxes=True))
    here = Linking("here")
    stager = Stager(work, backends={"far": far, "here": here})
    source = Outcome("u.1", sandbox="/far/u.1", output_files=("x.txt",), backend="far")
    boxes = await asyncio.gather(
        *(
            link(stager, describe(stager, f"r.{n}"), here, [InputFile("x.txt")], [source])
            for n in range(3)
        )
    )
    assert [(box / "x.txt").read_text() for box in boxes] == ["x.txt of u.1"] * 3
    assert far.copies == 1
    assert here.explicit[0]["path"].startswith(str(work))
    await stager.close()


# Implicit data (C7.16).


async def test_what_a_dependency_without_declared_outputs_left_is_linked(
    work: Path, backend: Linking
) -> None:
    stager = Stager(work)
    quiet = ended(stager, "q.1", writes={"left over": "1"}, declares=False)
    declared = ended(stager, "d.1", writes={"declared": "2"})
    nothing = Outcome("n.1", backend="linking")
    task = describe(stager)
    sandbox = await link(stager, task, backend, sources=[quiet, declared, nothing], implicit=True)
    assert backend.implicit == [("q.1", task["uid"])]
    assert (sandbox / "left over").read_text() == "1"
    assert not (sandbox / "declared").exists()


async def test_nothing_is_linked_implicitly_unless_asked(work: Path, backend: Linking) -> None:
    stager = Stager(work)
    quiet = ended(stager, writes={"left": "1"}, declares=False)
    await link(stager, describe(stager), backend, sources=[quiet])
    assert backend.implicit == []


async def test_a_declared_input_wins_over_what_is_linked_implicitly(
    work: Path, backend: Linking, here: Path
) -> None:
    (here / "x.txt").write_text("declared")
    stager = Stager(work)
    quiet = ended(stager, writes={"x.txt": "implicit"}, declares=False)
    sandbox = await link(
        stager, describe(stager), backend, [InputFile("x.txt")], [quiet], implicit=True
    )
    assert (sandbox / "x.txt").read_text() == "declared"


async def test_implicit_links_between_backends_need_a_shared_file_system(work: Path) -> None:
    shared = Linking("shared")
    unshared = Linking("unshared", Capabilities(files=True, sandboxes=True))
    bare = Linking("bare", Capabilities())
    stager = Stager(work, backends={b.name: b for b in (shared, unshared, bare)})
    seen = ended(stager, "seen.1", writes={"a": "1"}, declares=False, backend="elsewhere")
    unseen = Outcome("unseen.1", sandbox="/far/unseen.1", backend="elsewhere")
    for backend, expected in ((shared, ["seen.1"]), (unshared, []), (bare, [])):
        await link(stager, describe(stager), backend, sources=[seen, unseen], implicit=True)
        assert [uid for uid, _ in backend.implicit] == expected


# Promised outputs.


async def test_written_outputs_pass_and_missing_ones_are_named(work: Path) -> None:
    stager = Stager(work)
    task = describe(stager)
    outputs = [OutputFile("a.txt"), OutputFile("b.txt"), OutputFile("c.txt"), OutputFile("c.txt")]
    with pytest.raises(DataError, match=r"did not write 'a\.txt', 'b\.txt', 'c\.txt' in"):
        stager.check_outputs(task, outputs)
    sandbox = Path(task["sandbox"])
    sandbox.mkdir(parents=True)
    (sandbox / "a.txt").write_text("")
    (sandbox / "b.txt").symlink_to("a.txt")
    with pytest.raises(DataError, match=r"'reader' promised and did not write 'c\.txt' in"):
        stager.check_outputs(task, outputs)
    stager.check_outputs(task, outputs[:2])
    stager.check_outputs(describe(stager, "other.1"), [])


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../here/secret", "..", "/no/such"])
async def test_an_output_that_is_a_link_out_of_the_sandbox_is_refused(
    work: Path, here: Path, target: str
) -> None:
    (here / "secret").write_text("secret")
    stager = Stager(work)
    task = describe(stager)
    sandbox = Path(task["sandbox"])
    sandbox.mkdir(parents=True)
    (sandbox / "out.txt").symlink_to(target)
    with pytest.raises(DataError, match="link that leaves the sandbox"):
        stager.check_outputs(task, [OutputFile("out.txt")])


async def test_sandboxes_that_are_not_on_this_file_system_are_the_backends_to_check(
    work: Path,
) -> None:
    stager = Stager(work)
    task = describe(stager)
    stager.check_outputs(task, [OutputFile("x")], Linking("far", Capabilities(files=True)))
    with pytest.raises(DataError, match="did not write"):
        stager.check_outputs(task, [OutputFile("x")], Linking("near"))


# How long sandboxes live (C7.17).


@pytest.mark.parametrize("keep", ["failed", "none"])
async def test_a_sandbox_goes_when_nobody_holds_what_is_left_of_its_task(
    work: Path, keep: Literal["failed", "none"]
) -> None:
    stager = Stager(work, keep)
    held = ended(stager, "held.1", writes={"a": "1"})
    dropped = ended(stager, "dropped.1", writes={"a": "1"})
    path = dropped.sandbox
    del dropped
    gc.collect()
    await gone(path)
    assert os.path.exists(held.sandbox or "")
    await stager.close()


async def test_what_a_running_task_reads_stays_until_it_has_ended(
    work: Path, backend: Linking
) -> None:
    stager = Stager(work)
    source = ended(stager, writes={"x.txt": "1"})
    path = source.sandbox
    task = describe(stager)
    sandbox = await link(stager, task, backend, [InputFile("x.txt")], [source])
    del source
    gc.collect()
    # Something that was dropped later is gone: the thread has seen both by then.
    await gone(ended(stager, "marker.1").sandbox)
    assert (sandbox / "x.txt").read_text() == "1"
    keeper = stager.keep(task, True)
    await gone(path)
    del keeper
    await gone(str(sandbox))
    await stager.close()
    assert not work.exists()


async def test_a_sandbox_stays_while_one_that_was_linked_from_it_implicitly_is_held(
    work: Path, backend: Linking
) -> None:
    stager = Stager(work)
    first = ended(stager, "first.1", writes={"x.txt": "1"}, declares=False)
    path = first.sandbox
    task = describe(stager)
    sandbox = await link(stager, task, backend, sources=[first], implicit=True)
    keeper = stager.keep(task, True)
    del first
    gc.collect()
    await gone(ended(stager, "marker.1").sandbox)
    assert (sandbox / "x.txt").read_text() == "1"
    del keeper
    await gone(path)
    await stager.close()


async def test_failed_tasks_keep_their_sandboxes_and_what_they_read(
    work: Path, backend: Linking
) -> None:
    stager = Stager(work, "failed")
    source = ended(stager, writes={"x.txt": "1"})
    path = source.sandbox
    task = describe(stager)
    sandbox = await link(stager, task, backend, [InputFile("x.txt")], [source])
    assert stager.keep(task, False) is None
    del source
    gc.collect()
    await stager.close()
    assert (sandbox / "x.txt").read_text() == "1"
    assert os.path.exists(path or "")


async def test_at_close_held_sandboxes_go_but_those_with_products_stay(work: Path) -> None:
    stager = Stager(work, "failed")
    plain = ended(stager, "plain.1", writes={"a": "1"}, declares=False)
    product = ended(stager, "product.1", writes={"a": "1"})
    path = ended(stager, "path.1", writes={"a": "1"}, declares=False, result_is_path=True)
    assert path.keeper is None
    del path
    gc.collect()
    await stager.close()
    assert sorted(os.listdir(work)) == ["path.1", "product.1"]
    del product, plain
    gc.collect()
    assert sorted(os.listdir(work)) == ["path.1", "product.1"]


async def test_keeping_none_leaves_nothing_at_close_not_even_the_directories(
    work: Path, backend: Linking
) -> None:
    stager = Stager(work, "none")
    product = ended(stager, "product.1", writes={"a": "1"})
    failed = ended(stager, "failed.1", writes={"a": "1"}, succeeded=False)
    path = ended(stager, "path.1", writes={"a": "1"}, result_is_path=True)
    await stager.close()
    await stager.close()
    assert not work.parent.exists()
    assert product.keeper is not None
    assert failed.keeper is not None
    assert path.keeper is None


async def test_keeping_all_removes_nothing(work: Path) -> None:
    stager = Stager(work, "all")
    for number, succeeded in enumerate((True, False)):
        assert ended(stager, f"u.{number}", succeeded=succeeded).keeper is None
    gc.collect()
    await stager.close()
    assert sorted(os.listdir(work)) == ["u.0", "u.1"]


async def test_a_sandbox_that_is_not_in_the_work_dir_is_never_touched(
    work: Path, tmp_path: Path
) -> None:
    stager = Stager(work, "none")
    task = describe(stager)
    task["sandbox"] = str(tmp_path / "here")
    assert stager.keep(task, True) is None
    await stager.close()
    assert (tmp_path / "here").is_dir()


async def test_a_work_dir_that_was_there_before_stays(tmp_path: Path) -> None:
    work = tmp_path / "runs"
    work.mkdir()
    stager = Stager(work, "none")
    ended(stager)
    await stager.close()
    assert list(work.iterdir()) == []


async def test_a_work_dir_with_other_things_in_it_stays(work: Path) -> None:
    stager = Stager(work, "none")
    ended(stager)
    (work / "notes.txt").write_text("mine")
    await stager.close()
    assert os.listdir(work) == ["notes.txt"]


async def test_removal_follows_no_links_and_copes_with_directories_nobody_may_write_to(
    work: Path, here: Path
) -> None:
    (here / "precious").write_text("1")
    stager = Stager(work, "none")
    outcome = ended(stager)
    sandbox = Path(outcome.sandbox or "")
    (sandbox / "link").symlink_to(here)
    (sandbox / "locked" / "inner").mkdir(parents=True)
    (sandbox / "locked" / "inner" / "file").write_text("")
    (sandbox / "locked" / "link").symlink_to(here)
    (sandbox / "locked" / "inner").chmod(0o500)
    (sandbox / "locked").chmod(0o500)
    mode = stat.S_IMODE(here.stat().st_mode)
    await stager.close()
    assert not sandbox.exists()
    assert (here / "precious").read_text() == "1"
    assert stat.S_IMODE(here.stat().st_mode) == mode


async def test_removals_that_fail_are_said_once_and_reach_nobody(
    work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: str, **kwargs: Any) -> None:
        raise OSError(f"no, not {path}")

    stager = Stager(work, "none")
    outcomes = [ended(stager, f"u.{n}") for n in range(3)]
    monkeypatch.setattr("rhapsody.engine.sandboxes.shutil.rmtree", refuse)
    with caplog.at_level(logging.WARNING):
        await stager.close()
    assert len(outcomes) == 3
    (record,) = caplog.records
    assert "no, not" in record.getMessage()


async def test_the_loop_goes_on_while_a_sandbox_is_removed(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    real = shutil.rmtree

    def slow(path: str, **kwargs: Any) -> None:
        began.set()
        assert go_on.wait(timeout=10)
        real(path)

    stager = Stager(work, "none")
    outcome = ended(stager)
    monkeypatch.setattr("rhapsody.engine.sandboxes.shutil.rmtree", slow)
    closing = asyncio.create_task(stager.close())
    async with asyncio.timeout(10):
        assert await asyncio.to_thread(began.wait, 10)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not closing.done()
        go_on.set()
        await closing
    assert not os.path.exists(outcome.sandbox or "")


async def test_no_thread_is_started_and_none_is_left_where_nothing_is_removed(
    work: Path,
) -> None:
    keeping, removing = Stager(work, "all"), Stager(work, "failed")
    ended(keeping, "u.1")
    ended(removing, "u.2", succeeded=False)
    assert removers() == 0
    ended(removing, "u.3")
    assert removers() == 1
    await removing.close()
    await keeping.close()
    assert removers() == 0


async def test_a_work_that_ends_after_the_close_removes_nothing_and_starts_nothing(
    work: Path,
) -> None:
    stager = Stager(work, "failed")
    await stager.close()
    outcome = ended(stager)
    path = outcome.sandbox or ""
    del outcome
    gc.collect()
    assert os.path.isdir(path)
    assert removers() == 0


async def test_nothing_is_remembered_of_tasks_whose_outcome_was_dropped(
    work: Path, backend: Linking
) -> None:
    stager = Stager(work, "failed")
    for number in range(50):
        source = ended(stager, f"s.{number}", writes={"x.txt": "1"})
        task = describe(stager, f"t.{number}")
        await link(stager, task, backend, [InputFile("x.txt")], [source])
        stager.keep(task, True)
    path = source.sandbox
    del source
    gc.collect()
    await gone(path)
    assert stager._links == {}
    assert stager._sandboxes._fates == {}
    await stager.close()


async def test_a_long_chain_of_sandboxes_is_let_go_without_deep_recursion(work: Path) -> None:
    stager = Stager(work, "failed")
    keepers: tuple[Sandbox, ...] = ()
    for number in range(50_000):
        keepers = (stager._sandboxes.hold(f"{work}/u.{number}", Fate.REMOVE, keepers),)
    keepers[0].spare()
    del keepers
    gc.collect()
    await stager.close()


# Results that lead into a sandbox.


async def test_a_result_that_is_or_holds_a_path_into_the_sandbox_is_recognised() -> None:
    box = "/work/box"
    inside = [
        "/work/box/a.txt",
        "/work/box",
        Path("/work/box/a.txt"),
        OutputFile("a.txt").bound_to(box),
        ["x", "/work/box/a"],
        ("/work/box/a",),
        {"report": Path("/work/box/a")},
        {"/work/box/a"},
    ]
    outside = ["/work/boxes/a", "a.txt", 3, None, OutputFile("a"), b"/work/box/a", []]
    assert all(leads_into(value, box) for value in inside)
    assert not any(leads_into(value, box) for value in outside)
    assert not leads_into("/work/box/a", None)
