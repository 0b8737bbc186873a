"""Files for tasks: origins, links, files between backends, declared outputs."""

# ruff: noqa: ASYNC240 - these tests are about files, and have the loop for themselves

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody.backends.base import Capabilities
from rhapsody.data import InputFile, OutputFile, leads_into
from rhapsody.errors import CapabilityError, DataError
from rhapsody.staging.flow import FileFlow
from rhapsody.staging.outputs import check_outputs
from rhapsody.task import AttemptInfo, ProducedFiles, Written
from tests._support.staging import Linking, Stager, describe, ended, link

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.asyncio]


@pytest_asyncio.fixture(autouse=True)
async def _closed() -> AsyncIterator[None]:
    yield
    await Stager.close_all()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / ".rhapsody" / "engine"


@pytest.fixture
def backend() -> Linking:
    return Linking()


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


async def test_a_task_gets_its_file_objects_with_paths_in_its_sandbox(work: Path) -> None:
    stager = Stager(work)
    fetched, output = InputFile("https://example.org/x.txt"), OutputFile("y.txt")
    flow = FileFlow(stager, describe(stager, "u"), [fetched], [output])
    arguments = flow.arguments(by_path=True)
    assert os.fspath(arguments[id(fetched)]) == str(work / "u/x.txt")
    assert os.fspath(arguments[id(output)]) == str(work / "u" / "y.txt")


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


async def test_a_relative_path_starts_in_the_directory_in_which_the_engine_was_created(
    work: Path, backend: Linking, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "in.txt").write_text("there")
    (tmp_path / "in.txt").write_text("elsewhere")
    stager = Stager(work)
    later = InputFile("later.txt")
    (here / "later.txt").write_text("later")
    monkeypatch.chdir(tmp_path)
    sandbox = await link(stager, describe(stager), backend, [InputFile("in.txt"), later])
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
        "sandbox": source.files.sandbox,
        "metadata": {"dependencies": [], "input_files": [], "output_files": ["x.txt"]},
    }


@pytest.mark.parametrize("spec", ["out/x.txt", "./x.txt", "out/../x.txt"])
async def test_a_path_means_itself_whatever_dependencies_write(
    work: Path, backend: Linking, here: Path, spec: str
) -> None:
    stager = Stager(work)
    source = ended(stager, writes={"x.txt": "theirs"})
    with pytest.raises(DataError, match=r"missing .*dependency .*pass future\.file\('x\.txt'\)"):
        await link(stager, describe(stager), backend, [InputFile(spec)], [source])
    (here / "out").mkdir()
    (here / spec).write_text("mine")
    sandbox = await link(stager, describe(stager), backend, [InputFile(spec)], [source])
    assert (sandbox / "x.txt").read_text() == "mine"


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
    with pytest.raises(DataError, match=r"'x\.txt'.*000001\) and .*task\.000007\)"):
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
    assert "Call the task that writes it before this one" in text


async def test_patterns_that_name_no_file_are_explained(work: Path, backend: Linking) -> None:
    stager = Stager(work)
    with pytest.raises(DataError, match=r"InputFile\(path\) for path in glob"):
        await link(stager, describe(stager), backend, [InputFile("x*.txt")])
    with pytest.raises(DataError, match=r"OutputFile\('x\*\.txt', many=True\)"):
        check_outputs(describe(stager), [OutputFile("x*.txt")])


async def test_a_local_file_that_vanished_meanwhile_is_missing(
    work: Path, backend: Linking, here: Path
) -> None:
    (here / "x.txt").write_text("1")
    file = InputFile(here / "x.txt")
    (here / "x.txt").unlink()
    stager = Stager(work)
    with pytest.raises(DataError, match="missing input file"):
        await link(stager, describe(stager), backend, [file])


async def test_the_second_input_with_a_name_is_linked_in_a_directory(
    work: Path, backend: Linking, here: Path
) -> None:
    for name in ("a", "b"):
        (here / name).mkdir()
        (here / name / "x.txt").write_text(name)
    stager = Stager(work)
    inputs = [InputFile("a/x.txt"), InputFile("b/x.txt")]
    sandbox = await link(stager, describe(stager), backend, inputs)
    assert [link["name"] for link in backend.explicit] == ["x.txt", "2/x.txt"]
    assert [(sandbox / name).read_text() for name in ("x.txt", "2/x.txt")] == ["a", "b"]


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
    path = os.path.join(source.files.sandbox or "", "x.txt")
    assert here.explicit == [{"src": None, "name": "x.txt", "path": path}]


async def test_a_file_of_the_same_backend_under_another_name_needs_no_detour(work: Path) -> None:
    backend = Linking("dask", Capabilities(files=True, sandboxes=True))
    stager = Stager(work, backends={"dask-2": backend})
    source = AttemptInfo(
        "u.task.000001.1", files=ProducedFiles("/far/u.task.000001.1", ("x.txt",)), backend="dask-2"
    )
    await link(stager, describe(stager), backend, [InputFile("x.txt")], [source])
    assert backend.explicit[0]["src"]["uid"] == "u.task.000001.1"


async def test_a_file_that_cannot_be_reached_from_here_is_a_capability_error(work: Path) -> None:
    far = Linking("far", Capabilities(files=True, sandboxes=True))
    here = Linking("here")
    stager = Stager(work, backends={"far": far, "here": here})
    source = AttemptInfo(
        "u.task.000001.1", files=ProducedFiles("/far/u.task.000001.1", ("x.txt",)), backend="far"
    )
    with pytest.raises(CapabilityError, match=r"'x\.txt'.*'far', which this process cannot read"):
        await link(stager, describe(stager), here, [InputFile("x.txt")], [source])
    assert here.explicit == []


async def test_a_missing_file_that_should_be_reachable_is_a_data_error(work: Path) -> None:
    stager = Stager(work, backends={"far": Linking("far"), "here": Linking("here")})
    source = AttemptInfo(
        "u.task.000001.1", files=ProducedFiles("/far/u.task.000001.1", ("x.txt",)), backend="far"
    )
    with pytest.raises(DataError, match="is missing"):
        await link(stager, describe(stager), Linking("here"), [InputFile("x.txt")], [source])


class Distant(Linking):
    """A backend whose sandboxes cannot be seen from here, but which copies files out."""

    copies = 0

    def __init__(self, name: str) -> None:
        super().__init__(name, Capabilities(files=True, sandboxes=True, copies_files_out=True))

    async def copy_file_out(self, task: Mapping[str, Any], name: str, path: Path) -> None:
        self.copies += 1
        path.write_text(f"{name} of {task['uid']}")


async def test_a_file_of_a_distant_backend_is_copied_once_through_the_work_dir(
    work: Path,
) -> None:
    far = Distant("far")
    here = Linking("here")
    stager = Stager(work, backends={"far": far, "here": here})
    source = AttemptInfo(
        "u.task.000001.1", files=ProducedFiles("/far/u.task.000001.1", ("x.txt",)), backend="far"
    )
    boxes = await asyncio.gather(
        *(
            link(stager, describe(stager, f"r.{n}"), here, [InputFile("x.txt")], [source])
            for n in range(3)
        )
    )
    assert [(box / "x.txt").read_text() for box in boxes] == ["x.txt of u.task.000001.1"] * 3
    assert far.copies == 1
    assert here.explicit[0]["path"].startswith(str(work))
    await stager.close()


async def test_a_file_of_a_distant_backend_may_be_read_there_under_another_name(
    work: Path,
) -> None:
    far = Distant("far")
    stager = Stager(work, backends={"far": far})
    source = AttemptInfo(
        "u.task.000001.1", files=ProducedFiles("/far/u.task.000001.1", ("out.txt",)), backend="far"
    )
    file, task = InputFile("results/s1.txt"), describe(stager)
    made_by = {id(file): Written((source,), "out.txt", bound=True)}
    flow = FileFlow(stager, task, [file], written=made_by)
    assert flow.resolve(far)
    await flow.fetch()
    flow.place(far)
    assert [(link["src"], link["name"]) for link in far.explicit] == [(None, "s1.txt")]
    assert Path(far.explicit[0]["path"]).read_text() == "out.txt of u.task.000001.1"


# Implicit data.


async def test_what_a_dependency_without_declared_outputs_left_is_linked(
    work: Path, backend: Linking
) -> None:
    stager = Stager(work)
    quiet = ended(stager, "q.1", writes={"left over": "1"}, declares=False)
    declared = ended(stager, "d.task.000001.1", writes={"declared": "2"})
    nothing = AttemptInfo("n.1", backend="linking")
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
    unseen = AttemptInfo("unseen.1", files=ProducedFiles("/far/unseen.1"), backend="elsewhere")
    for backend, expected in ((shared, ["seen.1"]), (unshared, []), (bare, [])):
        await link(stager, describe(stager), backend, sources=[seen, unseen], implicit=True)
        assert [uid for uid, _ in backend.implicit] == expected


# Declared outputs.


async def test_written_outputs_pass_and_missing_ones_are_named(work: Path) -> None:
    stager = Stager(work)
    task = describe(stager)
    outputs = [OutputFile("a.txt"), OutputFile("b.txt"), OutputFile("c.txt"), OutputFile("c.txt")]
    with pytest.raises(DataError, match=r"did not write 'a\.txt', 'b\.txt', 'c\.txt' \(declared"):
        check_outputs(task, outputs)
    sandbox = Path(task["sandbox"])
    sandbox.mkdir(parents=True)
    (sandbox / "a.txt").write_text("")
    (sandbox / "b.txt").symlink_to("a.txt")
    with pytest.raises(DataError, match=r"'reader' did not write 'c\.txt' \(declared"):
        check_outputs(task, outputs)
    check_outputs(task, outputs[:2])
    check_outputs(describe(stager, "other.1"), [])


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
    with pytest.raises(DataError, match=r"link to .* outside the sandbox"):
        check_outputs(task, [OutputFile("out.txt")])


async def test_outputs_without_content_are_missing_and_described(work: Path) -> None:
    stager = Stager(work)
    task = describe(stager)
    sandbox = Path(task["sandbox"])
    sandbox.mkdir(parents=True)
    os.mkfifo(sandbox / "pipe")
    (sandbox / "link").symlink_to("nowhere")
    outputs = [OutputFile("pipe"), OutputFile("link"), OutputFile("none")]
    with pytest.raises(DataError) as caught:
        check_outputs(task, outputs)
    for text in (
        "'pipe', which is a named pipe,",
        "'link', which is a dangling link to 'nowhere',",
    ):
        assert text in str(caught.value)


async def test_sandboxes_that_are_not_on_this_file_system_are_the_backends_to_check(
    work: Path,
) -> None:
    stager = Stager(work)
    task = describe(stager)
    check_outputs(task, [OutputFile("x")], Linking("far", Capabilities(files=True)))
    with pytest.raises(DataError, match="did not write"):
        check_outputs(task, [OutputFile("x")], Linking("near"))


# Results that lead into a sandbox.


async def test_a_result_that_is_or_holds_a_path_into_the_sandbox_is_recognised() -> None:
    box = "/data/box"
    inside = [
        "/data/box/a.txt",
        "/data/box",
        Path("/data/box/a.txt"),
        OutputFile("a.txt").bound_to(box),
        ["x", "/data/box/a"],
        ("/data/box/a",),
        {"report": Path("/data/box/a")},
        {"/data/box/a"},
    ]
    outside = ["/data/boxes/a", "a.txt", 3, None, OutputFile("a"), b"/data/box/a", []]
    assert all(leads_into(value, box) for value in inside)
    assert not any(leads_into(value, box) for value in outside)
    assert not leads_into("/data/box/a", None)


async def test_a_result_that_cannot_be_looked_into_leads_nowhere() -> None:
    class Closed(Mapping[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise OSError("closed")

        def __iter__(self) -> Iterator[str]:
            raise OSError("closed")

        def __len__(self) -> int:
            return 1

    assert not leads_into(Closed(), "/data/box")
