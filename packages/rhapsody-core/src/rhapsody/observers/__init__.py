"""Observers that Rhapsody provides: plugins on the same hooks as those of third parties.

An observer that an option of the engine switches on is made in `rhapsody.observers.builtin`.
"""
