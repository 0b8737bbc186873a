"""`rhapsody run --resume` on worker processes, after a run on threads: what is reused, what is not.

A worker imports the program's modules again. A result is reused if the variables of the modules
have the values that the import gives them, as far as the function uses them.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests._support.programs import PATIENCE
from tests._support.resumed import Place

MODULE = """
import collections, dataclasses, enum, functools, logging, re, threading, typing

RATE = 0.5
TABLE = {"a": 1, "b": [1, 2]}
NAMES = ("x", "y")
TEXT = f"v{RATE}"
NONE = None
GROUP = frozenset({1, 2})
PATTERN = re.compile("a+")
log = logging.getLogger("some")
LETTERS = collections.Counter("aab")
DEFAULTS = collections.defaultdict(list)

class Plain:
    factor = 3
    table = {"a": 1}

    def __init__(self, number):
        self.number = number

    def times(self):
        return self.number * self.factor + self.table["a"]

class Derived(Plain):
    factor = 4

class Slots:
    __slots__ = ("number",)

    def __init__(self, number):
        self.number = number

@dataclasses.dataclass
class Data:
    number: int = 2
    others: list = dataclasses.field(default_factory=list)

@dataclasses.dataclass(frozen=True)
class Config:
    rate: float = 0.1

class Color(enum.Enum):
    RED = 1
    BLUE = 2

Point = collections.namedtuple("Point", "x y")

class Pair(typing.NamedTuple):
    x: int
    y: int = 3

ITEM = Plain(4)
CONFIG = Config()

def helper(number):
    return number + 1

def multiplier(factor):
    def multiply(number):
        return number * factor
    return multiply

def decorated(function):
    @functools.wraps(function)
    def around(*args):
        return function(*args)
    return around

double = multiplier(2)
plus = functools.partial(helper)
power = functools.partial(pow, 2)
square = lambda number: number * number
HANDLERS = {"helper": helper}

@functools.lru_cache
def cached(number):
    return number * 10

@decorated
def wrapped(number):
    return number - 1

def appended(number, others=[1, 2]):
    return number + len(others)

def counted(number):
    yield from range(number)
"""

SHAPES = """
@RATE * x|@TABLE["a"] + x|@NAMES[0]|@TEXT|@NONE|len(@GROUP)|@PATTERN.sub("b", "aac")|@log.debug("x")
@LETTERS["a"]|len(@DEFAULTS)|@Plain(x).times()|@Derived(x).times()|@Slots(x).number|@Data(x).number
@Config().rate|@Color.RED.value|@Point(x, 1).x|@Pair(x).y|@ITEM.times()|@CONFIG.rate|@helper(x)
@double(x)|@plus(x)|@power(x)|@square(x)|@HANDLERS["helper"](x)|@cached(x)|@wrapped(x)|@appended(x)
sum(@counted(x))|@Plain(x)|@Data(x)|@Color.BLUE|@Point(1, x)|@Config(x)|[@RATE, @ITEM]
"""


def program(start: str, prefix: str, shapes: str) -> str:
    """A program with one task for each of several expressions of `x`, which prints the results."""
    found = re.split(r"[|\n]", shapes.strip())
    tasks = "".join(
        f"    @flow.function_task\n    def shape_{number}(x):\n        return {each}\n\n"
        for number, each in enumerate(each.replace("@", prefix) for each in found)
    )
    calls = ", ".join(f"shape_{number}(3)" for number in range(len(found)))
    return (
        f"{start}\n\nasync def main(flow):\n{tasks}\n    for future in [{calls}]:\n"
        '        print(re.sub("0x[0-9a-f]+", "", repr(await future)))\n'
    )


@pytest.fixture
def place(place: Place) -> Place:
    place.write("values.py", MODULE)
    return place


WORKERS = ("-o", "executor=process", "-o", "cores=1")


def run(place: Place, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a process that starts after its files were written."""
    command = [sys.executable, "-m", "rhapsody", "run", "wf.py", *options]
    return subprocess.run(
        command, cwd=place.path, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def reused(place: Place) -> int:
    """Run the program on worker processes, and return how many results were reused."""
    done = run(place, "--resume", *WORKERS)
    assert done.returncode == 0, done.stderr
    found = re.search(r"\((\d+) of them reused\)", done.stderr)
    return int(found[1]) if found else 0


@pytest.mark.parametrize("where", ["script", "module"])
def test_results_of_threads_are_reused_on_workers(place: Place, where: str) -> None:
    if where == "script":
        place.write("wf.py", program(MODULE, "", SHAPES))
    else:
        place.write("wf.py", program("import re, values", "values.", SHAPES))
    first = run(place)
    assert "36 done in" in first.stderr, first.stderr
    assert reused(place) == 36


CHANGES = """
values.RATE = 7|@RATE
values.TABLE["a"] = 7|@TABLE["a"]
values.ITEM.number = 7|@ITEM.times()
values.Plain.factor = 7|@Plain(x).times()
values.Plain.table["a"] = 7|@Plain(x).times()
values.LETTERS["a"] = 7|@LETTERS["a"]
values.DEFAULTS[7] = []|len(@DEFAULTS)
values.CONFIG = values.Config(7)|@CONFIG.rate
values.PATTERN = re.compile("a")|@PATTERN.sub("b", "aac")
values.power = values.functools.partial(pow, 7)|@power(x)
values.double = values.multiplier(7)|@double(x)
values.double.__closure__[0].cell_contents = 7|@double(x)
values.helper = values.square|@helper(x)
values.HANDLERS["helper"] = values.square|@HANDLERS["helper"](x)
"""


@pytest.mark.parametrize("change", CHANGES.strip().splitlines())
def test_results_with_a_variable_that_the_script_has_changed_are_not(
    place: Place, change: str
) -> None:
    statement, _, shape = change.partition("|")
    place.write("wf.py", program(f"import re, values\n{statement}", "values.", f"{shape}|@NONE"))
    on_threads = run(place).stdout
    assert reused(place) == 1  # the other task
    on_workers = run(place, "--no-journal", *WORKERS).stdout
    assert on_workers != on_threads


def test_results_with_a_variable_that_another_module_has_changed_are_not(place: Place) -> None:
    place.write("changing.py", "import values\nvalues.RATE = 7\n")
    place.write("wf.py", program("import re, changing, values", "values.", "@RATE|@NONE"))
    assert run(place).stdout.splitlines()[0] == "7"
    assert reused(place) == 1


def test_results_with_a_variable_that_depends_on_the_process_are_not(place: Place) -> None:
    place.write("values.py", "import os\nLEVEL = os.environ.get('LEVEL', 0)\nRATE = 1\n")
    place.write("others.py", "LEVEL = 1 + 1\n")
    shapes = "@LEVEL|@RATE|others.LEVEL"
    place.write("wf.py", program("import re, others, values", "values.", shapes))
    assert run(place).returncode == 0
    assert reused(place) == 2  # a literal is the same everywhere


def test_results_with_values_that_only_an_import_could_tell_are_not(place: Place) -> None:
    """Objects of libraries may do anything when they are inspected."""
    place.write("values.py", "import pytest\nMARK = pytest.mark.skip\nRATE = 1\n")
    place.write("wf.py", program("import re, values", "values.", "str(@MARK)|@RATE"))
    assert run(place).returncode == 0
    assert reused(place) == 1


STARTED = """
import asyncio, re, sys, values
from rhapsody import LocalExecutionBackend, WorkflowEngine

if sys.argv[2:]:
    exec(sys.argv[2])

async def main():
    backend = LocalExecutionBackend(sys.argv[1], resources={"cores": 1})
    async with WorkflowEngine.create(backend, journal="own.sqlite", resume=True) as flow:
        await tasks(flow)
        print("reused", flow.stats.recorded)
"""

LITERALS = "@RATE|@TABLE|@NAMES|@NONE|@Plain(x).times()|@Derived(x).times()"


def test_a_program_that_python_starts_reuses_results_with_literals(place: Place) -> None:
    tasks = program("", "values.", f"{LITERALS}|@ITEM.times()").replace("main(", "tasks(")
    start = "if __name__ == '__main__':\n    asyncio.run(main())\n"
    place.write("wf.py", f"{tasks}\n{STARTED}\n{start}")

    def started(*arguments: str) -> str:
        command = [sys.executable, "wf.py", *arguments]
        return subprocess.run(
            command, cwd=place.path, capture_output=True, text=True, check=True, timeout=PATIENCE
        ).stdout.splitlines()[-1]

    assert started("thread") == "reused 0"
    assert started("process") == "reused 6"
    assert started("process", "values.RATE = 7; values.Plain.factor = 7") == "reused 3"


ODD = """
class Meta(type):
    @property
    def __module__(cls):
        raise ValueError("no module")

class Odd(metaclass=Meta):
    pass

RATE = 1 + 1
"""


def test_a_module_that_cannot_be_inspected_does_not_end_the_run(place: Place) -> None:
    place.write("values.py", ODD)
    place.write("wf.py", program("import re, values", "values.", "@RATE"))
    done = run(place)
    assert (done.returncode, done.stdout) == (0, "2\n")
    assert "module 'values' cannot be inspected completely" in done.stderr


SETTINGS = "SCALE = 1\nTABLE = {'scale': 1}\n"
DERIVED = "import settings\nRATE = settings.SCALE + settings.TABLE['scale']\n"

PREPARED = {
    # What the program does before it imports a module: the script, and other modules.
    "the script sets a variable": ("import settings\nsettings.SCALE = 5\n", {}),
    "the script changes a dict": ("from settings import TABLE\nTABLE['scale'] = 5\n", {}),
    "the script sets a variable of a library": (
        "import math\nmath.pi = 5\n",
        {"derived": "import math\nRATE = 2 * math.pi\n"},
    ),
    "the script seeds a generator": (
        "import random\nrandom.seed(1)\n",
        {"derived": "import random\nRATE = random.random()\n"},
    ),
    "another module sets a variable": (
        "import changing\n",
        {"changing": "import settings\nsettings.SCALE = 5\n"},
    ),
    "another module draws from the same counter": (
        "import changing\n",
        {
            "settings": "COUNT = [0]\ndef number():\n    COUNT[0] += 1\n    return COUNT[0]\n",
            "changing": "import settings\nRATE = settings.number()\n",
            "derived": "import settings\nRATE = settings.number()\n",
        },
    ),
    "another module seeds a generator": (
        "import changing\n",
        {
            "changing": "import random\nrandom.seed(1)\n",
            "derived": "import random\nRATE = random.random()\n",
        },
    ),
    "another module knows the process": (
        "",
        {
            "settings": "import multiprocessing\n"
            "def scale(): return multiprocessing.parent_process() is None\n",
            "derived": "import settings\nRATE = settings.scale()\n",
        },
    ),
}


@pytest.mark.parametrize("what", PREPARED)
def test_results_with_a_variable_that_was_computed_at_an_import_are_not(
    place: Place, what: str
) -> None:
    """The worker imports the module without what the program did before."""
    start, modules = PREPARED[what]
    for name, text in {"settings": SETTINGS, "derived": DERIVED, **modules}.items():
        place.write(f"{name}.py", text)
    place.write("wf.py", program(f"{start}import re, derived", "derived.", "@RATE"))
    on_threads = run(place).stdout
    assert reused(place) == 0
    assert run(place, "--no-journal", *WORKERS).stdout != on_threads


def test_results_with_a_variable_of_a_module_that_was_reloaded_are_not(place: Place) -> None:
    place.write("settings.py", SETTINGS)
    place.write("derived.py", DERIVED)
    start = "import importlib, re, derived, settings\nsettings.SCALE = 5\n"
    place.write("wf.py", program(f"{start}importlib.reload(derived)", "derived.", "@RATE"))
    assert run(place).stdout == "6\n"
    assert reused(place) == 0


def test_results_are_reused_if_modules_import_each_other_in_packages(place: Place) -> None:
    (place.path / "group").mkdir()
    place.write(
        "group/__init__.py", "import logging\nlog = logging.getLogger()\nfrom .a import A\n"
    )
    place.write("group/a.py", "from .b import B\nA = [B, 2]\n")
    place.write("group/b.py", "B = {'a': 1}\n")
    place.write("wf.py", program("import re, group", "group.", "@A|@b.B"))
    assert run(place).returncode == 0
    assert reused(place) == 2


def test_the_value_that_a_worker_imports_counts_if_the_program_replaces_it(place: Place) -> None:
    start = "import re, model, settings\nsettings.RATE = 9\nsettings.TABLE['a'] = 9"
    place.write("wf.py", program(start, "model.", "@growth(x)"))
    place.write("model.py", "import settings\ndef growth(x):\n    return x * settings.RATE\n")
    for text, expected in ("RATE = 3", "9"), ("RATE = 5", "15"):
        place.write("settings.py", f"{text}\nTABLE = {{'a': 1}}\n")
        done = run(place, "--resume", *WORKERS)
        assert (done.returncode, done.stdout) == (0, f"{expected}\n"), done.stderr


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_variable_that_changes_while_calls_wait_is_noticed(place: Place, executor: str) -> None:
    text = """
import asyncio, os, time
SCALE = 1
def work(x):
    open("started", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    return x * SCALE
async def main(flow):
    global SCALE
    task = flow.function_task(work)
    futures = [task(x) for x in range(3)]
    while not os.path.exists("started"):
        await asyncio.sleep(0.01)
    SCALE = {scale}
    open("go", "w").close()
    await asyncio.gather(*futures)
    print(await task(3))
"""
    for scale in 3, 5:
        place.write("wf.py", text.format(scale=scale))
        for sign in "go", "started":
            (place.path / sign).unlink(missing_ok=True)
        done = run(place, "--resume", "-o", f"executor={executor}", "-o", "cores=1")
        assert (done.returncode, done.stdout) == (0, f"{3 * scale}\n"), done.stderr
        assert "of them reused" not in done.stderr


def test_a_registry_with_functions_that_the_program_fills_is_the_same_in_each_run(
    place: Place,
) -> None:
    place.write("registry.py", "def own(x): return x\nFOUND = {'own': own}\nNAMES = {'a', 'b'}\n")
    start = "import re, registry\ndef more(x): return x\nregistry.FOUND['more'] = more\n"
    place.write(
        "wf.py", program(f"{start}registry.NAMES.add('c')", "registry.", "len(@FOUND)|@NAMES")
    )
    done = run(place, *WORKERS)
    assert "2 done in" in done.stderr, done.stderr
    assert reused(place) == 2
