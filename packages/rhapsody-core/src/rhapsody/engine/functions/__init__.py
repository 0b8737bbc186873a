"""Decorated functions, and what their arguments and closures refer to.

Modules, from the lowest layer to the highest: `arguments`, `closures`, `task_function`.
"""
