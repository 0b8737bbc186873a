"""The check of the plugin interface against the last release finds what would break a plugin."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.system.support import CORE, ROOT, check, run

pytest.importorskip("griffe")
pytestmark = pytest.mark.timeout(300)

CHECK = ROOT / ".ci" / "check_plugin_api.py"
GIT = ("git", "-c", "user.name=Tester", "-c", "user.email=tester@example.org")

BREAKS = {
    # A change to the source, and words the answer must have.
    "a hook is missing": (
        "plugins/specs.py",
        "def rhapsody_commands(",
        "def rhapsody_extra_commands(",
        "rhapsody.plugins.specs.rhapsody_commands: Public object was removed",
    ),
    "a hook's argument is missing": (
        "plugins/specs.py",
        "engine: ObservedEngine, task: TaskDescription, candidates: Sequence[str]",
        "engine: ObservedEngine, task: TaskDescription",
        "rhapsody_select_backend(candidates): Parameter was removed",
    ),
    "a field must be given": (
        "plugins/specs.py",
        '    import_path: str\n    summary: str = ""\n',
        "    import_path: str\n    summary: str\n",
        "BackendSpec.__init__(summary): Parameter is now required",
    ),
    "a capability has another name": (
        "capabilities.py",
        "    sandboxes: bool = False\n",
        "    directories: bool = False\n",
        "rhapsody.capabilities.Capabilities.sandboxes: Public object was removed",
    ),
    "a method is missing": (
        "backends/base.py",
        "    def require_running(self)",
        "    def require_started(self)",
        "rhapsody.backends.base.ManagedBackend.require_running: Public object was removed",
    ),
    "every backend must have a new method": (
        "backends/base.py",
        "    @abstractmethod\n    def state(self)",
        "    @abstractmethod\n    def pause(self) -> None: ...\n\n"
        "    @abstractmethod\n    def state(self)",
        "BaseExecutionBackend.pause: subclasses must implement this new method",
    ),
    "a helper is missing": (
        "backends/programs.py",
        "class LocalPrograms(",
        "class Programs(",
        "rhapsody.backends.LocalPrograms: no longer exported",
    ),
    "a helper's method is missing": (
        "sdk/processes.py",
        "    def terminate(self, grace: float)",
        "    def stop(self, grace: float)",
        "rhapsody.sdk.processes.Program.terminate: Public object was removed",
    ),
    "a helper's argument is missing": (
        "resources.py",
        "def seconds(argument: str, value: object, ",
        "def seconds(value: object, ",
        "rhapsody.resources.seconds(argument): Parameter was removed",
    ),
    "a helper is not exported": (
        "sdk/__init__.py",
        ' "start_thread",',
        "",
        "rhapsody.sdk.start_thread: no longer exported",
    ),
    "a name is not exported": (
        "../../../rhapsody-testing/src/rhapsody_testing/__init__.py",
        '    "BackendConformance",\n',
        "",
        "rhapsody_testing.BackendConformance: no longer exported",
    ),
}

HARMLESS = {
    "a hook has one more argument": (
        "plugins/specs.py",
        "def rhapsody_task_events(engine: ObservedEngine, ",
        "def rhapsody_task_events(loop: object, engine: ObservedEngine, ",
    ),
    "there is another capability": (
        "capabilities.py",
        "    sandboxes: bool = False\n",
        "    sandboxes: bool = False\n    containers: bool = False\n",
    ),
    "a helper that is not exported is missing": ("sdk/services.py", "def _port(", "def _number("),
    "a private module is missing": (
        "_version.py",
        '__version__ = version("rhapsody-core")',
        "x = 1",
    ),
}


class Repository:
    """A repository with core's source in it, which a test may change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = root / CORE.relative_to(ROOT) / "src" / "rhapsody"
        skip = shutil.ignore_patterns("__pycache__", ".*_cache")
        for source in ("rhapsody-core/src/rhapsody", "rhapsody-testing/src/rhapsody_testing"):
            path = Path("packages", source)
            shutil.copytree(ROOT / path, root / path, ignore=skip)
        self.git("init", "--quiet")
        self.commit()

    def git(self, *arguments: str) -> None:
        check(*GIT, *arguments, cwd=self.root)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", "as it is")

    def change(self, file: str, before: str, after: str) -> None:
        path = self.source / file
        text = path.read_text()
        assert text.count(before) == 1, f"{before!r} is not in {file} as this test knows it"
        path.write_text(text.replace(before, after))

    def answer(self) -> tuple[int, str]:
        done = run(sys.executable, CHECK, "--repository", self.root, cwd=self.root)
        assert done.stderr == ""
        return done.returncode, done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
def released(repository: Repository) -> Repository:
    repository.git("tag", "rhapsody-core-v0.1.0")
    return repository


def test_without_a_release_there_is_nothing_to_compare_with(repository: Repository) -> None:
    repository.git("tag", "rhapsody-dask-v9.0.0")
    repository.git("tag", "rhapsody-core-vnext")
    code, told = repository.answer()
    assert code == 0
    assert "there is no release tag rhapsody-core-v*" in told


def test_what_was_not_changed_since_the_highest_version_is_not_broken(
    repository: Repository,
) -> None:
    for version in ("0.10.0", "0.9.0"):  # the last release is not the last word
        repository.git("tag", f"rhapsody-core-v{version}")
    assert repository.answer() == (
        0,
        "plugin interface: version 1, no breaking changes since rhapsody-core-v0.10.0\n",
    )


@pytest.fixture(scope="module")
def reports_all(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the report about all breaks at once, because reading the source is slow."""
    repository = Repository(tmp_path_factory.mktemp("breaks") / "repository")
    repository.git("tag", "rhapsody-core-v0.1.0")
    for *edit, _ in BREAKS.values():
        repository.change(*edit)
    code, told = repository.answer()
    assert code == 1
    assert "raise API_VERSION" in told
    return told


@pytest.mark.parametrize("change", BREAKS)
def test_a_break_is_named(reports_all: str, change: str) -> None:
    assert BREAKS[change][-1] in reports_all


def test_a_break_with_a_new_version_of_the_interface_passes(released: Repository) -> None:
    *edit, words = BREAKS["a hook is missing"]
    released.change(*edit)
    released.change("plugins/specs.py", "API_VERSION: int = 1\n", "API_VERSION: int = 2\n")
    code, told = released.answer()
    assert code == 0
    assert words in told
    assert "version 2 makes the breaking changes above" in told


def test_what_breaks_no_plugin_passes(released: Repository) -> None:
    for edit in HARMLESS.values():
        released.change(*edit)
    code, told = released.answer()
    assert code == 0, told


def test_this_tree_breaks_nothing_that_was_released() -> None:
    done = run(sys.executable, CHECK, cwd=ROOT)
    assert done.returncode == 0, done.stdout
