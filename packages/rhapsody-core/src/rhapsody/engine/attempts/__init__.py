"""Work around an attempt: its files and recorded result, its preparation, and its submission.

Modules, from the lowest layer to the highest: `stage_out`, `memoization`, `task_builder`,
`dispatch`.
"""
