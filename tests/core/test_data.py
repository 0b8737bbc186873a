"""Input and output files as values, and linking them into sandboxes."""

from __future__ import annotations

import errno
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody.data import (
    InputFile,
    InputFiles,
    Output,
    OutputDir,
    OutputFile,
    end_of_file,
    link_into,
    make_sandbox,
)
from rhapsody.errors import DataError

pytestmark = pytest.mark.usefixtures("here")


# InputFile.


def test_an_existing_path_is_a_local_file_with_its_whole_absolute_path(here: Path) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "in put.txt").write_text("x")
    for spec in ("sub/in put.txt", here / "sub" / "in put.txt", Path("sub/in put.txt")):
        file = InputFile(spec)
        assert file.filename == "in put.txt"
        assert file.filepath == here / "sub" / "in put.txt"
        assert file.local_file == str(spec)
        assert file.remote_url is None
        assert file.other_task_file is None
        assert os.fspath(file) == str(here / "sub" / "in put.txt")


def test_a_local_file_keeps_meaning_the_same_file_after_a_change_of_directory(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "in.txt").write_text("x")
    file = InputFile("in.txt")
    monkeypatch.chdir(tmp_path)
    assert file.filepath == here / "in.txt"


def test_a_link_keeps_the_name_it_was_given_by(here: Path) -> None:
    (here / "data-7.csv").write_text("x")
    (here / "latest.csv").symlink_to("data-7.csv")
    file = InputFile("latest.csv")
    assert file.filename == "latest.csv"
    assert file.resolve() == here / "data-7.csv"


def test_numpy_maps_a_file(here: Path) -> None:
    numpy = pytest.importorskip("numpy")
    numpy.save("array.npy", numpy.arange(5))
    assert numpy.load(InputFile("array.npy"), mmap_mode="r")[3] == 3


def test_a_parent_of_a_link_is_that_of_its_target(here: Path) -> None:
    (here / "other" / "inner").mkdir(parents=True)
    (here / "current").symlink_to("other/inner")
    for directory in (here, here / "other"):
        (directory / "x.txt").write_text(directory.name)
    assert Path(InputFile("current/../x.txt").filepath or "").read_text() == "other"
    assert InputFile("other/../x.txt").local_file == "other/../x.txt"
    (here / "x.txt").unlink()
    assert InputFile("current/../x.txt").filepath == here / "other" / "x.txt"


def test_a_directory_can_be_an_input(here: Path) -> None:
    (here / "index").mkdir()
    assert InputFile("index/").filename == "index"


@pytest.mark.parametrize("spec", ["/no/such/file.txt", "../file.txt", "a/../../file.txt"])
def test_a_path_that_is_not_there_may_be_made_by_another_task(here: Path, spec: str) -> None:
    file = InputFile(spec)
    assert (file.other_task_file, file.filename) == (spec, "file.txt")


def test_a_name_that_is_not_on_disk_is_another_tasks_file(here: Path) -> None:
    file = InputFile("out.txt")
    assert (file.filename, file.other_task_file) == ("out.txt", "out.txt")
    assert file.filepath == Path("out.txt")
    assert (file.local_file, file.remote_url) == (None, None)
    nested = InputFile("results/out.txt")
    assert (nested.filename, nested.other_task_file) == ("out.txt", "results/out.txt")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.org/a/b.txt", "b.txt"),
        ("http://example.org/b.txt?token=1#part", "b.txt"),
        ("HTTP://example.org/b%20c.txt", "b c.txt"),
        ("s3://bucket/key/b.txt", "b.txt"),
        ("file:///tmp/b.txt", "b.txt"),
        ("https://example.org/a%2F..%2Fb", "b"),
        ("https://example.org/", "downloaded_file"),
        ("https://example.org", "downloaded_file"),
        ("https://example.org/.rhapsody.code", "downloaded_file"),
        ("https://example.org/a/..", "downloaded_file"),
        ("https://example.org/a%3B%20echo%20%60b%60%0A%24c.txt", "a_ echo _b___c.txt"),
        ("https://example.org/-rf", "_rf"),
        ("data:text/plain,hi", "downloaded_file"),
        ("data:,hi/there", "downloaded_file"),
        ("DATA:image/svg+xml;charset=utf-8;base64,aGk=", "downloaded_file"),
    ],
)
def test_a_url_is_remote_and_nothing_is_fetched_in_the_constructor(
    url: str, name: str, here: Path
) -> None:
    file = InputFile(url)
    assert (file.remote_url, file.filename) == (url, name)
    assert (file.filepath, file.local_file, file.other_task_file) == (None, None, None)
    assert list(here.iterdir()) == []
    with pytest.raises(TypeError, match="pass it to a task"):
        os.fspath(file)
    with pytest.raises(TypeError, match="pass it to a task"):
        file.resolve()


@pytest.mark.parametrize("name", ["data:2024.csv", "data:2024,csv", "data:a;b"])
def test_a_name_that_only_begins_as_a_data_url_is_a_name(name: str) -> None:
    assert InputFile(name).other_task_file == name


def test_a_malformed_url_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"http://\[nowhere/x.* invalid URL"):
        InputFile("http://[nowhere/x")


def test_passwords_and_tokens_in_urls_are_not_shown() -> None:
    text = repr(InputFile("https://me:secret@example.org/b.txt?token=secret"))
    assert text == "InputFile('https://example.org/b.txt?...')"
    url = "s3://me:sec@ret@host/b"  # pragma: allowlist secret
    assert repr(InputFile(url)) == "InputFile('s3://host/b')"
    assert repr(InputFile("data:text/plain,secret")) == "InputFile('data:text/plain,...')"


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("", "empty"),
        ("a\0b", "does not name a file"),
        ("/", "no base name"),
    ],
)
def test_an_input_that_cannot_be_is_an_error_that_names_what_was_given(
    spec: str, complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint) as raised:
        InputFile(spec)
    assert isinstance(raised.value, ValueError)
    assert not spec or repr(spec) in str(raised.value)


@pytest.mark.parametrize("spec", [None, 3, b"x", ["x"], Path])
def test_a_file_that_is_neither_text_nor_path_is_a_type_error(spec: Any) -> None:
    for kind in (InputFile, OutputFile):
        with pytest.raises(TypeError, match=f"{kind.__name__} takes a string or a path, got"):
            kind(spec)


# OutputFile.


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("out.txt", None),
        ("some/dir/out.txt", "some/dir/"),
        (Path("dir/out.txt"), "dir/"),
        ("./out.txt", "./"),
    ],
)
def test_an_output_has_the_base_name_and_a_place(name: Any, save: str | None) -> None:
    file = OutputFile(name)
    assert file.save == save
    assert file.filename == "out.txt"
    assert file.filepath is None
    assert repr(OutputFile("out.txt")) == "OutputFile('out.txt')"
    assert eval(repr(file)) == file
    with pytest.raises(TypeError, match="has no path before a task runs"):
        os.fspath(file)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "empty"),
        ("dir/", "is a directory"),
        (".", "is a directory"),
        ("..", "must write into its sandbox"),
        ("../out.txt", "must write into its sandbox"),
        ("a/../out.txt", "must write into its sandbox"),
        ("/tmp/out.txt", "must write into its sandbox"),
        ("a\0b", "must write into its sandbox"),
    ],
)
def test_an_output_that_is_empty_a_directory_or_leaves_the_sandbox_is_a_value_error(
    name: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        OutputFile(name)


def test_a_pattern_is_for_names_in_the_sandbox_itself() -> None:
    file = OutputFile("results/*.csv", many=True)
    assert (file.filename, file.save, file.many) == ("*.csv", "results/", True)
    assert eval(repr(file)) == file
    assert not OutputFile("*.csv").many
    for name in ("**/*.csv", "part[12]/a", "part?/*"):
        with pytest.raises(DataError, match=r"cannot contain a pattern"):
            OutputFile(name, many=True)
        assert OutputFile(name).save == name.rpartition("/")[0] + "/"
    wrong: Any = "yes"
    with pytest.raises(TypeError, match="many must be True or False, got 'yes'"):
        OutputFile("*.csv", many=wrong)


# OutputDir.


@pytest.mark.parametrize(
    ("name", "given", "save"),
    [
        ("plots", None, None),
        ("plots/", None, None),
        ("results/plots/", None, "results/"),
        (Path("results/plots"), None, "results/"),
        ("./plots//", None, "./"),
        ("results/plots/", False, False),
        ("plots", "figures", "figures/"),
        ("plots", Path("/figures"), "/figures/"),
        ("plots", True, "./"),
    ],
)
def test_an_output_directory_has_the_base_name_and_a_place(
    name: Any, given: Any, save: str | None
) -> None:
    directory = OutputDir(name, save=given)
    assert directory.filename == "plots"
    assert directory.filepath is None
    assert directory.save == save
    assert eval(repr(directory)) == directory
    assert f"{directory.bound_to('/box', by_path=False)}" == "plots"
    assert f"{directory.bound_to('/box')}" == "/box/plots"
    assert os.fspath(directory.bound_to("/box")) == "/box/plots"


@pytest.mark.parametrize(
    ("name", "save", "complaint"),
    [
        ("", None, "empty"),
        (".", None, "has no name"),
        ("./", None, "has no name"),
        ("..", None, "must write into its sandbox"),
        ("/", None, "must write into its sandbox"),
        ("/tmp/plots/", None, "must write into its sandbox"),
        ("a/../plots/", None, "must write into its sandbox"),
        (".rhapsody.x/", None, "cannot be declared"),
        ("plots", "../x", "OutputDir: save='../x' is outside the engine's results_dir"),
    ],
)
def test_an_output_directory_that_cannot_be_is_an_error(
    name: str, save: str | None, complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        OutputDir(name, save=save)


# InputFiles.


def test_several_files_are_a_list_that_commands_can_use() -> None:
    bound = InputFile("*.csv").bound_to("/box", by_path=False)
    files = InputFiles(bound, ["b.csv", "a 1.csv"], directory=False)
    assert files == [Path("/box/a 1.csv"), Path("/box/b.csv")]
    assert f"cat {files}" == "cat 'a 1.csv' b.csv"
    assert files.words() == ["a 1.csv", "b.csv"]
    plots = InputFile("plots/").bound_to("/box", by_path=False)
    directory = InputFiles(plots, ["plots/a"], directory=True)
    assert f"ls {directory}" == "ls plots"
    assert directory.words() == ["plots"]
    assert os.fspath(directory) == "/box/plots"
    for each in (files, directory):
        copy = pickle.loads(pickle.dumps(each))
        assert (copy, copy.file, copy.directory) == (each, each.file, each.directory)


@given(st.text(max_size=12))
def test_no_name_that_is_accepted_leads_out_of_a_sandbox(name: str) -> None:
    for kind in (InputFile, OutputFile, OutputDir):
        try:
            bound = kind(name).bound_to("/data/box")
        except ValueError:
            continue
        assert os.path.normpath(os.fspath(bound)) == os.fspath(bound)
        assert os.path.dirname(os.fspath(bound)) == "/data/box"


# Values.


def examples(here: Path) -> list[InputFile | Output]:
    (here / "in.txt").write_text("x")
    return [
        InputFile("in.txt"),
        InputFile("other.txt"),
        InputFile("https://example.org/in.txt"),
        OutputFile("in.txt"),
        OutputFile("in.txt", many=True),
        OutputFile("in.txt").bound_to(here),
        OutputDir("in.txt"),
    ]


def test_files_are_equal_hashable_and_picklable_by_value(here: Path) -> None:
    first, second = examples(here), examples(here)
    assert first == second
    assert len(set(first + second)) == len(first)
    assert pickle.loads(pickle.dumps(first)) == first


def test_files_cannot_be_changed(here: Path) -> None:
    for file in examples(here):
        with pytest.raises(AttributeError):
            file.filename = "y"  # type: ignore[misc]
        with pytest.raises((AttributeError, TypeError)):
            file.colour = "y"  # type: ignore[union-attr]


def test_a_task_gets_a_copy_with_an_absolute_path_in_its_sandbox(here: Path) -> None:
    for file in examples(here):
        bound = file.bound_to("box")
        assert bound is not file
        assert type(bound) is type(file)
        assert bound.filepath == here / "box" / file.filename
        assert os.fspath(bound) == str(bound) == f"{bound}" == str(here / "box" / file.filename)
        assert bound.filename == file.filename
        again = bound.bound_to(here / "other box")
        assert again.filepath == here / "other box" / file.filename


# Sandboxes.


def test_a_sandbox_is_made_private_to_the_user_with_its_parents(tmp_path: Path) -> None:
    box = tmp_path / "a" / "b" / "box"
    assert make_sandbox(box) == str(box) == make_sandbox(box)
    assert stat.S_IMODE(box.stat().st_mode) == 0o700


def test_a_sandbox_is_not_made_over_a_link_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(DataError, match="is not a directory"):
            make_sandbox(tmp_path / name)


def test_a_directory_of_another_users_that_others_may_write_to_is_no_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = tmp_path / "box"
    box.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    make_sandbox(box)  # some file systems show other owners than there are
    box.chmod(0o777)
    with pytest.raises(DataError, match=r"another user.*choose a work_dir"):
        make_sandbox(box)


def test_a_sandbox_is_made_although_another_engine_removes_the_parent_it_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tmp_path / ".rhapsody"
    makedirs, removals = os.makedirs, iter([parent])

    def interrupted(*args: Any, **kwargs: Any) -> None:
        makedirs(*args, **kwargs)
        for path in removals:
            path.rmdir()

    monkeypatch.setattr(os, "makedirs", interrupted)
    assert os.path.isdir(make_sandbox(parent / "box"))
    assert next(removals, None) is None


@pytest.fixture
def source(tmp_path: Path) -> Path:
    place = tmp_path / "sources"
    place.mkdir()
    (place / "data.txt").write_text("data")
    return place / "data.txt"


def test_linking_makes_the_file_available_and_twice_is_harmless(
    tmp_path: Path, source: Path
) -> None:
    box = tmp_path / "work" / "box"
    for _ in range(2):
        link_into(box, "in put.txt", source)
    assert (box / "in put.txt").read_text() == "data"
    assert (box / "in put.txt").is_symlink()
    assert stat.S_IMODE(box.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["", ".", "..", "a/../b", "../x", "/x", "a\0b"])
def test_linking_under_a_name_that_could_leave_the_sandbox_is_refused(
    tmp_path: Path, source: Path, name: str
) -> None:
    with pytest.raises(DataError, match="not a plain file name"):
        link_into(tmp_path / "box", name, source)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "box") == ["here", "sources"]


def test_linking_over_another_file_is_refused_and_leaves_it(tmp_path: Path, source: Path) -> None:
    box = tmp_path / "box"
    box.mkdir()
    (box / "data.txt").write_text("mine")
    with pytest.raises(DataError, match="another file exists there"):
        link_into(box, "data.txt", source)
    assert (box / "data.txt").read_text() == "mine"


def test_linking_what_is_not_there_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'/no/such' does not exist"):
        link_into(tmp_path / "box", "x", "/no/such")
    assert not (tmp_path / "box").exists()


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EPERM, "this file system has no links")

    monkeypatch.setattr(os, "symlink", refuse)


@pytest.mark.usefixtures("no_links")
def test_where_there_are_no_links_files_and_directories_are_copied(
    tmp_path: Path, source: Path
) -> None:
    box = tmp_path / "box"
    for _ in range(2):
        link_into(box, "data.txt", source)
    link_into(box, "folder", source.parent)
    assert (box / "data.txt").read_text() == "data"
    assert not (box / "data.txt").is_symlink()
    assert (box / "folder" / "data.txt").read_text() == "data"
    assert sorted(os.listdir(box)) == ["data.txt", "folder"]
    (box / "mine").write_text("mine")
    with pytest.raises(DataError, match="another file exists there"):
        link_into(box, "mine", source)
    assert (box / "mine").read_text() == "mine"


def test_a_file_in_a_command_is_its_name(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("x")
    source, target = InputFile(tmp_path / "in.txt"), OutputFile("out.txt")
    bound = target.bound_to(str(tmp_path), by_path=False)
    assert f"cp {source} {bound}" == "cp in.txt out.txt"


def test_the_end_of_a_file_is_its_last_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("0123456789")
    assert end_of_file(str(path), 3) == "789"
    assert end_of_file(str(path), 30) == "0123456789"
    assert end_of_file(str(tmp_path / "missing"), 3) == ""
