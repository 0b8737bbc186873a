"""Client of RADICAL-Pilot: a process that belongs to one backend.

`rhapsody_radical.connection` starts the process and exchanges messages with it. No module outside
this package imports it, and only this package imports `radical.pilot` while a backend runs.
"""
