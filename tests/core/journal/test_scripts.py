"""Modules and inner scripts of the scripts that commands name."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody import InputFile, LocalExecutionBackend
from tests._support.recorded import LOG, engine, note, ran

pytestmark = pytest.mark.asyncio

BESIDE = "import os, sys\nsys.path.append(os.path.dirname(__file__) + '/../tools')\n"

FILES = {
    "tools/tool.py": "import lib.core\nprint(lib.core.value())\n",
    "tools/tool": f"#!{sys.executable}\nfrom lib.core import value\nprint(value())\n",
    "tools/lib/run.py": "from lib.core import value\nprint(value())\n",
    "tools/lib/core.py": "from .inner import deep\ndef value():\n    return deep.VALUE\n",
    "tools/lib/inner/deep.py": "from ...far import VALUE\n",
    "tools/far.py": "VALUE = 'one'\n",
    "package/__init__.py": "from tools.far import VALUE\n",
    "package/__main__.py": "from . import VALUE\nprint(VALUE)\n",
    "package/tool.py": "from package import VALUE\nprint(VALUE)\n",
    "package_with_main/__main__.py": "from value import VALUE\nprint(VALUE)\n",
    "package_with_main/value.py": f"{BESIDE}from far import VALUE\n",
    "elsewhere/run.sh": 'python3 "$(dirname "$0")"/main\n',
    "links/main": f"#!/usr/bin/env python3\n{BESIDE}from far import VALUE\nprint(VALUE)\n",
    "parts.py": (
        "import os, runpy\nTOOLS = os.path.join(os.path.dirname(__file__), 'elsewhere', 'inner')\n"
        "print(runpy.run_path(os.path.join(TOOLS, 'step.py'))['VALUE'])\n"
    ),
    "elsewhere/inner/step.py": "import sys\nsys.path.append('tools')\nfrom far import VALUE\n",
    "elsewhere/tool.py": "import far, os, numpy\nprint(far.VALUE)\n",
}


@pytest.fixture(autouse=True)
def written(here: Path) -> None:
    (here / LOG).touch()
    for name, text in FILES.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text.replace("...far", "..base") if "deep" in name else text)
    (here / "tools" / "lib" / "base.py").write_text("from far import VALUE\n")
    (here / "tools" / "tool").chmod(0o755)
    (here / "links" / "run.sh").symlink_to("../elsewhere/run.sh")


def in_a_list(here: Path) -> dict[str, Any]:
    return {"command": [sys.executable, str(here / "tools" / "tool.py")]}


def in_a_shell(here: Path) -> dict[str, Any]:
    return {"command": f"{sys.executable} '{here}/tools/tool.py' | cat"}


def an_executable(here: Path) -> dict[str, Any]:
    return {"command": f"{here}/tools/tool"}


def below_its_directory(here: Path) -> dict[str, Any]:
    return {"command": f"{sys.executable} tools/tool.py", "cwd": str(here)}


def a_directory(here: Path) -> dict[str, Any]:
    return {"command": f"{sys.executable} {here}/package_with_main"}


def a_link(here: Path) -> dict[str, Any]:
    return {"command": ["bash", str(here / "links" / "run.sh")]}


def a_module(here: Path) -> dict[str, Any]:
    return {"command": [sys.executable, "-m", "package.tool"], "cwd": str(here)}


def a_package(here: Path) -> dict[str, Any]:
    return {"command": f"{sys.executable} -m package", "cwd": str(here)}


SERVER = (
    "import runpy, sys; sys.path.insert(0, ''); "
    "runpy.run_module(sys.argv[1].partition(':')[0], run_name='__main__')"
)


def an_object_of_a_module(here: Path) -> dict[str, Any]:
    return {"command": [sys.executable, "-c", SERVER, "package.tool:app"], "cwd": str(here)}


def a_quoted_object_of_a_module(here: Path) -> dict[str, Any]:
    words = [sys.executable, "-c", SERVER, "package.tool:app"]
    return {
        "command": " ".join(map(shlex.quote, words[:3])) + " 'package.tool:app'",
        "cwd": str(here),
    }


def an_object_that_a_script_names(here: Path) -> dict[str, Any]:
    (here / "serve.py").write_text(f"import sys\nsys.argv.append('package.tool:app')\n{SERVER}\n")
    return {"command": [sys.executable, str(here / "serve.py")], "cwd": str(here)}


def on_a_path(here: Path) -> dict[str, Any]:
    environment = {"PYTHONPATH": str(here / "tools")}
    return {
        "command": f"{sys.executable} {here}/elsewhere/tool.py",
        "environment": environment,
    }


def a_module_on_a_path(here: Path) -> dict[str, Any]:
    return {
        "command": f"{sys.executable} -m lib.run",
        "environment": {"PYTHONPATH": str(here / "tools")},
    }


def a_module_on_a_path_in_the_command(here: Path) -> dict[str, Any]:
    return {"command": f"PYTHONPATH={here}/tools {sys.executable} -m lib.run"}


@pytest.mark.parametrize(
    "how",
    [in_a_list, in_a_shell, an_executable, below_its_directory, a_module, a_package, on_a_path,
     a_directory, a_link, an_object_of_a_module, an_object_that_a_script_names,
     a_quoted_object_of_a_module,
     a_module_on_a_path, a_module_on_a_path_in_the_command],
)  # fmt: skip
async def test_modules_that_the_script_of_a_command_imports_count(
    here: Path, how: Callable[[Path], dict[str, Any]]
) -> None:
    settings = how(here)
    command = settings.pop("command")
    for text, reused in (("one", 0), ("one", 1), ("another", 0), ("another", 1)):
        (here / "tools" / "far.py").write_text(f"VALUE = {text!r}\n")
        async with engine(resume=True) as flow:
            task = flow.executable_task(name="tool", **settings)(lambda: command)
            assert await task() == f"{text}\n"
            assert flow.stats.recorded == reused


async def test_modules_that_an_input_file_imports_count(here: Path) -> None:
    for text, reused in (("one", 0), ("one", 1), ("another", 0), ("another", 1)):
        (here / "tools" / "far.py").write_text(f"VALUE = {text!r}\n")
        async with engine(resume=True) as flow:

            @flow.executable_task
            def tool(script: str) -> str:
                return f"{sys.executable} {script}"

            assert await tool(InputFile("tools/tool.py")) == f"{text}\n"
            assert flow.stats.recorded == reused


LOADING = {
    "beside": 'source "$(dirname "$0")/lib.sh"',
    "variable": 'HERE=$(cd "$(dirname "$0")" && pwd)\n. "$HERE/lib.sh"',
    "no ending": 'HERE="$(dirname "$0")"; . "${HERE}/inner/settings"',
    "python": 'cd "$(dirname "$0")" && VALUE="$(python3 tool.py)"',
    "relative": "source tools/lib.sh",
    "two": 'source "${0%/*}/both.sh"',
    "program": 'HERE="$(dirname "$0")"; VALUE=$($HERE/inner/program)',
    "module": 'cd "$(dirname "$0")"; VALUE="$(python3 -m tool)"',
    "module, options": 'cd "$(dirname "$0")"; VALUE="$(python3 -W ignore -X dev -m tool)"',
    "module, variable": 'cd "$(dirname "$0")"; P=python3; VALUE="$($P \\\n  -m tool)"',
    "module in a python list": (
        'cd "$(dirname "$0")"; VALUE=$(python3 -c '
        '\'import subprocess, sys; subprocess.run([sys.executable, "-m", "tool"])\')'
    ),
    "default": 'cd "$(dirname "$0")"; source ${1:-lib.sh}',
    "default without a colon": 'cd "$(dirname "$0")"; FILE=${1-lib.sh}; . ./$FILE',
    "module, joined": 'cd "$(dirname "$0")"; VALUE="$(python3 -um tool)"',
    "directory in a variable": (
        'HERE="$(cd "$(dirname "$0")" && pwd)"\nINNER="$HERE/inner"\n. "$INNER/lib.sh"'
    ),
    "program after python": 'HERE="$(dirname "$0")"; VALUE=$(python3 ${HERE}/main)',
    "lines of python": "VALUE=$(PYTHONPATH=tools python3 - <<'END'\nimport tool\nEND\n)",
    "code of python": "VALUE=$(PYTHONPATH=tools python3 -c 'import tool')",
}


@pytest.mark.parametrize("how", LOADING)
@pytest.mark.parametrize("by", ["command", "function"])
async def test_scripts_that_a_shell_script_loads_count(here: Path, by: str, how: str) -> None:
    def call() -> str:
        words = ["bash", "tools/run.sh"]
        return subprocess.run(words, capture_output=True, text=True).stdout

    (here / "tools" / "run.sh").write_text(f"{LOADING[how]}\necho $VALUE\n")
    (here / "tools" / "both.sh").write_text("# tools/far.py\n. ${0%/*}/lib.sh\n")
    (here / "tools" / "inner").mkdir()
    (here / "tools" / "inner" / "program").touch(0o755)
    for text, reused in (("one", 0), ("one", 1), ("another", 0), ("another", 1)):
        (here / "tools" / "far.py").write_text(f"VALUE = {text!r}\n")
        (here / "tools" / "inner" / "program").write_text(f"#!/bin/sh\necho {text}\n")
        (here / "tools" / "main").write_text(f"#!/usr/bin/env python3\nprint({text!r})\n")
        for name in ("lib.sh", "inner/settings", "inner/lib.sh"):
            if "python" not in how and "program" not in how:
                (here / "tools" / name).write_text(f"VALUE={text}\n")
        async with engine(resume=True) as flow:
            if by == "command":
                task = flow.executable_task(name="run", cwd=str(here))(lambda: "bash tools/run.sh")
                assert await task() == f"{text}\n"
            else:
                assert await flow.function_task(call)() == f"{text}\n"
            assert flow.stats.recorded == reused


IN_PERL = {
    "use lib": ("perl", "", 'use FindBin; use lib "$FindBin::Bin/../perl";'),
    "lib": ("lib", "", "use FindBin;\nuse lib $FindBin::Bin . '/../lib';"),
    "qw": ("perl", "", "use File::Basename; use lib (dirname(__FILE__) . '/../perl');"),
    "option": ("modules", "-I{directory} ", ""),
    "variable": ("modules", "PERL5LIB={directory} ", ""),
}


@pytest.mark.skipif(shutil.which("perl") is None, reason="perl is missing")
@pytest.mark.parametrize("how", IN_PERL)
@pytest.mark.parametrize("by", ["command", "function"])
async def test_modules_that_a_perl_script_loads_count(here: Path, by: str, how: str) -> None:
    directory, option, line = IN_PERL[how]
    if option and by == "function":
        directory = "lib"  # other directories are not found
    option = option.format(directory=here / directory)
    perl = f"perl {option}" if option.startswith("-") else f"{option}perl "

    def call() -> str:
        words = f"{perl}{here}/tools/mean.pl"
        return subprocess.run(words, shell=True, capture_output=True, text=True).stdout

    (here / directory / "Sample").mkdir(parents=True)
    (here / "tools" / "mean.pl").write_text(f"{line}\nuse Sample::Mean qw(mean);\nprint mean();\n")
    module = "package Sample::Mean; use parent 'Exporter'; our @EXPORT_OK = ('mean');\n"
    (here / directory / "Sample" / "Mean.pm").write_text(
        f"{module}require Value; sub mean {{ Value::value() }} 1;\n"
    )
    for text, reused in (("one", 0), ("one", 1), ("another", 0), ("another", 1)):
        (here / directory / "Value.pm").write_text(f"package Value; sub value {{ '{text}' }} 1;\n")
        async with engine(resume=True) as flow:
            if by == "command":
                task = flow.executable_task(name="mean")(lambda: f"{perl}{here}/tools/mean.pl")
                assert await task() == text
            else:
                assert await flow.function_task(call)() == text
            assert flow.stats.recorded == reused


OTHER_LANGUAGES = {
    "octave": ("run.m", "x = helper(1);", "helper.m"),
    "octave path": ("run.m", "addpath(fullfile(pwd, 'inner'))\nx = helper(1);", "inner/helper.m"),
    "julia": ("run.jl", "push!(LOAD_PATH, @__DIR__)\nusing Helper: f", "Helper.jl"),
    "lua": ("run.lua", "local f = require('inner.helper')", "inner/helper.lua"),
    "ruby": ("run.rb", "require_relative 'inner/helper'", "inner/helper.rb"),
    "javascript": ("run.js", "const { f } = require('./inner/helper');", "inner/helper.js"),
    "javascript module": ("run.mjs", "import { f } from './inner/helper.mjs'", "inner/helper.mjs"),
    "javascript directory": ("run.cjs", "const x = require('./inner')", "inner/index.js"),
    "javascript data": ("run.js", "const x = require('./inner/x.json')", "inner/x.json"),
    "javascript program": ("run", "#!/usr/bin/env node\nrequire('./helper')", "helper.js"),
}


@pytest.mark.parametrize("language", OTHER_LANGUAGES)
async def test_modules_of_scripts_in_other_languages_count(here: Path, language: str) -> None:
    script, text, module = OTHER_LANGUAGES[language]
    (here / "tools" / "inner").mkdir()
    (here / "tools" / script).write_text(f"{text}\n")
    for number, reused in ((1, 0), (1, 1), (2, 0)):
        (here / "tools" / module).write_text(f"{number}\n")
        async with engine(resume=True) as flow:
            await flow.executable_task(name="run")(lambda: f"cat {here}/tools/{script}")()
            assert flow.stats.recorded == reused


async def test_scripts_in_comments_do_not_count(here: Path) -> None:
    (here / "tools" / "run.sh").write_text("# called by other.sh\necho 1 # see other.sh\n")
    for number in range(2):
        (here / "tools" / "other.sh").write_text(f"echo {number}\n")
        async with engine(resume=True) as flow:
            await flow.executable_task(name="run")(lambda: f"bash {here}/tools/run.sh")()
            assert flow.stats.recorded == number


def started(*words: str) -> str:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True).stdout


@pytest.mark.parametrize("executor", ["thread", "process"])
@pytest.mark.parametrize(
    "words",
    [
        ("tools/tool.py",),
        ("-m", "package"),
        ("-m", "package.tool"),
        ("package_with_main",),
        ("-um", "package.tool"),
        ("-mpackage",),
        ("parts.py",),
    ],
    ids=" ".join,
)
async def test_modules_that_a_script_imports_count_for_the_function_that_starts_it(
    here: Path, words: tuple[str, ...], executor: Any
) -> None:
    def call() -> str:
        note("call")
        return started(*words)

    def call_with(*words: str) -> str:
        note("call with")
        return started(*words)

    for text in ("one", "another"):
        (here / "tools" / "far.py").write_text(f"VALUE = {text!r}\n")
        for _ in range(2):
            async with engine(resume=True, backend=LocalExecutionBackend(executor)) as flow:
                assert await flow.function_task(call)() == f"{text}\n"
                assert await flow.function_task(call_with)(*words) == f"{text}\n"
    assert ran() == {"call": 2, "call with": 2}


SEARCHING = {
    "in a script": 'sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tools"))',
    "with pathlib": 'sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))',
    "the directory above": "sys.path.append(str(Path(__file__).resolve().parents[1]))",
    "in a variable": 'TOOLS = Path(__file__).parent / "../tools"\nsys.path.insert(0, f"{TOOLS}")',
    "in a text": 'sys.path.insert(0, f"{os.path.dirname(__file__)}/../tools")',
    "in a list": 'sys.path[:0] = ["data", str(Path(__file__).parents[1] / "tools")]',
    "in a loop": 'for name in ("tools", "data"):\n    sys.path.insert(0, str(HERE / name))',
    "on several lines": 'sys.path.insert(  # first\n    0,\n    os.path.join(HERE, "tools"),\n)',
    "in a module": "import paths",
    "in the command": "",
    "in a shell script": "",
}


@pytest.mark.parametrize("how", SEARCHING)
async def test_modules_on_a_search_path_that_is_set_before_they_are_imported_count(
    here: Path, how: str
) -> None:
    module = "tools.far" if how == "the directory above" else "far"
    imports = f"from {module} import (  # not ) here\n    # nor here, (\n    VALUE,\n)\n"
    start = '"""Called by run.sh."""\nimport os, sys\nfrom pathlib import Path\n'
    start += f"HERE = Path(__file__).resolve().parents[1]\n{SEARCHING[how]}\n"
    (here / "elsewhere" / "tool.py").write_text(f"{start}{imports}print(VALUE)\n")
    (here / "elsewhere" / "paths.py").write_text(BESIDE)
    run = '#!/bin/sh\nHERE="${0%/*}"\nexport PYTHONPATH="$HERE/tools:$PYTHONPATH"\n'
    command = f"{sys.executable} {here}/elsewhere/tool.py"
    if how == "in the command":
        command = f"PYTHONPATH={here}/tools {command}"
    elif how == "in a shell script":
        command = f"sh {here}/run.sh"
    for number, (text, reused) in enumerate(
        [("one", 0), ("one", 1), ("another", 0), ("another", 1)]
    ):
        (here / "tools" / "far.py").write_text(f"VALUE = {text!r}\n")
        comment = number if how != "in a shell script" else ""
        (here / "run.sh").write_text(f"{run}python3 $HERE/elsewhere/tool.py # {comment}\n")
        async with engine(resume=True) as flow:
            assert await flow.executable_task(name="run")(lambda: command)() == f"{text}\n"
            assert flow.stats.recorded == reused


@pytest.mark.parametrize("by", ["command", "function"])
async def test_each_module_that_a_search_path_may_lead_to_counts(here: Path, by: str) -> None:
    def call() -> str:
        return started("tools/tool.py")

    place = 'os.path.join(os.path.dirname(__file__), "lib")'
    text = f"import os, sys\nsys.path.insert(0, {place})\nfrom far import VALUE\nprint(VALUE)\n"
    (here / "tools" / "tool.py").write_text(text)
    found = []
    for shadow in (None, None, "VALUE = 'two'\n", "VALUE = 'three'\n", None):
        (here / "tools" / "lib" / "far.py").unlink(missing_ok=True)
        if shadow is not None:
            (here / "tools" / "lib" / "far.py").write_text(shadow)
        async with engine(resume=True) as flow:
            if by == "command":
                task = flow.executable_task(lambda: f"{sys.executable} {here}/tools/tool.py")
            else:
                task = flow.function_task(call)
            found.append((await task(), flow.stats.recorded))
    one = ("one\n", 0), ("one\n", 1)
    last = "one\n", int(by == "command")  # of a function, only the last result is found
    assert found == [*one, ("two\n", 0), ("three\n", 0), last]


@pytest.mark.parametrize("how", ["module", "script", "command"])
async def test_modules_on_a_path_count_for_the_function_that_sets_it(here: Path, how: str) -> None:
    words = ["-m", "lib.run"] if how == "module" else ["elsewhere/tool.py"]

    def call() -> str:
        if how == "command":
            text = f"PYTHONPATH=tools {sys.executable} elsewhere/tool.py"
            return subprocess.run(text, shell=True, capture_output=True, text=True).stdout
        command = [sys.executable, *words]
        variables = {**os.environ, "PYTHONPATH": "tools"}
        return subprocess.run(command, env=variables, capture_output=True, text=True).stdout

    for text, reused in (("one", 0), ("one", 1), ("another", 0)):
        (here / "tools" / "far.py").write_text(f"VALUE = {text!r}\n")
        async with engine(resume=True) as flow:
            assert await flow.function_task(call)() == f"{text}\n"
            assert flow.stats.recorded == reused


async def test_the_executable_and_the_arguments_of_a_new_process_count(here: Path) -> None:
    def by_executable() -> str:
        return subprocess.run(["x"], executable="./run", capture_output=True, text=True).stdout

    def by_posix_spawn() -> int:
        process = os.posix_spawn("/bin/sh", ["sh", "run"], os.environ)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    for number, reused in ((1, 0), (1, 2), (2, 0)):
        (here / "run").write_text(f"#!/bin/sh\necho {number}\nexit {number}\n")
        (here / "run").chmod(0o755)
        async with engine(resume=True) as flow:
            assert await flow.function_task(by_executable)() == f"{number}\n"
            assert await flow.function_task(by_posix_spawn)() == number
            assert flow.stats.recorded == reused


async def test_a_new_script_that_a_script_names_counts_for_a_function(here: Path) -> None:
    def call() -> str:
        return subprocess.run(["sh", "run.sh"], capture_output=True, text=True).stdout

    (here / "run.sh").write_text("VALUE=1\n[ -f settings.sh ] && . ./settings.sh\necho $VALUE\n")
    found = []
    for number in range(4):
        if number == 2:
            (here / "settings.sh").write_text("VALUE=2\n")
        async with engine(resume=True) as flow:
            found.append((await flow.function_task(call)(), flow.stats.recorded))
    assert found == [("1\n", 0), ("1\n", 1), ("2\n", 0), ("2\n", 1)]


async def test_a_new_module_that_replaces_another_one_counts(here: Path) -> None:
    script = "try:\n    from far.new import VALUE\nexcept ImportError:\n    from far import VALUE\n"
    (here / "tools" / "tool.py").write_text(f"{script}print(VALUE)\n")
    found = []
    for number in range(3):
        if number == 2:
            (here / "tools" / "far").mkdir()
            (here / "tools" / "far" / "__init__.py").touch()
            (here / "tools" / "far" / "new.py").write_text("VALUE = 'new'\n")
        async with engine(resume=True) as flow:
            task = flow.executable_task(lambda: [sys.executable, str(here / "tools/tool.py")])
            found.append((await task(), flow.stats.recorded))
    assert found == [("one\n", 0), ("one\n", 1), ("new\n", 0)]


async def test_other_modules_and_text_that_is_not_python_do_not_count(here: Path) -> None:
    (here / "tools" / "tool.py").write_text("import os, numpy.linalg, missing.inner (\n")
    (here / "tools" / "note.txt").write_text("import far\n")
    command = f"cat {here}/tools/tool.py {here}/tools/note.txt"
    for number in range(2):
        (here / "tools" / "far.py").write_text(f"VALUE = {number}\n")
        async with engine(resume=True) as flow:
            await flow.executable_task(name="cat")(lambda: command)()
            assert flow.stats.recorded == number


def installed_beside(environment: Path, version: str, digest: str) -> Path:
    """Install a package with a program into an environment, as pip does."""
    site = environment / "lib" / "python3" / "site-packages"
    for path in (*site.glob("vtool*"), environment / "bin"):
        shutil.rmtree(path, ignore_errors=True)
    for directory in (site / "vtool", site / f"vdist-{version}.dist-info", environment / "bin"):
        directory.mkdir(parents=True)
    (site / "vtool" / "__init__.py").write_text(f"def main():\n    print({digest!r})\n")
    (site / f"vdist-{version}.dist-info" / "RECORD").write_text(f"vtool/__init__.py,{digest},\n")
    program = environment / "bin" / "vtool-run"
    lines = f"import sys\nsys.path.append({str(site)!r})\nfrom vtool import main\nmain()\n"
    program.write_text(f"#!{sys.executable}\n{lines}")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("how", ["list", "shell"])
async def test_the_package_of_a_program_that_pip_installed_counts(
    tmp_path: Path, here: Path, how: str
) -> None:
    for version, digest, reused in (("1", "a", 0), ("1", "a", 1), ("1", "b", 0), ("2", "c", 0)):
        for former in (tmp_path / "env" / "lib").glob("python3/site-packages/vdist-*"):
            shutil.rmtree(former)
        program = installed_beside(tmp_path / "env", version, digest)
        command: Any = [str(program)] if how == "list" else f"{program} | cat"
        async with engine(resume=True) as flow:
            tool = flow.executable_task(name="tool")(lambda value: value)
            assert await tool(command) == f"{digest}\n"
            assert flow.stats.recorded == reused


async def test_an_installed_module_that_python_runs_counts(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = installed_beside(tmp_path / "env", "1", "a").parent.parent / "lib/python3/site-packages"
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(site))
    for text, reused in (("one", 0), ("one", 1), ("another", 0)):
        (site / "vtool" / "__main__.py").write_text("from vtool import TEXT\nprint(TEXT)\n")
        (site / "vtool" / "__init__.py").write_text(f"TEXT = {text!r}\n")
        (site / "vdist-1.dist-info" / "RECORD").write_text(f"vtool/__init__.py,{text},\n")
        async with engine(resume=True) as flow:

            @flow.executable_task(environment={"PYTHONPATH": str(site)})
            def tool() -> list[str]:
                return [sys.executable, "-m", "vtool"]

            assert await tool() == f"{text}\n"
            assert flow.stats.recorded == reused
