"""Keys of tasks in several runs, with other seeds of hashes, elsewhere and by another name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests._support.journal_keys import write

PRINT = """
if __name__ == "__main__":
    import json, runpy, sys
    from pathlib import Path
    from rhapsody.builtin.journal.files import FileDigests
    from rhapsody.builtin.journal.keys import Keys
    from rhapsody.builtin.journal.program import Surroundings
    from tests._support.journal_keys import key_of
    keys = Keys(Surroundings(Path(__file__).parent, FileDigests()))
    print(json.dumps([key_of(keys, each, SHAPES, Color.RED).digest.hex() for each in FUNCTIONS]))
"""

SEEDED = """
import dataclasses, enum, functools, logging
from os import environ
from random import choice, random
from numpy.random import rand
log = logging.getLogger(__name__)
WORDS = {"a", "b", "c", "d", "e"}
class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"
@dataclasses.dataclass(frozen=True)
class Shape:
    sides: int
    color: Color = Color.RED
    tags: frozenset = frozenset(WORDS)
SHAPES = {Shape(3): {Shape(4), Shape(5)}, "words": WORDS}
class Words(set):
    pass
OWN = Words(WORDS)
def known(x):
    log.info("%s %s", x, __file__)
    return x in {"x", "y", "z", "w"} or x in WORDS or x in OWN
@functools.cache
def cached(x):
    return known(x)
def make(*more):
    def inner(x):
        return x, more
    return inner
def typed(x: Shape) -> Color:
    return Color.BLUE
FUNCTIONS = [known, cached, make(WORDS, Shape, SHAPES), typed, Shape(3).__eq__, Shape,
             functools.partial(known, WORDS), lambda x: (choice, random, rand),
             lambda x: environ['A'],
             lambda x: x in {"p", "q", "r"},
             eval("lambda x: x in {'p', 'q', 'r'}")]
"""


GLOBALS = r'''
import abc, asyncio, collections, concurrent.futures, contextlib, enum, functools, io, itertools
import re, string, threading, types, typing, unittest.mock, weakref
import numpy as np
class Ab(abc.ABC):
    @abc.abstractmethod
    def g(self): ...
class Ab2(Ab):
    names = {"q","w","e"}
    def g(self): return 1
Ab.register(dict)
class Pr(typing.Protocol):
    a: int
    def m(self) -> int: ...
class PrI(Pr):
    def m(self): return 2
T = typing.TypeVar("T")
class Ge(typing.Generic[T]):
    def m(self, x: T) -> T: return x
class Fl(enum.Flag):
    A = 1
    B = 2
NT = collections.namedtuple("NT", "a b")
@functools.singledispatch
def sd(x): return x
@sd.register
def _(x: int): return 1
@sd.register(list)
def _(x): return 2
class Cm:
    @functools.lru_cache
    def c(self): return 1
    @functools.singledispatchmethod
    def d(self, x): return 1
    @d.register
    def _(self, x: int): return 2
    @contextlib.contextmanager
    def e(self): yield
    def __init__(self):
        self.lock = threading.Lock(); self.ev = threading.Event(); self.s = {"a","b","c"}
    def __hash__(self): return id(self)
g = Cm()
pool = concurrent.futures.ThreadPoolExecutor(2)
pool.submit(len, "abc").result()
local = threading.local()
lock = threading.RLock()
def a1(): return 1
def a2(): return 2
def a3(): return 3
SET = {a1, a2, a3}
OBJS = {Cm(), Cm(), g}
KINDS = {int, str, Cm, Ab}
dq = collections.deque([{"a","b"}])
dd = collections.defaultdict(set, {"x": {"p","q"}})
wd = weakref.WeakKeyDictionary({Cm: 1})
pr = re.compile("a|b")
tm = string.Template("$a")
mock = unittest.mock.MagicMock()
exec("def ex(x): return x in {'p','q','r','s'}")
def deff(x, y=(frozenset({"a","b","c"}), {1: {"z", "y"}}), *, k={"m","n"}): return y
vec = np.vectorize(a1)
vec2 = np.vectorize(lambda x: x+1); vec2(np.arange(3))
out = io.StringIO()
cnt = itertools.count()
ctx = contextlib.ExitStack()
alock = asyncio.Lock()
cmap = collections.ChainMap({"a":1}, {"b":{"x","y"}})
mp = types.MappingProxyType({"a": {"x","y"}})
partials = functools.partial(a1, s={"x","y"})
def user(x): return wd
GLOBALS = """Ab2 Ab PrI Ge Fl NT sd Cm g pool local lock SET OBJS KINDS dq dd wd pr tm mock ex
deff vec vec2 out cnt ctx alock cmap mp partials T user"""
FUNCTIONS = [eval("lambda x: " + name, globals()) for name in GLOBALS.split()]
SHAPES = 1
class Color: RED = 1
'''


def _run(directory: Path, seed: int, program: str) -> list[str]:
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, program],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("text", [SEEDED, GLOBALS], ids=["values", "globals"])
def test_keys_are_the_same_in_each_run_and_place_as_a_script_and_as_a_module(
    text: str, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two" / "place"
    write(one, {"prog.py": text + PRINT})
    write(two, {"prog.py": "# moved, and not the same\n" + text + PRINT})
    write(two, {"imports.py": "from prog import FUNCTIONS, SHAPES, Color\n" + PRINT})
    first = _run(one, 1, "prog.py")
    assert len(set(first)) == len(first)
    assert _run(two, 2, str(two / "prog.py")) == first
    assert _run(two, 3, "imports.py") == first
