"""Modules of a program, in versions, for tests that workers have the program's version."""

from __future__ import annotations

from pathlib import Path

NAMES = ("stale_main", "stale_helper", "stale_lazy", "stale_package", "stale_space")


def write(place: Path, version: int) -> None:
    """Write the modules in a version; the program imports `stale_main`."""
    texts = {
        "stale_helper.py": f"V = {version}\ndef helped(): return V\n",
        "stale_lazy.py": f"V = {version}\n",
        "stale_package/__init__.py": "",
        "stale_package/inner.py": f"from . import value\ndef f(): return value.V  # {version}\n",
        "stale_package/value.py": f"V = {version}\n",
        "stale_package/late.py": f"V = {version}\n",
        "stale_space/inner.py": f"V = {version}\n",
        "stale_main.py": (
            "from stale_helper import helped\n"
            "from stale_package import inner\n"
            "import stale_space.inner\n"
            "class OwnError(Exception): pass\n"
            "calls = []\n"
            "def all_of_them():\n"
            "    import stale_lazy\n"
            "    from stale_package import (\n        late,\n    )\n"
            f"    own = {version}\n"
            "    return [own, helped(), inner.f(), stale_lazy.V, late.V, stale_space.inner.V]\n"
            "def fail(): raise OwnError(helped())\n"
            "def count():\n    calls.append(1)\n    return len(calls)\n"
        ),
    }
    for name, text in texts.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
