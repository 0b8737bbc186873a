"""Small programs, what changes their keys, and what does not."""

from __future__ import annotations

Files = dict[str, str]

PLAIN = """
import functools
def helper(x):
    return x + 1
def f(x):
    return helper(x)
"""

METHODS = """
class Base:
    def base(self):
        return 1
class Model(Base):
    rate = 2
    def run(self, x):
        return x * self.rate
    def other(self):
        return 3
def f(x):
    return Model().run(x)
"""

SAME: dict[str, tuple[str | Files, str | Files]] = {
    "a global whose name is in a text of a function with a method `eval`": (
        "model = 1\ndef f(x):\n    x.eval()\n    return 'the model'\n",
        "model = 2\ndef f(x):\n    x.eval()\n    return 'the model'\n",
    ),
    "a seed, for a function with its own generator": (
        "import random\nrandom.seed(1)\ndef f(x): return random.Random(x).random()\n",
        "import random\nrandom.seed(2)\ndef f(x): return random.Random(x).random()\n",
    ),
    "comments and formatting": (
        PLAIN,
        "# what\nimport functools\n\n\ndef helper(x,):\n  # why\n  return (x+1)\n\n"
        "def f( x ):\n    return helper(\n        x\n    )  # so\n",
    ),
    "line breaks in a condition": (
        "def f(x):\n    if (x or (x and f(x))) and x: return 1\n    return x\n",
        "def f(x):\n    if (\n        x\n        or (\n            x\n            and f(x)\n"
        "        )\n    ) and x:\n        return 1\n    return x\n",
    ),
    "equal functions on several lines": (
        "def f(x):\n    return [lambda: 1, lambda: 1], [y for y in x], [y for y in x]\n",
        "def f(x):\n    'What.'\n    return [\n        lambda: 1,\n        lambda: 1,\n    ], [\n"
        "        y for y in x], [y for y in x]\n",
    ),
    "docstrings": (
        PLAIN,
        '"""What."""\nimport functools\ndef helper(x):\n    "Adds."\n    return x + 1\n'
        'def f(x):\n    """Calls."""\n    return helper(x)\n',
    ),
    "annotations of arguments": (PLAIN, PLAIN.replace("f(x):", "f(x: int) -> int:")),
    "annotation of a local variable": (
        "def f(x):\n    y: int = 1\n    z: int\n    x.a: int = y\n    return y\n",
        'def f(x):\n    y: "float" = 1\n    z: str\n    x.a: None = y\n    return y\n',
    ),
    "a local variable without its annotation": (
        "def f(x):\n    y: int = 1\n    return y\n",
        "def f(x):\n    y = 1\n    return y\n",
    ),
    "annotation of a local variable in a method of a module": (
        {
            "main.py": "def f(x):\n    import m\n    return m.A().g()\n",
            "m.py": "class A:\n    def g(self):\n        y: int = 1\n        return y\n",
        },
        {
            "main.py": "def f(x):\n    import m\n    return m.A().g()\n",
            "m.py": "class A:\n    def g(self):\n        y: str = 1\n        return y\n",
        },
    ),
    "order of definition": (
        PLAIN,
        "def f(x):\n    return helper(x)\n\ndef helper(x):\n    return x + 1\n",
    ),
    "a function that is not used": (PLAIN, PLAIN + "def g(x):\n    return f(x) + 7\n"),
    "a global that is not used": (PLAIN, "N = 3\n" + PLAIN),
    "docstrings and comments of a class": (
        METHODS,
        METHODS.replace("class Model(Base):", 'class Model(Base):\n    """What."""\n    # why'),
    ),
    "order of methods": (
        METHODS,
        METHODS.replace("    def other(self):\n        return 3\n", "").replace(
            "    def run", "    def other(self):\n        return 3\n    def run"
        ),
    ),
    "lines above a lambda": ("f = lambda x: x + 1\n", "# a\n\nf = lambda x: x + 1\n"),
    "the name of the module in a logger": (
        "import logging\nlog = logging.getLogger('a')\ndef f(x):\n    log.info(x)\n    return x\n",
        "import logging\nlog = logging.getLogger('b')\ndef f(x):\n    log.info(x)\n    return x\n",
    ),
    "comments in a file that finds itself": (
        "import os\ndef f(x):\n    return os.path.dirname(__file__), __name__\n",
        "# a\nimport os\ndef f(x):\n    return os.path.dirname(__file__), __name__\n",
    ),
    "comments in a module that is imported in a function": (
        {"main.py": "def f(x):\n    import m\n    return m.g(x)\n", "m.py": "def g(x): return x\n"},
        {
            "main.py": "def f(x):\n    import m\n    return m.g(x)\n",
            "m.py": '"""M."""\n# g\ndef g(x):\n    return x\n',
        },
    ),
    "what else a module has": (
        {"main.py": "import m\ndef f(x):\n    return m.g(x)\n", "m.py": "def g(x): return x\n"},
        {
            "main.py": "import m\ndef f(x):\n    return m.g(x)\n",
            "m.py": "N = 1\ndef h(x): return 2\ndef g(x): return x\n",
        },
    ),
}

CHANGED: dict[str, tuple[str | Files, str, str]] = {
    # What: the program, what is replaced in all its files, and what by.
    "a global that pandas reads": (
        "import pandas as pd\nCUT = 1\n"
        "def f(x): return len(pd.DataFrame({'a': x}).query('a > @CUT'))\n",
        "CUT = 1", "CUT = 2"),
    "a global that an evaluated variable names": (
        "import pandas as pd\nCUT = 1\nTEXT = 'CUT * 2'\ndef f(x): return pd.eval(TEXT)\n",
        "CUT = 1", "CUT = 2"),
    "a global that a formula of a module that a task imports reads": (
        "CUT = 1\ndef f(x):\n    import pandas\n    return pandas.eval('CUT + 1')\n",
        "CUT = 1", "CUT = 2"),
    "a function around which a library's variable is wrapped": (
        "import functools, shlex\ndef mine(x): return x + 1\n"
        "shlex.more = functools.lru_cache(mine)\ndef f(x): return shlex.more(x)\n",
        "x + 1", "x + 2"),
    "a function that NumPy vectorizes, as a library's variable": (
        "import numpy as np, shlex\ndef mine(x): return x + 1\nshlex.more = np.vectorize(mine)\n"
        "def f(x): return shlex.more(x)\n", "x + 1", "x + 2"),
    "the seed of a global generator": (
        "import random\nrandom.seed(1)\ndef f(x): return random.gauss(0, 1)\n",
        "seed(1)", "seed(2)"),
    "a global as the seed of NumPy's global generator": (
        "import numpy as np\nSEED = 1\ndef start(): np.random.seed(SEED)\nstart()\n"
        "def f(x): return np.random.normal()\n", "SEED = 1", "SEED = 2"),
    "an item of a global as the seed of a global generator": (
        "import random\nOPTIONS = {'seed': 1}\nrandom.seed(OPTIONS['seed'])\n"
        "def f(x): return random.gauss(0, 1)\n", "'seed': 1", "'seed': 2"),
    "a function that returns the seed of a global generator": (
        "import random\ndef number(): return 1\nrandom.seed(number())\n"
        "def f(x): return random.gauss(0, 1)\n", "return 1", "return 2"),
    "a variable of another module as the seed of a global generator": (
        {"main.py": "import random, m\nrandom.seed(m.SEED)\ndef f(x): return random.random()\n",
         "m.py": "SEED = 1\n"}, "SEED = 1", "SEED = 2"),
    "a global that one of several evaluated texts names": (
        "import pandas as pd\nCUT = 1\n"
        "def f(x): return [pd.eval(text) for text in ('1 + 1', 'CUT * 2')]\n",
        "CUT = 1", "CUT = 2"),
    "a global that a text in a global dict names": (
        "import pandas as pd\nCUT = 1\nTEXTS = {'cut': 'CUT * 2'}\n"
        "def f(x): return pd.eval(TEXTS['cut'])\n", "CUT = 1", "CUT = 2"),
    "a seed in another module": (
        {"main.py": "import m\nfrom random import random\ndef f(x): return random()\n",
         "m.py": "import random\nrandom.seed(1)\n"}, "seed(1)", "seed(2)"),
    "the function": (PLAIN, "helper(x)\n", "helper(x) + 1\n"),
    "a helper": (PLAIN, "x + 1", "x + 2"),
    "the type of a constant": (PLAIN, "x + 1", "x + 1.0"),
    "a helper's helper": ("def h(x): return 1\ndef g(x): return h(x)\ndef f(x): return g(x)\n",
                          "return 1", "return 2"),
    "mutual recursion": ("def g(x): return x and f(x - 1)\ndef f(x): return x and g(x - 1)\n",
                         "f(x - 1)", "f(x - 2)"),
    "a global": ("N = 3\ndef f(x): return x + N\n", "N = 3", "N = 4"),
    "a global's type": ("N = 3\ndef f(x): return x + N\n", "N = 3", "N = 3.0"),
    "a global list": ("N = [1, {2: {3}}]\ndef f(x): return N\n", "{3}", "{4}"),
    "a global only read in a comprehension": (
        "N = 3\ndef f(x): return [y + N for y in range(x)]\n", "N = 3", "N = 4"),
    "a global only read in a lambda": (
        "N = 3\ndef f(x): return (lambda y: y + N)(x)\n", "N = 3", "N = 4"),
    "a global only read in a nested class": (
        "N = 3\ndef f(x):\n    class A:\n        n = N\n    return A.n\n", "N = 3", "N = 4"),
    "a default": ("def f(x, y=3): return x + y\n", "y=3", "y=4"),
    "a default that is a value": ("N = 3\ndef f(x, y=N): return x + y\n", "N = 3", "N = 4"),
    "a default of a keyword": ("N = 3\ndef f(x, *, y=N): return x + y\n", "N = 3", "N = 4"),
    "a keyword instead of an argument": ("f = lambda x, y=1: y; g = 0\n", "x, y", "x, *, y"),
    "a closure": ("def make(n):\n    def g(x): return x + n\n    return g\nf = make(3)\n",
                  "make(3)", "make(4)"),
    "one of two closures of a function": (
        "def make(n):\n    def g(x): return x + n\n    return g\na = make(1)\nb = make(2)\n"
        "def f(x): return a(b(x))\n", "a = make(1)", "a = make(3)"),
    "the order of two closures": (
        "def make(n):\n    def g(x): return x + n\n    return g\na, b = make(1), make(2)\n"
        "def f(x): return a(b(x) * 2)\n", "a, b =", "b, a ="),
    "a decorator of one's own": (
        "import functools\ndef twice(g):\n    @functools.wraps(g)\n    def inner(*a):\n"
        "        return g(*a) * 2\n    return inner\n@twice\ndef f(x): return x\n", "* 2", "* 3"),
    "a function below a decorator": (
        "import functools\ndef twice(g):\n    @functools.wraps(g)\n    def inner(*a):\n"
        "        return g(*a) * 2\n    return inner\n@twice\ndef f(x): return x + 1\n",
        "x + 1", "x + 2"),
    "an argument of a decorator": (
        "def by(n):\n    def deco(g):\n        def inner(x): return g(x) * n\n"
        "        return inner\n    return deco\n@by(2)\ndef f(x): return x\n", "@by(2)", "@by(3)"),
    "a function in a cache": (
        "import functools\n@functools.lru_cache\ndef g(x): return x\ndef f(x): return g(x)\n",
        "return x\n", "return x + 1\n"),
    "the function in a cache itself": (
        "import functools\n@functools.cache\ndef f(x): return x\n", "return x", "return -x"),
    "a function below a library's decorator": (
        "import contextlib\n@contextlib.contextmanager\ndef g(x): yield x\n"
        "def f(x):\n    with g(x) as y: return y\n", "yield x", "yield -x"),
    "a function that is dispatched by type": (
        "import functools\n@functools.singledispatch\ndef g(x): return x\n@g.register\n"
        "def _(x: int): return 1\ndef f(x): return g(x)\n", "return 1", "return 2"),
    "a function below singledispatch": (
        "import functools\n@functools.singledispatch\ndef g(x): return x\n@g.register\n"
        "def _(x: int): return 1\ndef f(x): return g(x)\n", "return x\n", "return -x\n"),
    "an attribute of a function": (
        "def g(x): return g.n\ng.n = 1\ndef f(x): return g(x)\n", "g.n = 1", "g.n = 2"),
    "a method": (METHODS, "x * self", "x + self"),
    "another method": (METHODS, "return 3", "return 4"),
    "an inherited method": (METHODS, "return 1", "return 5"),
    "an attribute of a class": (METHODS, "rate = 2", "rate = 3"),
    "a property": (
        "class A:\n    @property\n    def n(self): return 1\ndef f(x): return A().n\n",
        "return 1", "return 2"),
    "a cached property": (
        "import functools\nclass A:\n    @functools.cached_property\n    def n(self): return 1\n"
        "def f(x): return A().n\n", "return 1", "return 2"),
    "a static method": (
        "class A:\n    @staticmethod\n    def n(): return 1\ndef f(x): return A.n()\n",
        "return 1", "return 2"),
    "a class method": (
        "class A:\n    @classmethod\n    def n(cls): return 1\ndef f(x): return A.n()\n",
        "return 1", "return 2"),
    "a cached method": (
        "import functools\nclass A:\n    @functools.lru_cache\n    def n(self): return 1\n"
        "def f(x): return A().n()\n", "return 1", "return 2"),
    "a method by type": (
        "import functools\nclass A:\n    @functools.singledispatchmethod\n    def n(self, x):\n"
        "        return 1\ndef f(x): return A().n(x)\n", "return 1", "return 2"),
    "a part of a method": (
        "import functools\nclass A:\n    def n(self, x): return x\n"
        "    two = functools.partialmethod(n, 2)\ndef f(x): return A().two()\n",
        "(n, 2)", "(n, 3)"),
    "a partial in a class": (
        "import functools\ndef g(x): return 1\nclass A:\n    n = functools.partial(g, 2)\n"
        "def f(x): return A.n()\n", "return 1", "return 2"),
    "a descriptor": (
        "class D:\n    def __init__(self, n): self.n = n\n"
        "    def __get__(self, *_): return self.n\nclass A:\n    n = D(1)\n"
        "def f(x): return A().n\n",
        "D(1)", "D(2)"),
    "what a nested class uses": (
        "def g(): return 1\nclass A:\n    class B:\n        def n(self): return g()\n"
        "def f(x): return A.B().n()\n", "return 1", "return 2"),
    "a metaclass": (
        "class M(type):\n    def n(cls): return 1\nclass A(metaclass=M): pass\n"
        "def f(x): return A.n()\n", "return 1", "return 2"),
    "a field of a dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    n: int = 1\n"
        "def f(x): return A().n\n", "int = 1", "int = 2"),
    "the type of a field": (
        "class A:\n    n: int = 1\ndef f(x): return A.__annotations__\n", "int = 1", "str = 1"),
    "the type of a field of a class in a function": (
        "def f(x):\n    class A:\n        n: int = 1\n    return A.__annotations__\n",
        "int = 1", "str = 1"),
    "the type of a variable of a module": (
        {"main.py": "def f(x):\n    import m\n    return m.__annotations__\n",
         "m.py": "n: int = 1\n"}, "int = 1", "str = 1"),
    "the value of a local variable with an annotation": (
        "def f(x):\n    y: int = 1\n    return y\n", "int = 1", "int = 2"),
    "a factory of a dataclass": (
        "from dataclasses import dataclass, field\ndef g(): return 1\n@dataclass\nclass A:\n"
        "    n: int = field(default_factory=g)\ndef f(x): return A().n\n", "return 1", "return 2"),
    "how a dataclass is made": (
        "from dataclasses import dataclass\n@dataclass(order=False)\nclass A:\n    n: int = 1\n"
        "def f(x): return A() < A()\n", "order=False", "order=True"),
    "the order of a dataclass's fields": (
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    n: int\n    m: int\n"
        "def f(x): return A(1, 2).n\n", "n: int\n    m: int", "m: int\n    n: int"),
    "a dataclass in a function": (
        "from dataclasses import dataclass, field\ndef make():\n    @dataclass\n    class A:\n"
        "        n: int = 1\n    return A\nA = make()\ndef f(x): return A().n\n",
        "int = 1", "int = 2"),
    "a class made in a function": (
        "def make(n):\n    class A:\n        def get(self): return n\n    return A\nA = make(1)\n"
        "def f(x): return A().get()\n", "make(1)", "make(2)"),
    "one of two classes made in a function": (
        "def make(n):\n    class A:\n        def get(self): return n\n    return A\nA = make(1)\n"
        "B = make(2)\ndef f(x): return A().get() - B().get()\n",
        "A = make(1)\nB = make(2)", "B = make(1)\nA = make(2)"),
    "a named tuple": (
        "from typing import NamedTuple\nclass A(NamedTuple):\n    n: int = 1\n"
        "def f(x): return A().n\n", "int = 1", "int = 2"),
    "the names in a named tuple": (
        "from collections import namedtuple\nA = namedtuple('A', 'n m')\n"
        "def f(x): return A(1, 2).n\n", "'n m'", "'m n'"),
    "a member of an enum": (
        "import enum\nclass A(enum.Enum):\n    N = 1\ndef f(x): return A.N.value\n", "= 1", "= 2"),
    "a class that is defined twice": (
        "class A:\n    n = 1\nclass A:\n    n = 2\n    def g(self): return 3\n"
        "def f(x): return A().g()\n", "return 3", "return 4"),
    "a function that is defined twice": (
        "def g(x): return 1\ndef g(x): return 2\ndef f(x): return g(x)\n", "return 2", "return 3"),
    "a function by condition": (
        "import sys\nif sys.maxsize > 3:\n    def g(x): return 1\nelse:\n    def g(x): return 2\n"
        "def f(x): return g(x)\n", "> 3", "< 3"),
    "one of two lambdas in a line": (
        "a, b = (lambda x: x + 1), (lambda x: x + 2)\ndef f(x): return a(x)\n", "x + 1", "x + 3"),
    "which of two lambdas in a line": (
        "a, b = (lambda x: x + 1), (lambda x: x + 2)\ndef f(x): return a(x)\n", "a, b", "b, a"),
    "the span of a try in lambdas of a line": (
        "exec('def g(x):\\n try:\\n  len(x)\\n except TypeError: return 1\\n return 2')\n"
        "def f(x): return g(x)\n", "return 1", "return 3"),
    "a partial of a function": (
        "import functools\ndef g(n, x): return n + x\nf = functools.partial(g, 1)\n",
        "(g, 1)", "(g, 2)"),
    "a function in a partial": (
        "import functools\ndef g(n, x): return n + x\nf = functools.partial(g, 1)\n",
        "n + x", "n - x"),
    "the object of a method": (
        "class A:\n    def __init__(self, n): self.n = n\n    def g(self, x): return self.n\n"
        "f = A(1).g\n", "A(1)", "A(2)"),
    "the method of an object": (
        "class A:\n    def __init__(self, n): self.n = n\n    def g(self, x): return self.n\n"
        "f = A(1).g\n", "return self.n", "return -self.n"),
    "an object that is called": (
        "class A:\n    def __init__(self, n): self.n = n\n"
        "    def __call__(self, x): return self.n\n"
        "f = A(1)\n", "A(1)", "A(2)"),
    "how an object is called": (
        "class A:\n    def __call__(self, x): return 1\nf = A()\n", "return 1", "return 2"),
    "a class that is called": ("class f:\n    def __init__(self, x): self.n = 1\n", "= 1", "= 2"),
    "a method of a built-in": ("f = 'a1'.count\n", "a1", "a11"),
    "an asynchronous function": (
        "async def g(x): return 1\nasync def f(x): return await g(x)\n", "return 1", "return 2"),
    "a generator": ("def g(x): yield 1\ndef f(x): return list(g(x))\n", "yield 1", "yield 2"),
    "a function in a dict": (
        "def g(x): return 1\nBY = {'g': g}\ndef f(x): return BY['g'](x)\n", "return 1", "return 2"),
    "a function in a dict with a lock": (
        "import threading, collections\ndef g(x): return 1\n"
        "BY = collections.OrderedDict(lock=threading.Lock(), g=g)\n"
        "def f(x): return BY['g'](x)\n", "return 1", "return 2"),
    "a function in a global object": (
        "import threading\ndef g(x): return 1\nclass A: pass\na = A()\na.lock = threading.Lock()\n"
        "a.g = g\ndef f(x): return a.g(x)\n", "return 1", "return 2"),
    "a number in a global object": (
        "import threading\nclass A: pass\na = A()\na.lock = threading.Lock()\na.n = 1\n"
        "def f(x): return a.n\n", "a.n = 1", "a.n = 2"),
    "code without a file": (
        "exec('def g(x):\\n  return 1')\ndef f(x): return g(x)\n", "return 1", "return 2"),
    "a global of code without a file": (
        "N = 1\nexec('def g(x):\\n  return N')\ndef f(x): return g(x)\n", "N = 1", "N = 2"),
    "a place in a mapping of one's own": (
        "import types\nN = types.MappingProxyType({'a': 1})\ndef f(x): return N['a']\n",
        "'a': 1", "'a': 2"),
    "a decorator of a class": (
        "def deco(c):\n    c.n = 1\n    return c\n@deco\nclass A: pass\n"
        "def f(x): return A().n\n",
        "c.n = 1", "c.n = 2"),
    "what a base does with its classes": (
        "class B:\n    def __init_subclass__(cls): cls.n = 1\nclass A(B): pass\n"
        "def f(x): return A().n\n",
        "cls.n = 1", "cls.n = 2"),
    "a function in an object": (
        "class deco:\n    def __init__(self, g): self.g = g\n"
        "    def __call__(self, x): return self.g(x)\n@deco\ndef g(x): return 1\n"
        "def f(x): return g(x)\n",
        "return 1", "return 2"),
    "an object around a function": (
        "class deco:\n    def __init__(self, g): self.g = g\n"
        "    def __call__(self, x): return self.g(x)\n@deco\ndef g(x): return 1\n"
        "def f(x): return g(x)\n",
        "self.g(x)", "-self.g(x)"),
    "the object of a method in a global": (
        "class A:\n    def __init__(s, n): s.n = n\n    def g(s): return s.n\ng = A(1).g\n"
        "def f(x): return g()\n",
        "A(1)", "A(2)"),
    "a method of a class made by a call": (
        "def g(s): return 1\nA = type('A', (), {'g': g})\ndef f(x): return A().g()\n",
        "return 1", "return 2"),
    "an attribute of a class made by a call": (
        "A = type('A', (), {'g': 1})\ndef f(x): return A().g\n",
        "'g': 1", "'g': 2"),
    "a method that is set later": (
        "class A: pass\nA.g = lambda s: 1\ndef f(x): return A().g()\n",
        "lambda s: 1", "lambda s: 2"),
    "an enum made by a call": (
        "import enum\nA = enum.Enum('A', {'N': 1})\ndef f(x): return A.N.value\n",
        "'N': 1", "'N': 2"),
    "a method of an abstract class": (
        "import abc\nclass B(abc.ABC):\n    @abc.abstractmethod\n    def g(self): ...\n"
        "class A(B):\n    def g(self): return 1\ndef f(x): return A().g()\n",
        "return 1", "return 2"),
    "a method of a generic class": (
        "from typing import Generic, TypeVar\nT = TypeVar('T')\nclass A(Generic[T]):\n"
        "    def g(self): return 1\ndef f(x): return A[int]().g()\n",
        "return 1", "return 2"),
    "a class in a type": (
        "class A:\n    def g(self): return 1\nB = list[A]\n"
        "def f(x): return B.__args__[0]().g()\n",
        "return 1", "return 2"),
    "a class whose metaclass raises": (
        "class Meta(type):\n    def __getattr__(c, n): raise ValueError(n)\n"
        "class A(metaclass=Meta):\n    n = 1\ndef f(x): return A.n\n",
        "n = 1", "n = 2"),
    "the state of an object with a name": (
        "class A:\n    def __init__(self, n): self.n = n\n"
        "    def __reduce__(self): return 'a'\na = A(1)\ndef f(x): return a.n\n",
        "A(1)", "A(2)"),
    "the state of an object that cannot be pickled": (
        "class A:\n    def __init__(self, n): self.n = n\n"
        "    def __reduce__(self): raise TypeError\na = A(1)\ndef f(x): return a.n\n",
        "A(1)", "A(2)"),
    "slots and a lock": (
        "import threading\nclass A:\n    __slots__ = 'n', 'l'\n"
        "    def __init__(self, n): self.n = n; self.l = threading.Lock()\na = A(1)\n"
        "def f(x): return a.n\n",
        "A(1)", "A(2)"),
    "a value and a lock": (
        "import threading, collections\n"
        "d = collections.defaultdict(list, n=1, l=threading.Lock())\ndef f(x): return d['n']\n",
        "n=1", "n=2"),
    "how a property is set": (
        "class A:\n    @property\n    def n(self): return 1\n    @n.setter\n"
        "    def n(self, v): self.v = 1\ndef f(x): return A()\n",
        "self.v = 1", "self.v = 2"),
    "a keyword of a class": (
        "class B:\n    def __init_subclass__(cls, n): cls.n = n\nclass A(B, n=1): pass\n"
        "def f(x): return A.n\n",
        "n=1", "n=2"),
    "which of two functions of a name": (
        "def a():\n    def g(x): return 1\n    return g\ndef b():\n    def g(x): return 3\n"
        "    return g\ng = a()\ndef f(x): return g(x)\n",
        "g = a()", "g = b()"),
    "a module that code without a file imports": (
        {"main.py": "exec('def g(x):\\n  import m\\n  from m import h\\n  return m.N + h()')\n"
         "def f(x): return g(x)\n", "m.py": "N = 1\ndef h(): return 3\n"}, "N = 1", "N = 2"),
    "a function of a module that code without a file uses": (
        {"main.py": "import m\nexec('def g(x):\\n  return m.h()')\n"
         "def f(x): return g(x)\n", "m.py": "def h(): return 1\n"}, "return 1", "return 2"),
    "a seed for code without a file": (
        "import random\nrandom.seed(1)\nexec('def g(x):\\n  return random.random()')\n"
        "def f(x): return g(x)\n", "seed(1)", "seed(2)"),
    "the limit in an annotation inside a function": (
        "N = 1\ndef f(x):\n    def g(y: list[N]): return y\n    return g.__annotations__\n",
        "N = 1", "N = 2"),
    "a variable of the environment that is extended": (
        "import os\nN = 'RH_X'\nos.environ[N] = 'a'\n"
        "def f(x):\n    os.environ['RH_X'] += 'b'\n    return 1\n",
        "= 'a'", "= 'c'"),
    "a global in a function with a lambda as its decorator": (
        "N = 1\n@(lambda function: function)\ndef f(x): return N\n", "N = 1", "N = 2"),
    "a global with the name of an import in a class": (
        "N = 1\ndef f(x):\n    class A:\n        import math as N\n    return N\n",
        "N = 1", "N = 2"),
    "a module that a class in a function imports": (
        {"main.py": "def f(x):\n    class A:\n        import m as n\n    return A.n.N\n",
         "m.py": "N = 1\n"}, "N = 1", "N = 2"),
    "a global with the name of a variable of a lambda": (
        "N = 1\ndef f(x):\n    [(lambda: (N := i))() for i in range(2)]\n    return N\n",
        "N = 1", "N = 2"),
    "a seed that a function of the program sets": (
        "import random\ndef setSeeds(n): random.seed(n)\nsetSeeds(1)\n"
        "def f(x): return random.random()\n", "(1)", "(2)"),
    "a seed that is a default": (
        "import random\ndef set_seed(seed=1): random.seed(seed)\nset_seed()\n"
        "def f(x): return random.random()\n", "seed=1", "seed=2"),
    "a seed for a generator in a variable": (
        "import random\nrandom.seed(1)\ndef f(x):\n    r = random\n    return r.random()\n",
        "(1)", "(2)"),
    "a seed for NumPy in a variable": (
        "import numpy as np\nnp.random.seed(1)\n"
        "def f(x):\n    xp = np\n    return xp.random.rand()\n", "(1)", "(2)"),
    "a function of the standard library that is replaced by an object": (
        "import operator, statistics\nstatistics.median_low = operator.itemgetter(1)\n"
        "def f(x): return statistics.median_low([1, 2, 3])\n", "(1)", "(2)"),
    "a function of the standard library that is replaced by a mock": (
        "import shutil, unittest.mock\nshutil.disk_usage = unittest.mock.Mock(return_value=1)\n"
        "def f(x): return shutil.disk_usage('.')\n", "=1", "=2"),
    "an attribute of a module by getattr": (
        {"main.py": "import m\ndef f(x): return getattr(m, 'N')\n", "m.py": "N = 1\n"},
        "N = 1", "N = 2"),
    "a module with a private name": (
        {"main.py": "class A:\n    def g(self):\n        import m as __m\n        return __m.N\n"
         "def f(x): return A().g()\n", "m.py": "N = 1\n"}, "N = 1", "N = 2"),
    "a closure of code without a file": (
        "ns = {}\nexec('def make(n):\\n  def g(x): return n\\n  return g', ns)\n"
        "f = ns['make'](1)\n",
        "(1)", "(2)"),
    "how deep code is": (
        "def f(x):\n    return " + "+".join(["x"] * 900) + " + 1\n", " + 1\n", " + 2\n"),
    "a branch of very many": (
        "def f(x):\n    if x == -1: return 0\n"
        + "".join(f"    elif x == {n}: return {n}\n" for n in range(400)),
        "return 399", "return 0"),
}  # fmt: skip

USED = "def g(x):\n    return 1\n"
IMPORTS: dict[str, Files] = {
    "import m": {"main.py": "import m\ndef f(x): return m.g(x)\n", "m.py": USED},
    "import m as n": {"main.py": "import m as n\ndef f(x): return n.g(x)\n", "m.py": USED},
    "from m import g": {"main.py": "from m import g\ndef f(x): return g(x)\n", "m.py": USED},
    "from m import g as h": {"main.py": "from m import g as h\ndef f(x): return h(x)\n",
                             "m.py": USED},
    "from m import *": {"main.py": "from m import *\ndef f(x): return g(x)\n", "m.py": USED},
    "import p.m": {"main.py": "import p.m\ndef f(x): return p.m.g(x)\n", "p/__init__.py": "",
                   "p/m.py": USED},
    "a namespace": {"main.py": "import p.m\ndef f(x): return p.m.g(x)\n", "p/m.py": USED},
    "from p import m": {"main.py": "from p import m\ndef f(x): return m.g(x)\n",
                        "p/__init__.py": "", "p/m.py": USED},
    "from . import m": {"main.py": "from p.n import h\ndef f(x): return h(x)\n",
                        "p/__init__.py": "", "p/n.py": "from . import m\ndef h(x): return m.g(x)\n",
                        "p/m.py": USED},
    "from .m import g": {"main.py": "from p.n import h\ndef f(x): return h(x)\n",
                         "p/__init__.py": "", "p/n.py": "from .m import g\ndef h(x): return g(x)\n",
                         "p/m.py": USED},
    "a package's own": {"main.py": "import p\ndef f(x): return p.g(x)\n",
                        "p/__init__.py": "from .m import g\n", "p/m.py": USED},
    "import m inside": {"main.py": "def f(x):\n    import m\n    return m.g(x)\n", "m.py": USED},
    "import p.m inside": {"main.py": "def f(x):\n    import p.m\n    return p.m.g(x)\n",
                          "p/__init__.py": "", "p/m.py": USED},
    "from m import g inside": {"main.py": "def f(x):\n    from m import g\n    return g(x)\n",
                               "m.py": USED},
    "from p import m inside": {"main.py": "def f(x):\n    from p import m\n    return m.g(x)\n",
                               "p/__init__.py": "", "p/m.py": USED},
    "from . import m inside": {
        "main.py": "from p.n import h\ndef f(x): return h(x)\n", "p/__init__.py": "",
        "p/n.py": "def h(x):\n    from . import m\n    return m.g(x)\n", "p/m.py": USED},
    "from .m import g inside": {
        "main.py": "from p.n import h\ndef f(x): return h(x)\n", "p/__init__.py": "",
        "p/n.py": "def h(x):\n    from .m import g\n    return g(x)\n", "p/m.py": USED},
    "an import in a module imported inside": {
        "main.py": "def f(x):\n    import n\n    return n.h(x)\n",
        "n.py": "import m\ndef h(x): return m.g(x)\n", "m.py": USED},
    "a relative import in a package imported inside": {
        "main.py": "def f(x):\n    import p\n    return p.g(x)\n",
        "p/__init__.py": "from .n import g\n", "p/n.py": "from .m import g\n", "p/m.py": USED},
    "after many constants": {
        "main.py": "def f(x):\n    y = [" + ", ".join(f"x + {n}.5" for n in range(300))
        + "]\n    from p import m\n    return m.g(y)\n", "p/__init__.py": "", "p/m.py": USED},
    "after many names": {
        "main.py": "import m\ndef f(x):\n    y = [" + ", ".join(f"x.a{n}" for n in range(300))
        + "]\n    return m.g(y)\n", "m.py": USED},
    "by condition": {"main.py": "try:\n    import m\nexcept ImportError:\n    m = None\n"
                     "def f(x): return m.g(x)\n", "m.py": USED},
    "getattr": {"main.py": "import m\ndef f(x): return getattr(m, 'g')(x)\n", "m.py": USED},
    "getattr of what a module imports": {
        "main.py": "import n\ndef f(x): return getattr(n, 'h')(x)\n",
        "n.py": "import m\ndef h(x): return m.g(x)\n", "m.py": USED},
    "a decorator elsewhere": {
        "main.py": "from m import deco\n@deco\ndef f(x): return x\n",
        "m.py": "def deco(g):\n    def inner(x): return g(x), 1\n    return inner\n"
                "# return 1\n".replace("# return 1\n", "")
                .replace("return g(x), 1", "return 1")},
    "a class's method": {"main.py": "from m import A\ndef f(x): return A().g()\n",
                         "m.py": "class A:\n    def g(self): return 1\n"},
    "a base elsewhere": {
        "main.py": "import m\nclass B(m.A): pass\ndef f(x): return B().g()\n",
        "m.py": "class A:\n    def g(self): return 1\n"},
    "a function in a closure": {
        "main.py": "import m\ndef make(g):\n    def inner(x): return g(x)\n    return inner\n"
                   "f = make(m.g)\n", "m.py": USED},
    "a function as a default": {"main.py": "import m\ndef f(x, g=m.g): return g(x)\n",
                                "m.py": USED},
}  # fmt: skip

SETTINGS = "rate = 1\ndef other(): return 3\n"
DECORATORS = {  # of a library: `lib` is in a directory called `site-packages`
    "site-packages/lib.py": (
        "class Box:\n    def __init__(self, f): self.all = {'f': [f]}\n"
        "    def __call__(self, x): return self.all['f'][0](x)\n"
        "def boxed(f): return Box(f)\n"
        "def bare(f):\n    def inner(x): return f(x)\n    return inner\n"
        "def kept(f):\n    held = {'f': [(f,)]}\n    def inner(x): return held['f'][0][0](x)\n"
        "    return inner\n"
        "def scale(n):\n    def inner(x): return x * n\n    return inner\n"
        "def deep(f):\n    def one(x): return f(x)\n    def two(x, g=one): return g(x)\n"
        "    return two\n"
        "class Base: rate = 1\nlimit = 3\ndef plain(x): return x\n"
    )
}
CHANGED |= {
    "a module that is used as a whole": (
        {"main.py": "import m\nm.n = 1\ndef f(x):\n    s = m\n    return s.n\n", "m.py": SETTINGS},
        "m.n = 1", "m.n = 2"),
    "what the program sets in a module that is imported inside": (
        {"main.py": "import m\nm.rate = 1\ndef f(x):\n    import m\n    return m.rate\n",
         "m.py": SETTINGS}, "m.rate = 1", "m.rate = 2"),
    "what the program sets in a module of another name inside": (
        {"main.py": "import p.m\np.m.rate = 1\ndef f(x):\n    import p.m as s\n    return s.rate\n",
         "p/m.py": SETTINGS}, "m.rate = 1", "m.rate = 2"),
    "what the program sets in a name that is taken inside": (
        {"main.py": "import m\nm.rate = 1\ndef f(x):\n    from m import rate as r\n    return r\n",
         "m.py": SETTINGS}, "m.rate = 1", "m.rate = 2"),
    "what the program sets in a module inside a closure": (
        {"main.py": "import m\nm.rate = 1\ndef f(x):\n    import m\n"
         "    return (lambda: m.rate)()\n", "m.py": SETTINGS}, "m.rate = 1", "m.rate = 2"),
    "a variable computed at import": (
        {"main.py": "import m\ndef f(x):\n    import m\n    return getattr(m, 'n')\n",
         "m.py": "import k\nn = k.n + 1\n", "k.py": "n = 1\n"}, "n = 1\n", "n = 2\n"),
    "a variable by getattr": (
        {"main.py": "import m\nm.rate = 1\ndef f(x): return getattr(m, 'rate')\n",
         "m.py": SETTINGS},
        "m.rate = 1", "m.rate = 2"),
    "a module that is handed to a helper": (
        {"main.py": "import m\nm.rate = 1\ndef g(s): return s.rate\ndef f(x): return g(m)\n",
         "m.py": SETTINGS}, "m.rate = 1", "m.rate = 2"),
    "another name for a module": (
        {"main.py": "import m\nm.rate = 1\ns = m\ndef f(x): return vars(s)['rate']\n",
         "m.py": SETTINGS}, "m.rate = 1", "m.rate = 2"),
    "a module by a literal name": (
        {"main.py": "import importlib, m\nm.rate = 1\n"
         "def f(x): return importlib.import_module('m').rate\n", "m.py": SETTINGS},
        "m.rate = 1", "m.rate = 2"),
    "a relative module of a named package": (
        {"main.py": "import importlib, p.m\n"
         "def f(x): return importlib.import_module('.m', 'p').n\n", "p/m.py": "n = 1\n"},
        "n = 1", "n = 2"),
    "a relative module of a package that is named by a keyword": (
        {"main.py": "from importlib import import_module\n"
         "def f(x): return import_module('.m', package='p').n\n", "p/m.py": "n = 1\n"},
        "n = 1", "n = 2"),
    "the kind of an empty cache": (
        "X = None\ndef f(a):\n    global X\n    if X is None: X = {}; return 1\n    return 2\n",
        "X = None", "X = {}"),
    "the kind of an empty cache in a closure": (
        "def make():\n    X = []\n    def f(a):\n        if a not in X:\n"
        "            (X.append if type(X) is list else X.add)(a)\n        return type(X)\n"
        "    return f\nf = make()\n", "X = []", "X = set()"),
    "a submodule that a module loads when it is read": (
        {"main.py": "import p\ndef f(x): return p.m.n\n", "p/m.py": "n = 1\n",
         "p/__init__.py": "import importlib\ndef __getattr__(name):\n"
         "    if name != 'm': raise AttributeError(name)\n"
         "    return importlib.import_module('.m', __name__)\n"}, "n = 1", "n = 2"),
    "arguments of the program": (
        "import sys\nsys.argv = ['a', 'b']\ndef f(x): return sys.argv[1]\n", "'b'", "'c'"),
    "the command line of the process": (
        "import sys\nsys.orig_argv = ['b']\ndef f(x): return sys.orig_argv[0]\n", "'b'", "'c'"),
    "a class that is registered": (
        "import abc\nclass A(abc.ABC): pass\nclass B: pass\nclass C: pass\nA.register(B)\n"
        "def f(x): return isinstance(x, A)\n", "register(B)", "register(C)"),
    "a module that is made as the program runs": (
        "import types\nm = types.ModuleType('m')\nm.n = 1\ndef f(x): return m.n\n",
        "m.n = 1", "m.n = 2"),
    "a global by globals": ("N = 1\ndef f(x): return globals()['N']\n", "N = 1", "N = 2"),
    "a global by eval": ("N = 1\ndef f(x): return eval('N')\n", "N = 1", "N = 2"),
    "a function in a library's object": (
        {"main.py": "import lib\n@lib.boxed\ndef g(x): return 1\ndef f(x): return g(x)\n"}
        | DECORATORS, "return 1", "return 2"),
    "a function below a library's bare decorator": (
        {"main.py": "import lib\n@lib.bare\ndef g(x): return 1\ndef f(x): return g(x)\n"}
        | DECORATORS, "return 1", "return 2"),
    "a function in a container of a library's closure": (
        {"main.py": "import lib\n@lib.kept\ndef g(x): return 1\ndef f(x): return g(x)\n"}
        | DECORATORS, "return 1", "return 2"),
    "a function below two decorators": (
        {"main.py": "import lib\n@lib.bare\n@lib.kept\ndef g(x): return 1\ndef f(x): return g(x)\n"}
        | DECORATORS, "return 1", "return 2"),
    "a function in a default in a library's closure": (
        {"main.py": "import lib\n@lib.deep\ndef g(x): return 1\ndef f(x): return g(x)\n"}
        | DECORATORS, "return 1", "return 2"),
    "a task below a library's decorator": (
        {"main.py": "import lib\n@lib.kept\ndef f(x): return 1\n"} | DECORATORS,
        "return 1", "return 2"),
    "a value in a library's closure": (
        {"main.py": "import lib\ng = lib.scale(2.5)\ndef f(x): return g(x)\n"} | DECORATORS,
        "2.5", "3.5"),
    "a function that replaces a library's": (
        {"main.py": "import lib\nlib.plain = lambda x: 1\ndef f(x): return lib.plain(x)\n"}
        | DECORATORS, "x: 1", "x: 2"),
    "a partial that replaces a library's function": (
        {"main.py": "import lib, functools\nlib.plain = functools.partial(max, 1)\n"
         "def f(x): return lib.plain(x)\n"} | DECORATORS, "max, 1", "max, 2"),
    "a library's function that replaces another": (
        {"main.py": "import lib, math\nlib.plain = math.sin\ndef f(x): return lib.plain(x)\n"}
        | DECORATORS, "math.sin", "math.cos"),
    "a library's class that replaces another": (
        {"main.py": "import lib, decimal\nlib.plain = decimal.Context\n"
         "def f(x): return lib.plain(x)\n"} | DECORATORS, "l.Context", "l.Decimal"),
    "a method that replaces a library's function": (
        {"main.py": "import lib\nclass A:\n    n = 1\n    def g(self, x): return self.n\n"
         "lib.plain = A().g\ndef f(x): return lib.plain(x)\n"} | DECORATORS, "n = 1", "n = 2"),
    "an object that replaces a library's function": (
        {"main.py": "import lib\nclass A:\n    def __call__(self, x): return 1\nlib.plain = A()\n"
         "def f(x): return lib.plain(x)\n"} | DECORATORS, "return 1", "return 2"),
    "a number that replaces a library's": (
        {"main.py": "import lib\nlib.limit = 7\ndef f(x): return lib.limit\n"} | DECORATORS,
        "limit = 7", "limit = 8"),
    "an attribute of a class with underscores": (
        "class A: __rate__ = 1\ndef f(x): return A.__rate__\n", "= 1", "= 2"),
    "an attribute with underscores that is set later": (
        "class A: pass\nA.__rate__ = 1\ndef f(x): return A.__rate__\n", "= 1", "= 2"),
    "a method that exec makes in a class": (
        "class A:\n    exec('def g(self): return 1')\ndef f(x): return A().g()\n",
        "return 1", "return 2"),
    "a special method that exec makes in a class": (
        "code = 'def __call__(self): return 1'\nclass A:\n    exec(code)\ndef f(x): return A()()\n",
        "return 1", "return 2"),
    "a property that calls no function": (
        "import operator\nclass A:\n    n = property(operator.attrgetter('a'))\n    a = b = 1\n"
        "def f(x): return A().n\n", "'a'", "'b'"),
    "the default of a context variable": (
        "import contextvars as c\nv = c.ContextVar('v', default=1)\ndef f(x): return v.get()\n",
        "default=1", "default=2"),
    "the format of a struct": (
        "import struct\ns = struct.Struct('<i')\ndef f(x): return s.pack(x)\n", "<i", ">i"),
    "an event that is set": (
        "import threading\ne = threading.Event()\ne.set()\ndef f(x): return e.is_set()\n",
        "e.set()", "e.clear()"),
    "an event of asyncio that is set": (
        "import asyncio\ne = asyncio.Event()\ne.set()\ndef f(x): return e.is_set()\n",
        "e.set()", "e.clear()"),
    "an event of one's own": (
        "import threading\nclass E(threading.Event): n = 0\ne = E()\ne.n = 1\n"
        "def f(x): return e.n\n", "n = 1", "n = 2"),
    "a formatter": (
        "import logging\nm = logging.Formatter('a%(name)s')\ndef f(x): return m.format(x)\n",
        "'a%", "'b%"),
    "the state of a handler of one's own": (
        "import logging\nclass H(logging.Handler): pass\nh = H()\nh.n = 1\n"
        "def f(x): return h.n\n", "n = 1", "n = 2"),
    "the code of a handler of one's own": (
        "import logging\nclass H(logging.Handler):\n    def g(self): return 1\nh = H()\n"
        "def f(x): return h.g()\n", "return 1", "return 2"),
    "the state of a logger of one's own": (
        "import logging\nclass L(logging.Logger): pass\nn = L('n')\nn.n = 1\n"
        "def f(x): return n.n\n", "n.n = 1", "n.n = 2"),
    "the code of a logger of one's own": (
        "import logging\nclass L(logging.Logger):\n    def g(self): return 1\nh = L('n')\n"
        "def f(x): return h.g()\n", "return 1", "return 2"),
    "the state of a stream of one's own": (
        "import io\nclass S(io.RawIOBase):\n    def writable(self): return True\ns = S()\n"
        "s.n = 1\ndef f(x): return s.n\n", "n = 1", "n = 2"),
    "a default in a dataclass made by a call": (
        "import dataclasses as d\nX = d.make_dataclass('X', [('a', int, 1)])\n"
        "def f(x): return X().a\n", "int, 1", "int, 2"),
    "a factory in a dataclass made by a call": (
        "import dataclasses as d\n"
        "X = d.make_dataclass('X', [('a', int, d.field(default_factory=lambda: 1))])\n"
        "def f(x): return X().a\n", "lambda: 1", "lambda: 2"),
    "a global that was in a factory of a dataclass": (
        "from dataclasses import dataclass, field\nK = 1\n@dataclass\nclass X:\n"
        "    v: int = field(default_factory=lambda k=K: k)\nK = 9\ndef f(x): return X().v\n",
        "K = 1", "K = 2"),
    "a global that was a default of a dataclass with slots": (
        "from dataclasses import dataclass\nK = 1\n@dataclass(slots=True)\nclass X:\n"
        "    v: int = K\nK = 9\ndef f(x): return X().v\n", "K = 1", "K = 2"),
    "a global that was an option of a dataclass": (
        "from dataclasses import dataclass\nK = True\n@dataclass(order=K)\nclass X:\n"
        "    v: int = 1\nK = 9\ndef f(x): return X() < X()\n", "K = True", "K = False"),
    "a name in builtins": (
        "import builtins\nbuiltins.rhapsody_n = 1\ndef f(x): return rhapsody_n\n",
        "rhapsody_n = 1", "rhapsody_n = 2"),
    "a default of a function that is set later": (
        "def g(x=1): return x\ng.__defaults__ = (3,)\ndef f(x): return g()\n", "(3,)", "(4,)"),
    "a variable of the environment": (
        "import os\nos.environ['RH_X'] = 'a'\ndef f(x): return os.environ['RH_X']\n",
        "= 'a'", "= 'b'"),
    "a variable of the environment by get": (
        "import os\nos.environ['RH_X'] = 'a'\ndef f(x): return os.environ.get('RH_X', x)\n",
        "= 'a'", "= 'b'"),
    "a variable of the environment by getenv": (
        "import os\nos.environ['RH_X'] = 'a'\ndef f(x): return os.getenv('RH_X')\n",
        "= 'a'", "= 'b'"),
    "a variable of the environment by names taken": (
        "from os import environ as e\ne['RH_X'] = 'a'\n"
        "def f(x): return 'RH_X' in e and e['RH_X']\n",
        "= 'a'", "= 'b'"),
    "a variable of the environment by a constant": (
        "import os\nX = 'RH_X'\nos.environ[X] = 'a'\ndef f(x): return os.environ[X]\n",
        "= 'a'", "= 'b'"),
    "a variable of the environment that is called like a place": (
        "import os\nos.environ['TEMPERATURE'] = 'a'\n"
        "def f(x): return os.environ['TEMPERATURE']\n", "= 'a'", "= 'b'"),
    "the number of a job in an array": (
        "import os\nos.environ['SLURM_ARRAY_TASK_ID'] = '1'\n"
        "def f(x): return os.environ['SLURM_ARRAY_TASK_ID']\n", "= '1'", "= '2'"),
    "a variable in a copy of the environment": (
        "import os\nos.environ['RH_X'] = 'a'\ndef f(x): return dict(os.environ)['RH_X']\n",
        "= 'a'", "= 'b'"),
    "a variable of the environment that a helper reads": (
        "import os\nos.environ['RH_X'] = 'a'\ndef g(e): return e['RH_X']\n"
        "def f(x): return g(os.environ)\n", "= 'a'", "= 'b'"),
    "a variable of the environment in a default": (
        "import os\nos.environ['RH_X'] = 'a'\ndef f(x, e=os.environ): return e['RH_X']\n",
        "= 'a'", "= 'b'"),
    "a variable of the environment by a bound method": (
        "import os\nos.environ['RH_X'] = 'a'\ng = os.environ.get\n"
        "def f(x): return g('RH_X')\n", "= 'a'", "= 'b'"),
    "a variable of the environment by a partial": (
        "import functools, os\nos.environ['RH_X'] = 'a'\ng = functools.partial(os.getenv, 'RH_X')\n"
        "def f(x): return g()\n", "= 'a'", "= 'b'"),
    "a variable of the environment with an import inside": (
        "import os\nos.environ['RH_X'] = 'a'\n"
        "def f(x):\n    import os as o\n    return o.environ['RH_X']\n", "= 'a'", "= 'b'"),
    "a variable of the environment by a function taken inside": (
        "import os\nos.environ['RH_X'] = 'a'\n"
        "def f(x):\n    from os import getenv\n    return getenv('RH_X')\n", "= 'a'", "= 'b'"),
    "the name of a function that is set": (
        "def make(n):\n    def g(x): return 1\n    g.__name__ = n\n    return g\ng = make('a')\n"
        "def f(x): return g.__name__\n", "'a'", "'b'"),
    "the qualified name of a function that is set": (
        "def g(x): return 1\ng.__qualname__ = 'a'\ndef f(x): return g.__qualname__\n",
        "'a'", "'b'"),
    "the name of a class that is set": (
        "class A: pass\nA.__name__ = 'a'\ndef f(x): return A.__name__\n", "'a'", "'b'"),
    "the order of attributes in a pattern": (
        "K = 'a', 'b'\nclass A:\n    __match_args__ = K\n    a = b = 1\nK = 9\n"
        "def f(x):\n    match A():\n        case A(n): return n\n",
        "'a', 'b'", "'b', 'a'"),
    "the slots of a class": (
        "A = type('A', (), {'__slots__': ('a', 'b')})\ndef f(x): return A.__slots__\n",
        "'a', 'b'", "'b', 'a'"),
    "an attribute of a member of an enum": (
        "import enum\nclass A(enum.Enum):\n    N = 1\nA.N.rate = 1\ndef f(x): return A.N.rate\n",
        "rate = 1", "rate = 2"),
    "the metadata of a dataclass's field": (
        "import dataclasses as d\nK = {'u': 1}\n@d.dataclass\nclass A:\n"
        "    n: int = d.field(default=1, metadata=K)\nK = 9\n"
        "def f(x): return d.fields(A)[0].metadata['u']\n", "'u': 1", "'u': 2"),
    "a module of a package that belongs to no distribution": (
        {"main.py": "import lib\ndef f(x): return lib.g(x)\n",
         "site-packages/lib/__init__.py": "from .m import g\n",
         "site-packages/lib/m.py": "def g(x): return 1\n"}, "return 1", "return 2"),
    "what is shown of a library that shows progress": (
        "import rich.text\nt = rich.text.Text('a')\ndef f(x): return t.plain\n", "'a'", "'b'"),
    "a variable of the environment by expandvars": (
        "import os\nos.environ['RH_X'] = 'a'\ndef f(x): return os.path.expandvars('$RH_X')\n",
        "= 'a'", "= 'b'"),
    "a variable of a module that a module uses which a task imports": (
        {"main.py": "import m\nm.rate = 1\ndef f(x):\n    import k\n    return k.g()\n",
         "k.py": "import m\ndef g(): return m.rate\n", "m.py": SETTINGS},
        "m.rate = 1", "m.rate = 2"),
    "a name taken by a module that a task imports": (
        {"main.py": "import m\nm.rate = 1\ndef f(x):\n    import k\n    return k.rate\n",
         "k.py": "from m import rate\n", "m.py": SETTINGS}, "m.rate = 1", "m.rate = 2"),
    "all names taken by a module that a task imports": (
        {"main.py": "import m\nm.rate = 1\ndef f(x):\n    import k\n    return k.rate\n",
         "k.py": "from m import *\n", "m.py": SETTINGS}, "m.rate = 1", "m.rate = 2"),
    "a module by a literal name in a module that a task imports": (
        {"main.py": "def f(x):\n    import k\n    return k.g()\n",
         "k.py": "import importlib\ndef g(): return importlib.import_module('m').n\n",
         "m.py": "n = 1\n"}, "n = 1", "n = 2"),
    "a module by __import__ in a package that a task imports": (
        {"main.py": "def f(x):\n    import p\n    return p.k.n\n",
         "p/__init__.py": "k = __import__('p.k').k\n", "p/k.py": "n = 1\n"}, "n = 1", "n = 2"),
    "arguments of the program in a module that a task imports": (
        {"main.py": "import sys\nsys.argv = ['a', 'b']\ndef f(x):\n    import m\n    return m.n\n",
         "m.py": "import sys\nn = sys.argv[1]\n"}, "'b'", "'c'"),
    "a variable of the environment in a module that a task imports": (
        {"main.py": "import os\nos.environ['RH_X'] = 'a'\ndef f(x):\n    import m\n"
         "    return m.n\n", "m.py": "import os\nn = os.environ['RH_X']\n"}, "= 'a'", "= 'b'"),
    "a variable of the environment by a constant in a module that a task imports": (
        {"main.py": "import os\nos.environ['RH_X'] = 'a'\ndef f(x):\n    import m\n"
         "    return m.g()\n",
         "m.py": "import os\nX = 'RH_X'\ndef g(): return os.environ[X]\n"}, "= 'a'", "= 'b'"),
}  # fmt: skip

REFUSED: dict[str, tuple[str | Files, str]] = {
    # What: the program, and what the message says.
    "a module by a name that is made up": (
        "import importlib\ndef f(x): return importlib.import_module(f'm{x}')\n", "computed name"),
    "a module that its loader runs": (
        "from importlib.util import find_spec, module_from_spec\ndef f(x):\n"
        "    spec = find_spec('json')\n    module = module_from_spec(spec)\n"
        "    spec.loader.exec_module(module)\n    return module.dumps(x)\n",
        "uses exec_module, which may import any module"),
    "a module that is found by a function": (
        "import inspect\ndef helper(): ...\ndef f(x): return inspect.getmodule(helper).__name__\n",
        "uses getmodule, which gives access to any object"),
    "a partial that imports": (
        "import functools, importlib\nload = functools.partial(importlib.import_module, 'json')\n"
        "def f(x): return load()\n", "may import any module"),
    "a module by a name that is resolved": (
        "import pkgutil\ndef f(x): return pkgutil.resolve_name('json:dumps')\n",
        "may import any module"),
    "a module by a made-up name in a module that a task imports": (
        {"main.py": "def f(x):\n    import m\n    return m.g()\n",
         "m.py": "from importlib import import_module as i\ndef g(): return i(f'k{1}')\n"},
        "computed name"),
    "a module by a made-up name in a lazy package that a task imports": (
        {"main.py": "def f(x):\n    from p import m\n    return m\n",
         "p/__init__.py": "import importlib\ndef __getattr__(name):\n"
         "    return importlib.import_module('.' + name, __name__)\n"}, "computed name"),
    "sys.modules in a module that a task imports": (
        {"main.py": "def f(x):\n    import m\n    return m.g()\n",
         "m.py": "import sys\ndef g(): return sys.modules['main']\n"}, "sys.modules"),
    "a library in C": (
        "import ctypes\nlib = ctypes.CDLL(None)\ndef f(x): return lib.getpid()\n",
        "functions of the library"),
    "a plugin that an entry point loads": (
        "from importlib.metadata import entry_points\n"
        "def f(x): return [e.load()(x) for e in entry_points(group='g')]\n", "entry_points"),
    "a plugin that an entry point of an imported module loads": (
        "import importlib.metadata\n"
        "def f(x): return importlib.metadata.entry_points(group='g')['n'].load()(x)\n",
        "entry_points"),
    "a module that runpy runs": (
        "import runpy\ndef f(x): return runpy.run_module('json.tool')\n", "runpy.run_module"),
    "a file that runpy runs": (
        "from runpy import run_path\ndef f(x): return run_path('m.py')\n", "runpy.run_path"),
    "a module by its path": (
        "import importlib.util as u\ndef f(x): return u.spec_from_file_location('m', x)\n",
        "spec_from_file_location"),
    "a module by a loader": (
        "from importlib.machinery import SourceFileLoader as S\n"
        "def f(x): return S('m', x).load_module()\n", "uses load_module"),
    "importlib's __import__": (
        "import importlib\ndef f(x): return importlib.__import__(f'm{x}')\n", "__import__"),
    "a change of sys.path": (
        "def f(x):\n    import sys\n    sys.path.insert(0, x)\n    import m\n", "sys.path"),
    "a variable of the environment as bytes": (
        "import os\ndef f(x): return os.getenvb(b'RH_X')\n", "not literals"),
    "builtins": (
        "import builtins\ndef f(x): return getattr(builtins, x)('json')\n",
        "can import any module"),
    "a variable of the environment by a name that is made up": (
        "import os\ndef f(x): return os.environ[f'X{x}']\n", "names are not literals"),
    "a variable of the environment by a name that a class of a module sets, too": (
        {"main.py": "def f(x):\n    import m\n    return m.A.n\n",
         "m.py": "import os\nX = 'RH_X'\nclass A:\n    X = 'RH_Y'\n"
         "    n = os.environ[X]\n"}, "names are not literals"),
    "a variable of the environment by a name that a module sets twice": (
        {"main.py": "def f(x):\n    import m\n    return m.g()\n",
         "m.py": "import os\nX = 'RH_X'\nX = X + 'Y'\ndef g(): return os.environ[X]\n"},
        "names are not literals"),
    "a module of Python in a variable": (
        "import os\ndef f(x):\n    m = os\n    return m.environ['RH_X']\n",
        "os. module as a whole"),
    "a module of Python as a default": (
        "import os\ndef f(x, m=os): return m.environ['RH_X']\n", "os. module as a whole"),
    "a module of Python in a class": (
        "import os\nclass A:\n    m = os\ndef f(x): return A.m.environ['RH_X']\n",
        "os. module as a whole"),
    "a module of Python as an argument": (
        "import sys\ndef f(x): return vars(sys)\n", "sys. module as a whole"),
    "the environment through a module that a task imports": (
        {"main.py": "def f(x):\n    import m\n    return m.environ['RH_X']\n",
         "m.py": "from os import environ\n"}, "names are not literals"),
    "all of os in a module that a task imports": (
        {"main.py": "def f(x):\n    import m\n    return m.g()\n",
         "m.py": "from os import *\ndef g(): return environ['RH_X']\n"}, "os. module as a whole"),
    "the environment in code without a file": (
        "import os\nexec('def g(x):\\n  return os.environ[x]')\ndef f(x): return g(x)\n",
        "names are not literals"),
    "variables of the environment": (
        "import os\ndef f(x): return [k for k in os.environ if k > 'R']\n", "not literals"),
    "getenv by a variable": ("import os\ndef f(x): return os.getenv(x)\n", "not literals"),
    "sys.modules": ("import sys\ndef f(x): return sys.modules['main']\n", "sys.modules"),
    "a generator": ("G = (n for n in range(3))\ndef f(x): return next(G)\n", "G used by f"),
    "a file that is read": ("G = open(0, closefd=False)\ndef f(x): return G\n", "G used by f"),
    "a data base": (
        "import sqlite3\ndb = sqlite3.connect(':memory:')\ndb.close()\n"
        "def f(x): return db.execute('')\n",
        "db used by f"),
    "a generator in a module that is used as a whole": (
        {"main.py": "import m\ndef f(x): return getattr(m, x)\n",
         "m.py": "G = (n for n in range(3))\n"}, "G of module m.py"),
    "subclasses": (
        "class A: pass\ndef f(x): return A.__subclasses__()\n", "__subclasses__"),
    "a generator in a class": (
        "class A: g = (n for n in range(3))\ndef f(x): return next(A.g)\n", "g of class A"),
    "a generator in a library's closure": (
        {"main.py": "import lib\ng = lib.scale(n for n in range(3))\ndef f(x): return g(x)\n"}
        | DECORATORS, "n around lib.scale"),
}  # fmt: skip

ORDINARY: dict[str, str] = {
    "loggers, locks and outputs": (
        "import logging, threading, sys, io, asyncio\nlog = logging.getLogger(__name__)\n"
        "more = logging.LoggerAdapter(log, {})\nlock = threading.RLock()\nerr = sys.__stderr__\n"
        "local = threading.local()\ns = asyncio.Semaphore(2)\nc = threading.Condition()\n"
        "def f(x):\n    with lock, c: log.info(x); more.info(x); print(x, file=err)\n"
        "    return local, s\n"
    ),
    "loggers of one's own": (
        "import logging, sys\nclass H(logging.FileHandler): pass\n"
        "class L(logging.Logger): pass\nclass A(logging.LoggerAdapter): pass\nl = L('a')\n"
        "l.addHandler(h := H('/dev/null', delay=True))\nm = A(l, {'n': 1})\n"
        "def f(x): l.info(x); m.info(x); h.flush()\n"
    ),
    "a pool": (
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)\n"
        "def f(x): return list(pool.map(str, [x]))\n"
    ),
    "patterns, paths and dates": (
        "import re, pathlib, datetime, decimal\nR = re.compile('a+')\nP = pathlib.Path(__file__)\n"
        "D = datetime.date(2020, 1, 1)\ndef f(x): return R.match(x), P, D, decimal.Decimal(x)\n"
    ),
    "arrays and tables": (
        "import numpy as np\nimport pandas as pd\nA = np.arange(3)\nT = pd.DataFrame({'a': A})\n"
        "G = np.random.default_rng(3)\nO = np.vectorize(len)\n"
        "def f(x): return np.sum(A), pd.concat([T, T]).groupby('a').mean(), G.random(), O(x)\n"
    ),
    "arguments of the command line": (
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--n', type=int)\n"
        "a = p.parse_args([])\ndef f(x): return a.n, p.prog\n"
    ),
    "the environment of a program that it starts": (
        "import os, subprocess\ndef f(x):\n    env = dict(os.environ, A='1')\n"
        "    more = {**os.environ, 'B': x}\n    other = os.environ.copy()\n"
        "    return subprocess.run(['true'], env=os.environ | {'A': x}, check=True)\n"
    ),
    "classes of all kinds": (
        "import abc, enum, typing, collections, dataclasses, functools\n"
        "class E(enum.Flag):\n    A = 1\nclass P(typing.Protocol):\n    def g(self): ...\n"
        "class B(abc.ABC):\n    @abc.abstractmethod\n    def g(self): ...\n"
        "@dataclasses.dataclass(slots=True, frozen=True, order=True)\nclass D(B):\n"
        "    n: int = 1\n    m: list[int] = dataclasses.field(default_factory=list)\n"
        "    def g(self): return 1\nclass T(typing.TypedDict):\n    n: int\n"
        "N = collections.namedtuple('N', 'a b')\nclass M(typing.NamedTuple):\n    n: int = 1\n"
        "class C(typing.Generic[typing.TypeVar('X')]):\n    __slots__ = ('a',)\n"
        "    __class_getitem__ = classmethod(dict)\n    @functools.cached_property\n"
        "    def p(self): return 1\n    @functools.lru_cache\n    def q(self): return 1\n"
        "class X(Exception): pass\ndef f(x): return E.A, P, B, D(), T, N, M, C, X\n"
    ),
    "functions of all kinds": (
        "import functools, contextlib, operator\n@contextlib.contextmanager\ndef c(): yield\n"
        "@functools.singledispatch\ndef s(x): ...\n@s.register\ndef _(x: int): ...\n"
        "@functools.cache\ndef k(x): ...\nq = functools.partial(k, 1)\ng = operator.itemgetter(1)\n"
        "u = 'a'.upper\n@functools.total_ordering\nclass O:\n    def __lt__(s, o): return s is o\n"
        "def f(x): return c, s(x), k, q, g, u, O, isinstance(x, int), len(x)\n"
    ),
    "a module of the standard library that is used as a whole": (
        "import math, random, json\ndef f(x): return [math, random, json]\n"
    ),
    "a program that imports by name": (
        "from importlib import import_module\n"
        "def f(x): return globals()['f'], import_module('json')\n"
    ),
    "a module that is loaded": (
        "import sys\ndef f(x): return 'torch' in sys.modules, sys.argv, sys.executable\n"
    ),
}
