"""RADICAL-Pilot's client, in a process of its own that belongs to one backend.

Nothing outside this package imports it, and nothing but it imports `radical.pilot` while a
backend runs. `rhapsody_radical.connection` starts it and talks to it.
"""
