"""Tests of the exports of `rhapsody` and `rhapsody.backends`, import costs, and missing plugins."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import pydoc
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rhapsody
import rhapsody.backends
from rhapsody import errors
from rhapsody.known import CLASSES, SESSION_NAMES
from rhapsody.plugins.manager import install_command
from tests._support.distributions import install, python

PACKAGES = [rhapsody, rhapsody.backends]

ANYWHERE = {
    "BackendRegistry",
    "ConcurrentExecutionBackend",
    "LocalExecutionBackend",
    "NoopExecutionBackend",
    "StateMapper",
    "TasksMainStates",
    "discover_backends",
    "get_backend",
}
FROM_RHAPSODY = {
    "InputFile",
    "InputFiles",
    "OutputDir",
    "OutputFile",
    "Resources",
    "RetryPolicy",
    "TaskDescription",
    "TaskFuture",
    "Usage",
    "WorkflowEngine",
    "__version__",
    "current_task",
    "hookimpl",
    "literal",
    "run",
    "wait",
}
PLUGINS = {
    "DaskExecutionBackend": ("rhapsody_dask", "distributed", "rhapsody-dask", "dask_parallel"),
    "DragonExecutionBackend": ("rhapsody_dragon", "dragon", "rhapsody-dragon", "dragon"),
    "RadicalExecutionBackend": (
        "rhapsody_radical",
        "radical.pilot",
        "rhapsody-radical",
        "radical_pilot",
    ),
}

# Makes it look as if no plugin of ours were installed, on whatever machine this runs.
WITHOUT = """
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in (
            "rhapsody_asyncflow", "rhapsody_dask", "rhapsody_dragon", "rhapsody_radical",
        ):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import rhapsody, rhapsody.backends
"""


def run(code: str, *paths: Path) -> str:
    done = python(code, *paths)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Names.


def test_the_names_of_the_contract_are_there() -> None:
    own_errors = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.RhapsodyError)
    }
    own_errors.remove("UsageError")  # for plugins, which import it from `rhapsody.plugins`
    assert own_errors | ANYWHERE | FROM_RHAPSODY <= set(rhapsody.__all__)
    assert set(rhapsody.backends.__all__) >= ANYWHERE


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_listed_name_can_be_had_and_is_what_its_module_has(package: ModuleType) -> None:
    for name in package.__all__:
        assert hasattr(package, name), name
        assert name in dir(package)
        value = getattr(package, name)
        assert value is getattr(package, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            home = importlib.import_module(value.__module__)
            assert getattr(home, value.__name__) is value


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_type_checkers_see_the_names_that_the_interpreter_offers(package: ModuleType) -> None:
    tree = ast.parse(Path(package.__file__ or "").read_text())
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    imported = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    (listed,) = [ast.literal_eval(n.value) for n in block.body if isinstance(n, ast.Assign)]
    assert set(listed) - {"__version__"} == set(imported)
    optional = {*" ".join((*CLASSES.values(), *SESSION_NAMES.values())).split()}
    assert set(package.__all__) | (optional & set(listed)) == set(listed)
    for name, module in imported.items():
        if name not in optional:
            assert getattr(importlib.import_module(module or ""), name) is getattr(package, name)


def test_star_imports_give_every_listed_name() -> None:
    for package in PACKAGES:
        namespace: dict[str, Any] = {}
        exec(f"from {package.__name__} import *", namespace)
        assert set(package.__all__) <= set(namespace)


def test_pydoc_lists_what_there_is() -> None:
    text = pydoc.plain(pydoc.render_doc(rhapsody))
    assert "class WorkflowEngine" in text
    assert "get_backend" in text


def test_the_version_is_that_of_the_distribution() -> None:
    assert rhapsody.__version__ == importlib.metadata.version("rhapsody-core")


def test_an_unknown_name_is_an_attribute_error_that_says_so() -> None:
    assert not hasattr(rhapsody, "nonsense")
    with pytest.raises(AttributeError, match="module 'rhapsody' has no attribute 'nonsense'"):
        rhapsody.nonsense  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        exec("from rhapsody import nonsense")


def test_submodules_can_be_imported_from_the_package() -> None:
    assert run("from rhapsody import states, errors; print(states.__name__)") == "rhapsody.states\n"


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("rhapsody.backends.base", ["BaseExecutionBackend", "BaseBackend", "Session"]),
        ("rhapsody.backends.discovery", ["BackendRegistry", "discover_backends", "get_backend"]),
        ("rhapsody.backends.execution.noop", ["NoopExecutionBackend"]),
        ("rhapsody.task", ["Resources", "RetryPolicy", "memory_in_bytes", "seconds"]),
    ],
)
def test_the_import_paths_of_existing_programs_work(path: str, names: list[str]) -> None:
    module = importlib.import_module(path)
    for name in names:
        assert hasattr(module, name)


def test_both_names_of_the_local_backend_are_one_class() -> None:
    assert rhapsody.ConcurrentExecutionBackend is rhapsody.LocalExecutionBackend
    assert rhapsody.backends.base.BaseBackend is rhapsody.backends.base.BaseExecutionBackend


# Plugins that are not installed.


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize("package", ["rhapsody", "rhapsody.backends"])
def test_a_missing_plugin_is_not_listed_and_hasattr_is_false(package: str, name: str) -> None:
    code = f"""
    assert not hasattr({package}, {name!r})
    assert {name!r} not in {package}.__all__
    assert {name!r} not in dir({package})
    from {package} import *
    assert {name!r} not in globals()
    """
    run(WITHOUT + inspect.cleandoc(code))


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize(
    "statement",
    [
        "from rhapsody import {name}",
        "from rhapsody.backends import {name}",
        "from rhapsody.backends.execution.{alias} import {name}",
        "import rhapsody.backends.execution.{alias}",
    ],
)
def test_importing_a_missing_plugin_says_how_to_install_it(name: str, statement: str) -> None:
    _, _, distribution, alias = PLUGINS[name]
    code = f"""
    try:
        {statement.format(name=name, alias=alias)}
    except ModuleNotFoundError as error:
        print(error)
    """
    text = run(WITHOUT + inspect.cleandoc(code)).strip()
    assert name in text
    assert text.endswith(install_command(distribution))


@pytest.mark.parametrize(
    "statement", ["from rhapsody import Session", "from rhapsody.api import ComputeTask"]
)
def test_importing_names_of_rhapsody_py_says_what_to_install(statement: str) -> None:
    code = f"""
    assert "Session" not in dir(rhapsody)
    try:
        {statement}
    except ModuleNotFoundError as error:
        print(error)
    """
    text = run(WITHOUT + inspect.cleandoc(code)).strip()
    assert text.endswith(install_command("rhapsody-asyncflow"))


@pytest.mark.parametrize("name", PLUGINS)
def test_the_attribute_of_a_missing_plugin_says_how_to_install_it(name: str) -> None:
    code = f"""
    try:
        rhapsody.{name}
    except AttributeError as error:
        print(error)
    """
    text = run(WITHOUT + inspect.cleandoc(code)).strip()
    assert text.endswith(install_command(PLUGINS[name][2]))


# Plugins that are installed, or half.


def fake_plugin(site: Path, name: str, *, library: bool = True, source: str = "") -> None:
    package, needed, *_ = PLUGINS[name]
    (site / f"{package}.py").write_text(
        source or f"class {name}: ...\ndef service_ready_callback(f, t, s): ...\n"
    )
    if library:
        path = site.joinpath(*needed.split("."))
        path.mkdir(parents=True)
        (path / "__init__.py").write_text("raise RuntimeError('the library is not to be imported')")


@pytest.mark.parametrize("name", PLUGINS)
def test_an_installed_plugin_is_listed_without_importing_its_library(
    tmp_path: Path, name: str
) -> None:
    fake_plugin(tmp_path, name)
    package, _, _, alias = PLUGINS[name]
    code = f"""
    import rhapsody, rhapsody.backends
    for package in (rhapsody, rhapsody.backends):
        assert {name!r} in package.__all__
        assert {name!r} in dir(package)
    assert {package!r} not in sys.modules
    assert hasattr(rhapsody, {name!r})
    from rhapsody import {name}
    from rhapsody.backends import {name} as second
    from rhapsody.backends.execution.{alias} import {name} as third
    from {package} import {name} as original
    assert {name} is second is third is original
    """
    run(code, tmp_path)


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_without_its_library_is_not_listed(tmp_path: Path, name: str) -> None:
    _, needed, distribution, _ = PLUGINS[name]
    fake_plugin(tmp_path, name, library=False, source=f"import {needed}")
    code = f"""
    sys.modules[{needed.split(".")[0]!r}] = None
    import rhapsody
    assert {name!r} not in rhapsody.__all__
    assert not hasattr(rhapsody, {name!r})
    try:
        from rhapsody import {name}
    except ModuleNotFoundError as error:
        assert {needed.split(".")[0]!r} in str(error)
        assert str(error).endswith({install_command(distribution)!r})
    """
    run(code, tmp_path)


@pytest.mark.parametrize("source", ["1 / 0", "import sys; sys.exit(1)"])
def test_a_plugin_that_breaks_while_it_is_imported_keeps_hasattr_working(
    tmp_path: Path, source: str
) -> None:
    fake_plugin(tmp_path, "DaskExecutionBackend", source=source)
    code = """
    import rhapsody
    assert not hasattr(rhapsody, "DaskExecutionBackend")
    try:
        from rhapsody import DaskExecutionBackend
    except (ZeroDivisionError, SystemExit):
        print("as it is")
    """
    assert run(code, tmp_path) == "as it is\n"


@pytest.mark.parametrize("source", ["1 / 0", "import sys; sys.exit(1)", "import no_such_module"])
def test_star_imports_leave_out_a_plugin_that_breaks_while_it_is_imported(
    tmp_path: Path, source: str
) -> None:
    fake_plugin(tmp_path, "DaskExecutionBackend", source=source)
    code = """
    for package in ("rhapsody", "rhapsody.backends"):
        namespace = {}
        exec(f"from {package} import *", namespace)
        assert "LocalExecutionBackend" in namespace
        assert "DaskExecutionBackend" not in namespace
        assert "DaskExecutionBackend" not in sys.modules[package].__all__
        assert "DaskExecutionBackend" not in dir(sys.modules[package])
    """
    run(code, tmp_path)


def test_a_name_whose_import_failed_is_listed_again_once_it_can_be_imported(
    tmp_path: Path,
) -> None:
    fake_plugin(tmp_path, "DaskExecutionBackend", source="import mended_later")
    code = f"""
    import rhapsody
    assert not hasattr(rhapsody, "DaskExecutionBackend")
    assert "DaskExecutionBackend" not in rhapsody.__all__
    open({str(tmp_path / "mended_later.py")!r}, "w").close()
    open({str(tmp_path / "rhapsody_dask.py")!r}, "a").write("\\nclass DaskExecutionBackend: ...")
    import importlib
    importlib.invalidate_caches()
    from rhapsody import DaskExecutionBackend
    assert "DaskExecutionBackend" in rhapsody.__all__
    """
    run(code, tmp_path)


CLASH = """
import rhapsody_guard
rhapsody_guard.check()
"""


@pytest.mark.parametrize(
    "statement",
    [
        "from rhapsody import DaskExecutionBackend",
        "from rhapsody.backends.execution.dask_parallel import DaskExecutionBackend",
        "import rhapsody; rhapsody.DaskExecutionBackend",
        "import rhapsody; rhapsody.get_backend('dask')",
    ],
)
def test_what_a_clash_keeps_from_being_imported_ends_with_what_removes_the_clash(
    tmp_path: Path, statement: str
) -> None:
    install(tmp_path, "rhapsody-py", version="0.2.0")
    install(tmp_path, "rhapsody-dask", version="9", backends={"dask": "rhapsody_dask"})
    fake_plugin(tmp_path, "DaskExecutionBackend", source=CLASH)
    code = f"""
    try:
        {statement}
    except (ImportError, AttributeError) as error:
        print(error)
    """
    *_, first, second = run(code, tmp_path).strip().splitlines()
    assert first == "  pip uninstall -y rhapsody-py"
    assert second == "  pip install --force-reinstall --no-deps rhapsody-core"


def test_a_plugin_installed_while_the_program_runs_is_found(tmp_path: Path) -> None:
    fake_plugin(tmp_path, "DaskExecutionBackend")
    code = f"""
    import rhapsody
    before = hasattr(rhapsody, "DaskExecutionBackend")
    sys.path.insert(0, {str(tmp_path)!r})
    assert "DaskExecutionBackend" in rhapsody.__all__
    from rhapsody import DaskExecutionBackend
    """
    run(code)


# What importing costs.

HEAVY = [
    "asyncio",
    "cloudpickle",
    "dask",
    "distributed",
    "importlib_metadata",
    "numpy",
    "pluggy",
    "radical",
    "rich",
    "sklearn",
    "typeguard",
]


def test_importing_rhapsody_imports_nothing_heavy() -> None:
    code = f"""
    import rhapsody, rhapsody.backends
    print(sorted(set({HEAVY!r}) & set(sys.modules)))
    """
    assert run(code) == "[]\n"


@pytest.mark.parametrize(
    "name", ["WorkflowEngine", "get_backend", "StateMapper", "hookimpl", "RhapsodyError"]
)
def test_using_a_name_imports_no_backend_library(name: str) -> None:
    code = f"""
    from rhapsody import {name}
    libraries = {{"dask", "distributed", "radical", "rich", "sklearn", "typeguard", "numpy"}}
    print(sorted(libraries & set(sys.modules)))
    """
    assert run(code) == "[]\n"


def test_the_versions_are_printed_without_the_engine() -> None:
    code = """
    from rhapsody.cli import main
    try:
        main(["--version"])
    except SystemExit:
        pass
    print(sorted({"asyncio", "email.policy", "pluggy", "rhapsody.task"} & set(sys.modules)))
    """
    assert run(code).splitlines()[-1] == "[]"


def test_importing_rhapsody_costs_little_compared_with_asyncio() -> None:
    def seconds(module: str) -> float:
        code = (
            f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-c", code],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return float(done.stdout)

    pairs = [(seconds("rhapsody"), seconds("asyncio")) for _ in range(7)]
    ours, asyncio_s = map(min, zip(*pairs, strict=True))  # a busy machine only adds
    assert ours <= 1.7 * asyncio_s


# Where Rhapsody does not run.


def test_on_windows_it_says_that_it_is_not_supported() -> None:
    code = """
    sys.platform = "win32"
    try:
        import rhapsody
    except ImportError as error:
        print(error)
    from rhapsody_guard.command import main
    print(main())
    """
    text = run(code)
    assert "does not support Windows" in text
    assert text.endswith("\n1\n")
