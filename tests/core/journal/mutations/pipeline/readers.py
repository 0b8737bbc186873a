"""Functions that read files and variables."""

import configparser  # seen by: cut title
import os  # seen by: scale offset
import subprocess  # seen by: shifted
from pathlib import Path  # seen by: cut title constant listed shifted first parts

HERE = Path(__file__).parent  # seen by: cut title constant listed shifted
OFFSET = "PIPELINE_OFFSET"  # seen by: offset
SETTINGS = configparser.ConfigParser()  # seen by: cut title
SETTINGS.read(HERE / "settings.ini")  # seen by: cut title
CUT = SETTINGS.getint("filter", "cut")  # seen by: cut
OUTPUT = dict(SETTINGS["output"])  # seen by: title


def cut(numbers: list[int]) -> list[int]:  # seen by: cut
    """Return the numbers above the cut."""
    return [number for number in numbers if number > CUT]


def title(number: float) -> str:  # seen by: title
    """Return a title with a number."""
    digits = int(OUTPUT["digits"])
    return f"{OUTPUT['title']} {number:.{digits}f}"


def constant(name: str) -> float:  # seen by: constant
    """Return a constant from a file that is not declared."""
    with open(HERE / "data" / "constants.txt") as lines:
        for line in lines:
            word, number = line.split()
            if word == name:
                return float(number)
    raise LookupError(name)


def scale(number: int) -> int:  # seen by: scale
    """Return a number times a variable of the environment."""
    return number * int(os.environ.get("PIPELINE_SCALE", "7"))


def offset(number: int) -> int:  # seen by: offset
    """Return a number plus a variable of the environment."""
    return number + int(os.environ[OFFSET])


def listed() -> list[str]:  # seen by: listed
    """Return the content of all parts."""
    parts = sorted((HERE / "parts").glob("*.part"))
    return [part.read_text().strip() for part in parts]


def shifted(number: int) -> int:  # seen by: shifted
    """Return what a script prints."""
    command = ["sh", str(HERE / "tools" / "shift.sh"), str(number)]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


def first(table: str | Path, index: int = 1) -> str:  # seen by: first
    """Return a line of a table."""
    lines = Path(table).read_text().splitlines()
    return lines[index].upper()


def parts(directory: str | Path) -> int:  # seen by: parts
    """Return how many lines are in a directory."""
    files = [path for path in sorted(Path(directory).iterdir()) if path.suffix == ".part"]
    return sum(len(path.read_text().split()) for path in files)
