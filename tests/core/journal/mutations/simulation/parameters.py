"""Parameters of the simulation, some of which the import computes."""

import re  # seen by: parsed
from decimal import Decimal  # seen by: price
from fractions import Fraction  # seen by: price

SEED = 11  # seen by: walk
FAST = True  # seen by: chosen
LEVELS = [level * 2 for level in range(3)]  # seen by: level
PATTERN = re.compile(r"(\w+)=(\d+)")  # seen by: parsed
PRICE = Decimal("1.10")  # seen by: price
SHARE = Fraction(1, 4)  # seen by: price
TABLE: dict[str, int] = {}  # seen by: level
for number, word in enumerate(("low", "high")):  # seen by: level
    TABLE[word] = number + 1
TABLE["top"] = 9  # seen by: level
BOUNDS = (0, 8)  # seen by: walk made bounded
CHOSEN = "careful"  # seen by: chosen
if FAST:  # seen by: chosen
    CHOSEN = "quick"
try:  # seen by: mode
    MODE = int("x")
except ValueError:
    MODE = 5
