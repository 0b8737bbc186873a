"""Parameters that a function executes."""

rate = 3
steps = rate * 2
