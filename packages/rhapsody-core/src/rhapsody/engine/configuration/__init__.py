"""Settings of tasks and options of engines: what a user may write, checked once, and its defaults.

Modules, from the lowest layer to the highest: `settings`, `options`, `profiles`, `defaults`.
"""
