"""A function that executes a file. Everything in its module counts for it."""

from pathlib import Path  # seen by: loaded


def loaded(name: str) -> int:  # seen by: loaded
    """Return a parameter from a source file that is executed, not imported."""
    parameters: dict[str, int] = {}
    exec(Path(__file__).with_name("data").joinpath("parameters.py").read_text(), {}, parameters)
    return parameters[name]
