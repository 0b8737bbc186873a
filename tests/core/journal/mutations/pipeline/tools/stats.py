"""Prints a figure of a table."""

import sys

import units

total = 0.0
with open(sys.argv[1]) as table:
    for line in table.readlines()[1:]:
        total += float(line.split(",")[1])
if total > 70:
    print("total", units.converted(total))
