"""Calls of tasks, services and blocks, until the scheduler takes them.

Modules, from the lowest layer to the highest: `services`, `blocks`, `loop_objects`, `sequences`,
`submission`.
"""
